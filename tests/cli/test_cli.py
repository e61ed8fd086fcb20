"""The command line as scripts see it: outputs, exit codes, JSON, and the first use by an ordinary user."""

import base64
import json
import os
import pwd
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from kmsfs.errors import ExitCode
from support.peers import let_others_in


@pytest.fixture
def kmsfs(daemon):
    def run(*arguments, input=None, **environment):
        variables = {**os.environ, "KMSFS_SOCKET": str(daemon.socket), "NO_COLOR": "1", **environment}
        command = [sys.executable, "-m", "kmsfs.cli", *map(str, arguments)]
        return subprocess.run(command, env=variables, capture_output=True, text=True, input=input, timeout=60)

    return run


def test_parameters(kmsfs):
    put = kmsfs("param", "put", "/cli/db", "--type", "SecureString", "--value-file", "-", input="s3cret\n")
    assert (put.returncode, put.stdout, put.stderr) == (0, "", "kmsfs: /cli/db version 1 (Standard)\n")
    got = kmsfs("param", "get", "/cli/db", "--with-decryption", "--raw")
    assert (got.stdout, got.stderr) == ("s3cret", "")
    document = json.loads(kmsfs("param", "get", "/cli/db", "--with-decryption", "--json").stdout)
    assert document["Value"] == "s3cret" and document["Version"] == 1
    again = kmsfs("param", "put", "/cli/db", "--value-file", "-", input="x")
    assert again.returncode == ExitCode.CONFLICT and "already exists" in again.stderr
    kmsfs("param", "put", "/cli/db", "--value-file", "-", "--overwrite", input="two")
    assert kmsfs("param", "get", "/cli/db:1", "--with-decryption", "--raw").stdout == "s3cret"
    assert "/cli/db" in kmsfs("param", "list", "/cli").stdout
    assert len(json.loads(kmsfs("param", "history", "/cli/db", "--json").stdout)) == 2
    missing = kmsfs("param", "get", "/cli/none")
    assert missing.returncode == ExitCode.NOT_FOUND and missing.stderr == "kmsfs: Parameter /cli/none not found.\n"
    assert kmsfs("param", "delete", "/cli/db").returncode == ExitCode.USAGE
    assert kmsfs("param", "delete", "/cli/db", "--yes").returncode == 0


def test_a_parameter_keeps_what_belongs_to_it(kmsfs, tmp_path):
    """A copy, an edit and a rollback keep KMS key, description and pattern; line ends stay; a lost race says so."""

    def described(name):
        document = json.loads(kmsfs("param", "history", name, "--json").stdout)[-1]
        return {field: document.get(field) for field in ("KeyId", "Description", "AllowedPattern")}

    key = kmsfs("key", "create").stdout.strip()
    first = tmp_path / "first"
    first.write_bytes(b"a\r\nb\r\n")
    options = ("--key", key, "--description", "what for", "--allowed-pattern", r"[\s\S]*", "--no-strip")
    kmsfs("param", "put", "/kept/one", "--type", "SecureString", "--value-file", first, *options)
    before = described("/kept/one")
    assert before == {"KeyId": key, "Description": "what for", "AllowedPattern": r"[\s\S]*"}
    assert kmsfs("param", "edit", "/kept/one", EDITOR="true", VISUAL="").stderr == "kmsfs: unchanged\n"
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\necho more >> "$1"\n')
    editor.chmod(0o755)
    assert kmsfs("param", "edit", "/kept/one", EDITOR=str(editor), VISUAL="").returncode == 0
    value = json.loads(kmsfs("param", "get", "/kept/one", "--with-decryption", "--json").stdout)["Value"]
    assert value == "a\r\nb\r\n\nmore" and described("/kept/one") == before
    kmsfs("param", "rollback", "/kept/one", "--to", "1")
    kmsfs("param", "copy", "/kept/one", "/kept/two")
    assert described("/kept/one") == described("/kept/two") == before
    put = f"printf other | {sys.executable} -m kmsfs.cli param put /kept/one --overwrite --value-file -"
    editor.write_text(f'#!/bin/sh\necho more >> "$1"; {put}\n')
    raced = kmsfs("param", "edit", "/kept/one", EDITOR=str(editor), VISUAL="")
    assert raced.returncode == ExitCode.USAGE and "version 4 by now" in raced.stderr
    # What was typed is not lost with the race.
    kept = Path(raced.stderr.split("is kept in ")[1].split(":")[0])
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600 and kept.read_text()
    kept.unlink()
    assert kmsfs("param", "get", "/kept/one", "--with-decryption", "--raw").stdout == "other"


