"""kmsd and its mounts under a real systemd: install, boot, use, kill, reboot, walls, and the way back."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from support.bootedsystemd import BootedSystemd
from support.databases import PostgresServer, new_database
from support.waiting import soon

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.alone, pytest.mark.timeout(900)]
FOLDER = Path("/opt/kmsfs-systemd-test")
BIN = FOLDER / "venv/bin"
PYTHON = "/usr/bin/python3"


@pytest.fixture(scope="module")
def machine():
    if not os.path.exists("/lib/systemd/systemd") or not os.path.exists(PYTHON):
        pytest.fail("this test needs Debian's systemd and python3, which CI installs")
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(mode=0o755)
    root = Path(__file__).parents[2]
    subprocess.run([PYTHON, "-m", "venv", str(FOLDER / "venv")], check=True)
    subprocess.run([str(BIN / "pip"), "install", "-q", f"{root}[postgres]"], check=True, capture_output=True)
    made = BootedSystemd(FOLDER)
    yield made.boot()
    made.shutdown()
    shutil.rmtree(FOLDER, ignore_errors=True)


def kmsfs(machine, *words, check=True, **options):
    return machine.run(str(BIN / "kmsfs"), *words, check=check, **options)


def test_the_whole_life_of_the_service(machine):
    # Installed: one command, codes shown once, the socket waits.
    made = json.loads(kmsfs(machine, "--json", "install-service").stdout)
    assert len(made["recovery_code"]) > 20
    machine.recovery_code = made["recovery_code"]
    assert machine.systemctl("is-active", "kmsd.socket").stdout.strip() == "active"
    assert machine.systemctl("is-active", "kmsd.service", check=False).stdout.strip() == "inactive"
    assert kmsfs(machine, "--json", "install-service").stdout.strip() == "{}"
    assert "recovery" in (machine.kept / "man/man8/kmsd.8").read_text()

    # The first call starts the daemon, as its own user.
    kmsfs(machine, "param", "put", "/app/db", "--type", "SecureString", "--value-file", "-", input="s3cret\n")
    assert machine.systemctl("is-active", "kmsd.service").stdout.strip() == "active"
    status = json.loads(kmsfs(machine, "--json", "--no-autostart", "daemon", "status").stdout)
    assert status["StateDirectory"] == "/var/lib/kmsd" and status["Principal"].endswith("uid/0")

    # A line in fstab is a mount; files survive its stop.
    machine.run("mkdir", "-p", "/srv/data.encrypted", "/srv/data")
    with (machine.kept / "etc/fstab").open("a") as table:
        options = "allow_other,nofail,x-systemd.requires=kmsd.socket,x-systemd.after=kmsd.socket"
        table.write(f"/srv/data.encrypted /srv/data kmsfs {options} 0 0\n")
    machine.systemctl("daemon-reload")
    machine.systemctl("start", "srv-data.mount")
    machine.run("sh", "-c", "echo kept > /srv/data/file; sync /srv/data/file")
    assert machine.run("findmnt", "-no", "FSTYPE", "/srv/data").stdout.strip() == "fuse.kmsfs"
    stored = b"".join(p.read_bytes() for p in (machine.kept / "srv/data.encrypted").iterdir() if p.is_file() and not p.is_symlink())
    assert b"kept" not in stored
    machine.systemctl("stop", "srv-data.mount")
    assert machine.run("ls", "/srv/data").stdout == ""
    machine.systemctl("start", "srv-data.mount")
    assert machine.run("cat", "/srv/data/file").stdout == "kept\n"


def test_credentials_of_units(machine):
    assert machine.systemctl("is-active", "kmsd-credentials.socket").stdout.strip() == "active"
    kmsfs(machine, "param", "put", "/systemd/app_40.service/db", "--type", "SecureString", "--value-file", "-", input="of a unit")
    (machine.kept / "etc/systemd/system/app@.service").write_text(
        "[Service]\nType=oneshot\nDynamicUser=yes\nLoadCredential=%i:/run/kmsd/credentials.sock\n"
        "StandardOutput=append:/srv/app.out\nExecStart=/bin/sh -c 'cat $CREDENTIALS_DIRECTORY/%i'\n"
    )
    machine.systemctl("daemon-reload")
    machine.systemctl("stop", "kmsd.service")  # asking for a credential starts it
    machine.systemctl("start", "app@db.service")
    assert (machine.kept / "srv/app.out").read_text() == "of a unit"
    # One that is not there fails the unit, and is no empty credential.
    assert machine.systemctl("start", "app@absent.service", check=False).returncode
    status = machine.systemctl("show", "-p", "ExecMainStatus", "app@absent.service").stdout
    assert status.strip() == "ExecMainStatus=243" and (machine.kept / "srv/app.out").read_text() == "of a unit"
    question = "select principal from records where operation = 'Decrypt' and principal like '%unit%' order by seq desc limit 1"
    assert "unit/app@db.service" in kmsfs(machine, "audit", "query", question).stdout


def test_backups_by_timer(machine):
    assert machine.systemctl("is-active", "kmsd-backup.timer").stdout.strip() == "active"
    machine.systemctl("start", "kmsd-backup.service")
    [archive] = (machine.kept / "lib/kmsd-backups").iterdir()
    assert archive.name.endswith(".kmsbackup") and archive.stat().st_mode & 0o777 == 0o600
    # Root restores it elsewhere, and the codes are not needed where the state is.
    state = ["--state", "/var/lib/kmsd"]
    place = f"/var/lib/kmsd-backups/{archive.name}"
    document = json.loads(machine.run(str(BIN / "kmsd"), "verify-backup", place, *state, "--json").stdout)
    assert document["parameters"] == 2 and document["volumes"] == 1
    score = machine.run("systemd-analyze", "security", "--offline=true", "/etc/systemd/system/kmsd-backup.service", check=False).stdout
    assert float(score.strip().splitlines()[-1].split(":")[1].split()[0]) <= 1.0


def test_the_recovery_is_drilled_by_timer(machine):
    """Nothing happens until the code is sealed for it; then the drill shows what it opens, and a wrong code fails the unit."""
    assert machine.systemctl("is-active", "kmsd-recovery-drill.timer").stdout.strip() == "active"
    show = lambda field: machine.systemctl("show", "-p", field, "kmsd-recovery-drill.service").stdout.strip()  # noqa: E731
    machine.systemctl("start", "kmsd-recovery-drill.service")
    assert show("ConditionResult") == "ConditionResult=no"
    seal = ["systemd-creds", "encrypt", "--with-key=host", "--name=recovery-code", "-", "/etc/credstore.encrypted/kmsfs-recovery-code"]
    machine.run("mkdir", "-p", "-m", "700", "/etc/credstore.encrypted")
    machine.run(*seal, input=machine.recovery_code + "\n")
    machine.systemctl("start", "kmsd-recovery-drill.service")
    assert show("Result") == "Result=success"
    machine.run(*seal, input="KMSFS1-" + "-".join(["AAAAAAA"] * 8) + "\n")
    assert machine.systemctl("start", "kmsd-recovery-drill.service", check=False).returncode and show("Result") == "Result=exit-code"
    machine.run("rm", "/etc/credstore.encrypted/kmsfs-recovery-code")
    machine.systemctl("reset-failed", "kmsd-recovery-drill.service")
    score = machine.run("systemd-analyze", "security", "--offline=true", "/etc/systemd/system/kmsd-recovery-drill.service", check=False).stdout
    assert float(score.strip().splitlines()[-1].split(":")[1].split()[0]) <= 1.0


def test_a_scrub_reads_a_mount_from_the_disk(machine):
    assert machine.run("cat", "/srv/data/file").stdout == "kept\n"
    machine.systemctl("start", "kmsfs-scrub@srv-data.service")
    show = lambda field: machine.systemctl("show", "-p", field, "kmsfs-scrub@srv-data.service").stdout.strip()  # noqa: E731
    assert show("Result") == "Result=success"
    machine.systemctl("enable", "--now", "kmsfs-scrub@srv-data.timer")
    assert machine.systemctl("is-active", "kmsfs-scrub@srv-data.timer").stdout.strip() == "active"
    machine.systemctl("disable", "--now", "kmsfs-scrub@srv-data.timer")


def test_rotation_by_timer(machine):
    assert machine.systemctl("is-active", "kmsfs-rotate.timer").stdout.strip() == "active"
    request = json.dumps({"Name": "rotated", "SecretString": "first"})
    kmsfs(machine, "api", "CreateSecret", "-", input=request)
    # A rotator of the operator's, in a transient unit: it sees what it may not do.
    folder = machine.kept / "etc/kmsfs/rotators"
    folder.mkdir(parents=True)
    program = folder / "mine"
    looks = 'touch /etc/x /var/lib/x /root/x 2>/dev/null && exit 9; [ "$(grep CapEff /proc/self/status | cut -f2)" = 0000000000000000 ] || exit 8'
    program.write_text(f"#!/bin/sh\n{looks}\nexec {BIN}/kmsfs --no-autostart rotator random\n")
    program.chmod(0o755)
    kmsfs(machine, "secret", "rotate", "rotated", "--rotator", "mine")
    kmsfs(machine, "secret", "rotate", "rotated", "--every", "1d", "--later")
    value = lambda: json.loads(kmsfs(machine, "--json", "secret", "get", "rotated").stdout)["SecretString"]  # noqa: E731
    first = value()
    assert len(first) == 32
    # Begun, and left to the timer.
    kmsfs(machine, "api", "RotateSecret", "-", input=json.dumps({"SecretId": "rotated"}))
    machine.systemctl("start", "kmsfs-rotate.service")
    assert len(value()) == 32 and value() != first


def test_alarms_as_a_service(machine):
    folder = machine.kept / "etc/kmsd"
    folder.mkdir(parents=True, exist_ok=True)
    out = "/var/lib/kmsd-alarm"
    (folder / "alarms.toml").write_text(f'[[alarm]]\nname = "looked"\non = "calls"\noperation = "GetStatus"\nrun = ["sh", "-c", "cat > {out}"]\n')
    drop_in = machine.kept / "etc/systemd/system/kmsfs-alarms.service.d"
    drop_in.mkdir(parents=True)
    (drop_in / "reach.conf").write_text("[Service]\nReadWritePaths=/var/lib\n")
    machine.systemctl("daemon-reload")
    machine.systemctl("start", "kmsfs-alarms.service")
    deadline = time.monotonic() + 20
    found = ""
    while not found and time.monotonic() < deadline:
        kmsfs(machine, "daemon", "status")
        time.sleep(0.3)
        found = machine.run("cat", out, check=False).stdout
    told = machine.run("systemctl", "--no-pager", "status", "kmsfs-alarms.service", check=False).stdout
    assert found, told
    assert json.loads(found)["alarm"] == "looked"
    machine.systemctl("stop", "kmsfs-alarms.service")


def test_sealed_and_unsealed_it_stays_the_same_service(machine):
    before = machine.main_pid("kmsd.service")
    machine.run(str(BIN / "kmsd"), "seal", "--yes")
    refused = machine.run(str(BIN / "kmsfs"), "--no-autostart", "param", "get", "/app/db", check=False)
    assert refused.returncode == 32 and "sealed" in refused.stderr
    assert "sealed: it waits" in machine.systemctl("show", "-P", "StatusText", "kmsd.service").stdout
    assert machine.run(str(BIN / "kmsd"), "unseal").stdout == "Unsealed.\n"
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and machine.run(str(BIN / "kmsfs"), "--no-autostart", "daemon", "status", check=False).returncode:
        time.sleep(0.1)
    assert kmsfs(machine, "param", "get", "/app/db", "--with-decryption", "--raw").stdout == "s3cret"
    assert machine.main_pid("kmsd.service") == before
    assert machine.run("cat", "/srv/data/file").stdout == "kept\n"


def test_a_killed_daemon_comes_back_under_a_mount(machine):
    before = machine.main_pid("kmsd.service")
    machine.systemctl("kill", "-s", "KILL", "kmsd.service")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and machine.main_pid("kmsd.service") in (0, before):
        time.sleep(0.1)
    assert kmsfs(machine, "param", "get", "/app/db", "--with-decryption", "--raw").stdout == "s3cret"
    assert machine.run("cat", "/srv/data/file").stdout == "kept\n"
    machine.run("sh", "-c", "echo more > /srv/data/second")
    machine.systemctl("restart", "kmsd.service")
    assert kmsfs(machine, "param", "get", "/app/db", "--with-decryption", "--raw").stdout == "s3cret"
    assert machine.run("cat", "/srv/data/second").stdout == "more\n"


def test_an_upgrade_under_mounts(machine):
    """Another image of each mount's process serves on: who has files open, or works in a directory, does not notice."""
    machine.run("mkdir", "-p", "/srv/other.encrypted", "/srv/other")
    machine.systemctl("start", "kmsfs@srv-other.service")
    soon(True, lambda: machine.run("findmnt", "/srv/other", check=False).returncode == 0)
    before = machine.main_pid("kmsfs@srv-other.service")
    script = (
        "exec 3>>/srv/other/log && echo one >&3 && cd /srv/data && systemctl reload kmsfs@srv-other.service && "
        f"echo two >&3 && {BIN}/kmsfs --json volume restart --all && cat second /srv/other/log && pwd"
    )
    said = machine.run("sh", "-c", script).stdout
    assert said.endswith("more\none\ntwo\n/srv/data\n")
    told = json.loads(said[: said.rindex("}") + 1])["restarted"]
    assert sorted((entry["mountpoint"], entry["open_files"]) for entry in told) == [("/srv/data", 0), ("/srv/other", 1)]
    assert machine.main_pid("kmsfs@srv-other.service") == before
    machine.systemctl("stop", "kmsfs@srv-other.service")
    assert machine.run("ls", "/srv/other").stdout == ""
    assert machine.systemctl("is-failed", "kmsfs@srv-other.service", check=False).stdout.strip() == "inactive"


def test_the_walls_around_the_daemon(machine):
    inside = machine.main_pid("kmsd.service")
    pid = machine.outside_pid(inside)
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"
    assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {0}
    assert status["Uid"].split()[0] not in ("0", str(os.getuid()))
    assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink(f"/proc/{machine.pid}/ns/net")
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert next(line for line in limits.splitlines() if "core file" in line).split()[4] == "0"
    uid = status["Uid"].split()[0]
    as_daemon = ["nsenter", "-t", str(pid), "-m", "setpriv", f"--reuid={uid}", "--clear-groups", "touch"]
    for folder in ("/", "/etc", "/usr", "/srv", "/root", "/home", "/var", "/var/lib", "/run", "/opt"):
        done = subprocess.run([*as_daemon, f"{folder}/x"], capture_output=True, text=True)
        assert done.returncode and any(text in done.stderr for text in ("Read-only", "No such", "Permission")), (folder, done.stderr)
    done = subprocess.run([*as_daemon, "/var/lib/kmsd/x"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    score = machine.run("systemd-analyze", "security", "--offline=true", "/etc/systemd/system/kmsd.service", check=False).stdout
    assert float(score.strip().splitlines()[-1].split(":")[1].split()[0]) <= 1.0


def test_members_of_the_group_and_nobody_else(machine):
    machine.run("useradd", "-M", "-G", "kmsfs", "inside")
    machine.run("useradd", "-M", "outside")
    call = [str(BIN / "kmsfs"), "--no-autostart", "--socket", "/run/kmsd/kmsd.sock", "param", "get", "/app/db"]
    assert machine.run("runuser", "-u", "outside", "--", *call, check=False).returncode == 30
    denied = machine.run("runuser", "-u", "inside", "--", *call, check=False)
    assert denied.returncode == 11 and "not found" in denied.stderr
    assert machine.run("runuser", "-u", "inside", "--", "cat", "/srv/data/file").stdout == "kept\n"


def test_after_a_reboot_everything_is_there(machine):
    machine.shutdown()
    machine.boot()
    assert machine.systemctl("is-active", "srv-data.mount", "kmsd.socket").stdout.split() == ["active", "active"]
    assert machine.run("cat", "/srv/data/file", "/srv/data/second").stdout == "kept\nmore\n"
    assert kmsfs(machine, "param", "get", "/app/db", "--with-decryption", "--raw").stdout == "s3cret"
    log = (machine.kept / "console.log").read_text(errors="replace")
    assert "Failed to unmount /srv/data" not in log


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    server = PostgresServer(tmp_path_factory.mktemp("pg") / "server").make().start("fsync=off")
    yield server
    server.stop()


def test_the_state_moves_into_a_database_that_the_walls_let_through(machine, database):
    kmsfs(machine, "install-service", "--database-network", "127.0.0.1")
    machine.systemctl("stop", "kmsd.socket", "kmsd-credentials.socket", "kmsd.service")
    url = new_database(database.url)
    machine.run("runuser", "-u", "kmsd", "--", str(BIN / "kmsd"), "share-state", url, "--state", "/var/lib/kmsd", "--yes")
    assert not (machine.kept / "lib/kmsd/state.db").exists()
    machine.systemctl("start", "kmsd.socket")
    assert kmsfs(machine, "param", "get", "/app/db", "--with-decryption", "--raw").stdout == "s3cret"
    kmsfs(machine, "param", "put", "/app/shared", "--type", "SecureString", "--value-file", "-", input="in the database")
    # What needs the socket went with it.
    machine.systemctl("start", "srv-data.mount")
    assert machine.run("cat", "/srv/data/file", "/srv/data/second").stdout == "kept\nmore\n"
    before = set((machine.kept / "lib/kmsd-backups").iterdir())
    machine.systemctl("start", "kmsd-backup.service")
    assert len(set((machine.kept / "lib/kmsd-backups").iterdir()) - before) == 1
    # The service stays without a way to any other network.
    assert "10.0.0.0" not in machine.systemctl("show", "-p", "IPAddressAllow", "kmsd.service").stdout
    assert machine.systemctl("show", "-p", "IPAddressDeny", "kmsd.service").stdout.strip() != "IPAddressDeny="


def test_awss_clients_when_asked_and_the_way_back(machine):
    kmsfs(machine, "install-service", "--aws-endpoint", "127.0.0.1:4599")
    machine.systemctl("restart", "kmsd.service")
    assert json.loads(kmsfs(machine, "--json", "daemon", "status").stdout)["AwsEndpoint"] == "http://127.0.0.1:4599"
    assert "AWS_ENDPOINT_URL_KMS=http://127.0.0.1:4599" in kmsfs(machine, "aws", "env").stdout
    machine.systemctl("stop", "srv-data.mount")
    kmsfs(machine, "install-service", "--undo")
    assert machine.systemctl("is-active", "kmsd.socket", "kmsd.service", check=False).stdout.split() == ["inactive", "inactive"]
    assert not (machine.kept / "etc/systemd/system/kmsd.service").exists() and not (machine.kept / "sbin/mount.kmsfs").is_symlink()
    assert not (machine.kept / "man/man1/kmsfs.1").exists()
    assert (machine.kept / "lib/kmsd/keyring.kms").exists()


def test_a_root_key_that_only_this_machines_systemd_unseals(machine):
    shutil.rmtree(machine.kept / "lib/kmsd")
    shutil.rmtree(machine.kept / "lib/kmsd-anchor")
    made = json.loads(kmsfs(machine, "--json", "install-service", "--seal-root-key").stdout)
    assert len(made["recovery_code"]) > 20
    assert not (machine.kept / "lib/kmsd/root.key").exists()
    sealed = (machine.kept / "etc/credstore.encrypted/kmsfs-root").read_bytes()
    kmsfs(machine, "param", "put", "/app/db", "--type", "SecureString", "--value-file", "-", input="sealed")
    status = json.loads(kmsfs(machine, "--json", "--no-autostart", "daemon", "status").stdout)
    assert status["RootKeySource"] == "credential"
    machine.systemctl("start", "kmsd-backup.service")
    machine.shutdown()
    machine.boot()
    assert kmsfs(machine, "param", "get", "/app/db", "--with-decryption", "--raw").stdout == "sealed"
    done = kmsfs(machine, "install-service", "--seal-root-key", check=False)
    assert done.returncode and "holds a realm already" in done.stderr
    # Without the way to unseal it, on another machine or after a theft of the disk's folder, nothing opens.
    (machine.kept / "lib/systemd/credential.secret").unlink()
    machine.systemctl("restart", "kmsd.service", check=False)
    assert kmsfs(machine, "param", "get", "/app/db", "--with-decryption", "--raw", check=False).returncode
    kmsfs(machine, "install-service", "--undo")
    assert (machine.kept / "etc/credstore.encrypted/kmsfs-root").read_bytes() == sealed
    assert not list((machine.kept / "etc/systemd/system").glob("kmsd*.service.d/*"))


def test_a_users_own_service(machine):
    machine.run("useradd", "-m", "-d", "/srv/alice", "-s", "/bin/sh", "alice")
    uid = machine.run("id", "-u", "alice").stdout.strip()
    device = os.stat("/dev/fuse").st_mode & 0o777
    os.chmod("/dev/fuse", 0o666)
    home = {"HOME": "/srv/alice", "XDG_RUNTIME_DIR": f"/run/user/{uid}"}
    environment = [f"{name}={value}" for name, value in home.items()]

    def manage():
        """What user@.service is, without the login manager that this machine does not run."""
        machine.run(
            "systemd-run", "--unit=alice-manager", "--uid=alice", "--property=Delegate=yes", "--property=Type=notify",
            f"--property=RuntimeDirectory=user/{uid}", "--property=RuntimeDirectoryMode=0700", *(f"--setenv={text}" for text in environment),
            "/lib/systemd/systemd", "--user",
        )  # fmt: skip

    def alice(*words, **options):
        return machine.run("setpriv", "--reuid=alice", "--regid=alice", "--init-groups", "env", *environment, *words, **options)

    try:
        manage()
        made = json.loads(alice(str(BIN / "kmsfs"), "--json", "install-service", "--user").stdout)
        assert len(made["recovery_code"]) > 20
        assert json.loads(alice(str(BIN / "kmsfs"), "--json", "install-service", "--user").stdout) == {}
        for unit in ("kmsd.socket", "kmsd.service", "kmsfs@.service"):
            assert alice("systemd-analyze", "--user", "verify", f"/srv/alice/.config/systemd/user/{unit}").stderr == ""
        state = lambda unit: alice("systemctl", "--user", "is-active", unit, check=False).stdout.strip()  # noqa: E731
        assert (state("kmsd.socket"), state("kmsd.service")) == ("active", "inactive")
        # kmsfs finds it without being told, and starts none of its own; nobody else may use it.
        put = alice(str(BIN / "kmsfs"), "param", "put", "/mine", "--type", "SecureString", "--value-file", "-", input="m")
        assert "started" not in put.stderr and state("kmsd.service") == "active"
        assert alice(str(BIN / "kmsfs"), "param", "get", "/mine", "--with-decryption", "--raw").stdout.rstrip("\n") == "m"
        assert machine.run("stat", "-c", "%a %U", f"/run/user/{uid}/kmsfs/kmsd.sock").stdout.strip() == "600 alice"
        # A mount below the home; its daemon is killed and comes back, and its file survives a stop.
        alice("mkdir", "/srv/alice/Documents.encrypted", "/srv/alice/Documents")
        alice("systemctl", "--user", "enable", "--now", "kmsfs@Documents")
        soon("fuse.kmsfs", lambda: machine.run("findmnt", "-no", "FSTYPE", "/srv/alice/Documents", check=False).stdout.strip())
        alice("sh", "-c", "echo kept > /srv/alice/Documents/file; sync /srv/alice/Documents/file")
        alice("systemctl", "--user", "kill", "--signal=KILL", "kmsd.service")
        soon("kept\n", lambda: alice("cat", "/srv/alice/Documents/file", check=False).stdout, 20)
        soon("active", lambda: state("kmsd.service"))
        alice("systemctl", "--user", "reload", "kmsfs@Documents")
        assert alice("cat", "/srv/alice/Documents/file").stdout == "kept\n"
        alice("systemctl", "--user", "stop", "kmsfs@Documents")
        assert alice("ls", "/srv/alice/Documents").stdout == ""
        alice("systemctl", "--user", "start", "kmsfs@Documents")
        soon("kept\n", lambda: alice("cat", "/srv/alice/Documents/file", check=False).stdout)
        # Logged out: everything ends. Logged in again: the socket and the mount are there.
        machine.systemctl("stop", "alice-manager.service")
        assert machine.run("findmnt", "/srv/alice/Documents", check=False).returncode
        manage()
        soon("kept\n", lambda: alice("cat", "/srv/alice/Documents/file", check=False).stdout, 20)
        # The units go; keys and state stay. Who began a daemon himself is told so, and nothing is put in place.
        alice("systemctl", "--user", "disable", "--now", "kmsfs@Documents")
        alice(str(BIN / "kmsfs"), "install-service", "--user", "--undo")
        assert machine.run("ls", "/srv/alice/.config/systemd/user").stdout.split() in ([], ["default.target.wants"], ["default.target.wants", "sockets.target.wants"])
        alice(str(BIN / "kmsfs"), "daemon", "start")
        refused = alice(str(BIN / "kmsfs"), "--json", "install-service", "--user", check=False)
        assert refused.returncode == 2 and "runs already" in refused.stderr
        assert "kmsd.socket" not in machine.run("ls", "/srv/alice/.config/systemd/user").stdout
        # What a killed one leaves behind is no daemon.
        machine.run("pkill", "-KILL", "-u", "alice", "-f", "kmsd serve")
        assert machine.run("test", "-S", f"/run/user/{uid}/kmsfs/kmsd.sock", check=False).returncode == 0
        alice(str(BIN / "kmsfs"), "install-service", "--user")
        assert alice(str(BIN / "kmsfs"), "param", "get", "/mine", "--with-decryption", "--raw").stdout.rstrip("\n") == "m"
        refused = alice(str(BIN / "kmsfs"), "--json", "install-service", "--user", "--aws-endpoint", "127.0.0.1:1", check=False)
        assert refused.returncode == 2
        assert kmsfs(machine, "install-service", "--undo", check=False).returncode == 0
    finally:
        os.chmod("/dev/fuse", device)
        machine.systemctl("stop", "alice-manager.service", check=False)