def test_keys(kmsfs):
    key = kmsfs("key", "create", "--alias", "alias/cli").stdout.strip()
    assert json.loads(kmsfs("key", "describe", "alias/cli", "--json").stdout)["KeyId"] == key
    assert key in kmsfs("key", "list").stdout and key in kmsfs("--json", "key", "list").stdout
    assert "alias/cli" in kmsfs("alias", "list", "--key", key).stdout
    blob = base64.b64decode(json.loads(kmsfs("key", "encrypt", key, "--context", "a=b", "--json", input="hi").stdout)["CiphertextBlob"])
    request = json.dumps({"CiphertextBlob": base64.b64encode(blob).decode(), "EncryptionContext": {"a": "b"}})
    answer = json.loads(kmsfs("api", "Decrypt", input=request).stdout)
    assert base64.b64decode(answer["Plaintext"]) == b"hi"
    wrong = kmsfs("api", "Decrypt", input=request.replace('"b"', '"c"'))
    assert wrong.returncode == ExitCode.INTEGRITY
    assert json.loads(wrong.stderr)["error"]["code"] == "InvalidCiphertextException"
    assert kmsfs("key", "rotate", key).returncode == 0
    assert kmsfs("key", "disable", key).returncode == 0
    refused = kmsfs("key", "encrypt", key, input="x")
    assert refused.returncode == ExitCode.CONFLICT and "hint: kmsfs key enable" in refused.stderr
    assert kmsfs("key", "enable", key).returncode == 0
    assert kmsfs("key", "schedule-deletion", key).returncode == ExitCode.USAGE
    assert kmsfs("key", "schedule-deletion", key, "--days", "7", "--yes").returncode == 0
    assert kmsfs("key", "cancel-deletion", key).returncode == 0
    assert "Statement" in kmsfs("key", "policy", "get", key).stdout
    assert kmsfs("key", "policy", "put", key, "-", input="nonsense").returncode == ExitCode.USAGE


def test_grants(kmsfs):
    key = kmsfs("key", "create").stdout.strip()
    made = json.loads(kmsfs("grant", "create", key, "--to", "uid/1000", "--operation", "Decrypt", "--json").stdout)
    [grant] = json.loads(kmsfs("grant", "list", key, "--json").stdout)
    assert grant["GrantId"] == made["GrantId"] and grant["GranteePrincipal"].endswith(":uid/1000")
    assert kmsfs("grant", "revoke", key, made["GrantId"]).returncode == 0
    assert json.loads(kmsfs("grant", "list", key, "--json").stdout) == []


def test_bad_command_lines(kmsfs):
    assert kmsfs("nonsense").returncode == 2
    assert kmsfs("api", "Nonsense", input="{}").returncode == ExitCode.USAGE
    assert kmsfs("api", "ListKeys", input="[]").returncode == ExitCode.USAGE
    assert kmsfs("inspect", "/nonexistent").returncode == ExitCode.STORAGE
    assert kmsfs("inspect", "/etc/passwd").returncode == ExitCode.INTEGRITY
    assert kmsfs("umount", "/").returncode == ExitCode.USAGE
    assert kmsfs("--version").stdout.startswith("kmsfs ")
    for group in ("key", "alias", "grant", "param", "volume", "daemon"):
        assert kmsfs(group, "--help").returncode == 0


def test_no_secret_is_an_argument(kmsfs):
    for command in (("param", "put"), ("key", "encrypt"), ("key", "decrypt")):
        text = kmsfs(*command, "--help").stdout
        assert "--value " not in text and "--plaintext" not in text


def test_the_working_directory_gives_no_code_to_the_daemon(tmp_path):
    """Who unpacks an archive and calls kmsfs in it must not run what lies there, least of all in the daemon."""
    runtime, here = tmp_path / "run", tmp_path / "here"
    runtime.mkdir(mode=0o700)
    here.mkdir()
    for name in ("json", "kmsd", "kmsfs", "msgspec", "logging"):
        (here / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})")
    variables = {k: v for k, v in os.environ.items() if k not in ("KMSFS_SOCKET", "PYTHONSAFEPATH")}
    variables |= {"XDG_STATE_HOME": str(tmp_path / "state"), "XDG_RUNTIME_DIR": str(runtime)}
    kmsfs = [sys.executable, "-P", "-m", "kmsfs.cli"]
    try:
        made = subprocess.run([*kmsfs, "key", "create"], cwd=here, env=variables, capture_output=True, text=True)
        assert made.returncode == 0 and "recovery code" in made.stderr, made.stderr
        assert not (tmp_path / "ran").exists()
    finally:
        subprocess.run([*kmsfs, "daemon", "stop"], cwd=here, env=variables, capture_output=True)


def test_a_private_daemon_starts_itself_once(tmp_path):
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    variables = {k: v for k, v in os.environ.items() if k != "KMSFS_SOCKET"}
    variables |= {"XDG_STATE_HOME": str(tmp_path / "state"), "XDG_RUNTIME_DIR": str(runtime)}

    def run(*arguments, input=None):
        return subprocess.run(
            [sys.executable, "-m", "kmsfs.cli", *arguments], env=variables, capture_output=True, text=True, input=input
        )

    assert run("--no-autostart", "key", "list").returncode == ExitCode.UNAVAILABLE
    first = run("key", "create")
    try:
        assert first.returncode == 0 and "recovery code" in first.stderr and "started a private key daemon" in first.stderr
        assert run("key", "list").stderr == ""
        socket = runtime / "kmsfs" / "kmsd.sock"
        assert stat.S_IMODE(socket.stat().st_mode) == 0o600
        assert json.loads(run("daemon", "status", "--json").stdout)["Private"] is True
    finally:
        assert run("daemon", "stop").returncode == 0
    second = run("key", "list", "--json")
    try:
        assert "recovery code" not in second.stderr and len(json.loads(second.stdout)) == 1
    finally:
        run("daemon", "stop")


def usable_python(run, variables):
    """An interpreter that an ordinary user may start: ours, or the system's with our packages."""
    probe = "import subprocess, sys, kmsfs.cli.main, kmsd; subprocess.run([sys.executable, '-c', ''], check=True)"
    if run(sys.executable, "-c", probe).returncode == 0:
        return sys.executable
    root = Path(__file__).parents[2]
    variables["PYTHONPATH"] = os.pathsep.join([str(root), str(root / "daemon"), sysconfig.get_paths()["purelib"]])
    system = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    return system if os.path.exists(system) and run(system, "-c", probe).returncode == 0 else None


@pytest.mark.root
@pytest.mark.fuse
@pytest.mark.skipif(not shutil.which("fusermount3") or not shutil.which("setpriv"), reason="fusermount3 and setpriv are needed")
def test_an_ordinary_user_mounts_with_fusermount3(tmp_path):
    # fusermount3 wants a user with a name.
    who = pwd.getpwnam("nobody")
    home = tmp_path / "home"
    for folder in (home, home / "run"):
        folder.mkdir(mode=0o700)
        os.chown(folder, who.pw_uid, who.pw_gid)
    let_others_in(tmp_path)
    variables = {"PATH": os.environ["PATH"], "HOME": str(home), "XDG_RUNTIME_DIR": str(home / "run")}
    me = ["setpriv", "--reuid", str(who.pw_uid), "--regid", str(who.pw_gid), "--clear-groups"]

    def run(*command):
        return subprocess.run([*me, *command], env=variables, capture_output=True, text=True, cwd="/", timeout=60)

    python = usable_python(run, variables)
    if python is None:
        pytest.skip("neither this Python nor the system's may be used by an ordinary user here")
    old_mode = stat.S_IMODE(os.stat("/dev/fuse").st_mode)
    os.chmod("/dev/fuse", 0o666)
    cli = (python, "-m", "kmsfs.cli")
    try:
        done = run(*cli, "mount", f"{home}/c", f"{home}/p")
        assert done.returncode == 0, done.stderr
        script = f"cd {home}/p && echo hello > f && chmod 0400 f && cat f && mv f g && mkdir d && ls -1"
        assert run("sh", "-c", script).stdout.split() == ["hello", "d", "g"]
        assert run(*cli, "umount", f"{home}/p").returncode == 0
        assert run(*cli, "mount", f"{home}/c", f"{home}/p").returncode == 0
        assert run("cat", f"{home}/p/g").stdout == "hello\n"
        assert subprocess.run(["cat", f"{home}/p/g"], capture_output=True).returncode != 0
        # Of a process that leaves no core and that nobody of its user may look into, /proc belongs to root.
        [mount] = [p for p in Path("/proc").glob("[0-9]*") if f"{home}/c".encode() in p.joinpath("cmdline").read_bytes().split(b"\0")]
        assert os.stat(mount / "environ").st_uid == 0
        assert run(*cli, "umount", f"{home}/p").returncode == 0
        # Whatever was made on the way is the user's own, logs and the folders above included.
        made = [path for path in (home / ".local").rglob("*")] + [home / ".local"]
        assert len(made) > 10
        for path in made:
            mode = stat.S_IMODE(path.lstat().st_mode)
            assert path.is_symlink() or not mode & 0o022, (path, oct(mode))
            assert path.is_dir() or path.name == "kmsd.log" or not mode & 0o077, (path, oct(mode))
    finally:
        os.chmod("/dev/fuse", old_mode)
        run(*cli, "daemon", "stop")
        subprocess.run(["umount", "-l", f"{home}/p"], capture_output=True)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["/c", "/m", "-o", "rw"], ["--quiet", "--no-autostart", "mount", "/c", "/m"]),
        (["/c", "/m", "-s", "-n", "-o", "ro,allow_other,nofail,x-systemd.after=a", "-o", "key=alias/x,socket=/s"],
         ["--quiet", "--socket", "/s", "--no-autostart", "mount", "--read-only", "--allow-other", "--key", "alias/x", "/c", "/m"]),
        (["/c", "/m", "-o", "idle=30m,cache=none,chunk=64,uid=1,gid=2"],
         ["--quiet", "--no-autostart", "mount", "--idle", "30m", "--cache", "none", "--chunk", "64", "--uid", "1", "--gid", "2", "/c", "/m"]),
        (["/c", "-t", "kmsfs", "/m"], ["--quiet", "--no-autostart", "mount", "/c", "/m"]),
    ],
)  # fmt: skip
def test_mount_helper_arguments(arguments, wanted):
    from kmsfs.cli.mounthelper import translate

    assert translate(arguments) == wanted


@pytest.mark.parametrize("arguments", [["/c"], ["/c", "/m", "-o", "colour=red"], ["/c", "/m", "-o", "key="], ["/c", "/m", "-o", "ro=1"]])
def test_mount_helper_refuses(arguments):
    from kmsfs.cli.mounthelper import translate
    from kmsfs.errors import UsageError

    with pytest.raises(UsageError):
        translate(arguments)


def test_doctor(kmsfs):
    done = kmsfs("--json", "doctor")
    assert done.returncode == ExitCode.WARNINGS_FOUND
    found = {item["subject"]: item for item in json.loads(done.stdout)}
    assert found["backup"]["level"] == "warning" and "kmsd backup" in found["backup"]["mend"]
    assert found["daemon"]["level"] == "ok"


def test_log_json_is_events_and_nothing_else(daemon, make_mount, tmp_path):
    mounted = make_mount().start()
    for number in range(20):
        (mounted.plain / f"f{number}").write_bytes(b"x" * 5000)
    mounted.stop()
    environment = {**os.environ, "KMSFS_SOCKET": str(daemon.socket)}

    def run(*words):
        command = [sys.executable, "-m", "kmsfs.cli", *map(str, words)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done, [json.loads(line) for line in done.stderr.splitlines()]

    done, events = run("check", mounted.cipher, "--json", "--log-json")
    assert done.returncode == 0 and json.loads(done.stdout)
    progress = [event for event in events if event["type"] == "progress"]
    assert progress[0]["current"] == 0 and not progress[0]["finished"] and progress[-1]["finished"]
    assert 0 < progress[-1]["current"] <= progress[-1]["total"] and progress[-1]["operation"] == "checking"
    assert len({event["id"] for event in progress}) == 1
    done, events = run("--log-json", "key", "describe", "alias/none")
    assert done.returncode == 11 and [event["type"] for event in events] == ["error"]
    assert (events[0]["code"], events[0]["exit_code"]) == ("NotFoundException", 11)


def test_log_json_has_the_recovery_code_of_a_new_daemon(tmp_path):
    (tmp_path / "run").mkdir(mode=0o700)
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state"), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    environment.pop("KMSFS_SOCKET", None)
    command = [sys.executable, "-m", "kmsfs.cli", "--log-json"]
    done = subprocess.run([*command, "key", "list"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert {event["type"] for event in events} == {"message"} and any("recovery code" in event["message"] for event in events)
    subprocess.run([*command, "daemon", "stop"], env=environment, capture_output=True, check=True)


def test_exit_codes_are_those_of_the_page():
    page = (Path(__file__).parents[2] / "docs" / "develop" / "cli-abi.md").read_text()
    listed = {int(number) for number in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    assert listed == {int(code) for code in ExitCode}


def test_what_is_measured_by_itself(kmsfs, tmp_path):
    """A benchmark that no test runs is found broken by whoever needs it."""
    for words, columns in (
        (("growth", "--only", "parameters", "--up-to", "10"), ["kmsd MiB"]),
        (("growth", "--only", "keys", "--up-to", "10"), ["kmsd MiB"]),
        (("growth", "--only", "size", "--up-to", "16"), ["mount MiB"]),
        (("growth", "--only", "writers", "--up-to", "10"), ["fsync p99 us", "mount MiB"]),
        (("door", "--rounds", "1"), ["operation", "kmsfs calls/s", "kmsfs server us"]),
    ):
        done = kmsfs("--json", "bench", *words, "--folder", tmp_path)
        assert done.returncode == 0, done.stderr
        [table] = json.loads(done.stdout).values()
        assert table["columns"][-len(columns) :] == columns and table["rows"]
    assert kmsfs("bench", "growth", "--only", "rubbish").returncode == 2
    assert kmsfs("bench", "door", "--peers", "rubbish").returncode == 2


def test_values_behind_descriptors(kmsfs):
    kmsfs("param", "put", "/fd/one", "--type", "SecureString", "--value-file", "-", input="first")
    kmsfs("param", "put", "/fd/two", "--type", "String", "--value-file", "-", input="zwei€")
    script = "cat /dev/fd/7; cat <&3; cat /dev/fd/3; ls /proc/self/fd | sort -n | tr '\\n' ' '; echo x >&3"
    done = kmsfs("exec", "--fd", "3=/fd/one", "--fd", "7=/fd/two", "--", "sh", "-c", script)
    # Read as often as one likes by its name, not to be written, and nothing else is left open.
    assert done.stdout.startswith("zwei€firstfirst0 1 2 3 ") and "7 " in done.stdout and done.returncode != 0
    assert len(done.stdout.split("firstfirst")[1].split()) <= 6
    one = kmsfs("exec", "--fd", "4=/fd/one", "--pristine", "--var", "TWO=/fd/two", "--", "sh", "-c", 'cat <&4; printf %s "$TWO"')
    assert one.stdout == "firstzwei€"
    for bad in ("2=/fd/one", "256=/fd/one", "x=/fd/one", "3", "3="):
        assert kmsfs("exec", "--fd", bad, "--", "true").returncode == 2
    missing = kmsfs("exec", "--fd", "3=/fd/none", "--", "true")
    assert missing.returncode == ExitCode.NOT_FOUND and "/fd/none" in missing.stderr


def test_parameters_are_found(kmsfs, call):
    for name, kind, tags in (("/find/a/password", "SecureString", {"team": "blue"}), ("/find/b/password", "String", {"team": "red"}), ("/find/c", "String", {})):
        call("PutParameter", Name=name, Value="v", Type=kind, Tags=[{"Key": k, "Value": v} for k, v in tags.items()])
    names = lambda *words: [one["Name"] for one in json.loads(kmsfs("--json", "param", "find", *words).stdout)]  # noqa: E731
    assert names("ind/") == ["/find/a/password", "/find/b/password", "/find/c"]
    assert names("password", "--type", "SecureString") == ["/find/a/password"]
    assert names("/find", "--tag", "team") == ["/find/a/password", "/find/b/password"]
    assert names("--tag", "team=red") == ["/find/b/password"]
    assert names("nowhere-to-be-found") == []
    assert kmsfs("param", "find").returncode == 2
    assert "password" in kmsfs("param", "find", "find/a").stdout
