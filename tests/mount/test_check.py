"""kmsfs check: whole volumes pass, and every kind of damage is named with its path."""

import json
import os
import subprocess
import sys
import time

import pytest

from kmsfs.errors import ExitCode
from kmsfs.mount.durability import TICK_SECONDS

pytestmark = [pytest.mark.fuse, pytest.mark.root]


@pytest.fixture
def volume(make_mount):
    mount = make_mount().start()
    plain = mount.plain
    (plain / "d" / "deep").mkdir(parents=True)
    (plain / "small").write_text("small")
    (plain / "empty").write_bytes(b"")
    (plain / "d" / "big").write_bytes(os.urandom(3_000_000))
    (plain / "d" / "deep" / ("long" * 55)).write_text("x")
    (plain / "link").symlink_to("small")
    os.link(plain / "small", plain / "d" / "second")
    with open(plain / "sparse", "wb") as stream:
        stream.truncate(50_000_000)
        stream.seek(40_000_000)
        stream.write(b"data")
    names = {}
    for parent, _, files in os.walk(plain):
        for name in files:
            names[os.stat(os.path.join(parent, name), follow_symlinks=False).st_ino] = os.path.relpath(os.path.join(parent, name), plain)
    mount.stop()
    mount.stored = {}
    for parent, _, files in os.walk(mount.cipher):
        for name in files:
            path = os.path.join(parent, name)
            plain_name = names.get(os.stat(path, follow_symlinks=False).st_ino)
            if plain_name:
                mount.stored[plain_name] = path
    return mount


def check(mount, *options):
    environment = {**os.environ, "KMSFS_SOCKET": mount.socket}
    command = [sys.executable, "-m", "kmsfs.cli", "--json", "check", *options, str(mount.cipher)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_a_whole_volume_passes(volume):
    code, report = check(volume)
    assert code == 0 and report["findings"] == [] and not report["damaged"]
    # The hard link is found twice.
    assert (report["files"], report["directories"], report["links"]) == (6, 3, 1)
    assert report["plain_bytes"] == 3_000_000 + 50_000_000 + 2 * len("small") + 1 and report["chunks"] > 180


def test_it_writes_nothing(volume):
    def state():
        return {path: (os.stat(path).st_mtime_ns, open(path, "rb").read()) for path in volume.stored.values() if not os.path.islink(path)}

    before = state()
    check(volume)
    assert state() == before


def test_a_mounted_volume_is_refused(volume):
    volume.start()
    environment = {**os.environ, "KMSFS_SOCKET": volume.socket}
    command = [sys.executable, "-m", "kmsfs.cli", "check", str(volume.cipher)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == ExitCode.CONFLICT and "mounted" in done.stderr


def damage(path, offset):
    with open(path, "r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)
        stream.seek(offset)
        stream.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("harm", ["header", "chunk", "truncated", "emptied", "removed id", "foreign", "moved", "link", "swapped"])
def test_damage_is_named(volume, harm):
    stored = volume.stored
    expected = "/d/big"
    if harm == "header":
        damage(stored["d/big"], 700)
    elif harm == "chunk":
        damage(stored["d/big"], os.path.getsize(stored["d/big"]) // 2)
    elif harm == "truncated":
        os.truncate(stored["d/big"], 100_000)
    elif harm == "emptied":
        os.truncate(stored["sparse"], 0)
        expected = "/sparse"
    elif harm == "removed id":
        os.unlink(os.path.join(os.path.dirname(stored["d/big"]), ".kd"))
        expected = "/d"
    elif harm == "foreign":
        (volume.cipher / "foreign").write_text("what")
        expected = "/?"
    elif harm == "moved":
        os.rename(stored["d/big"], os.path.join(os.path.dirname(stored["sparse"]), os.path.basename(stored["d/big"])))
        expected = "/?"
    elif harm == "link":
        target = os.readlink(stored["link"])
        os.unlink(stored["link"])
        os.symlink(target[:-2] + ("AA" if target[-2:] != "AA" else "BB"), stored["link"])
        expected = "/link"
    elif harm == "swapped":
        one, other = stored["empty"], stored["sparse"]
        os.rename(one, one + "x")
        os.rename(other, one)
        os.rename(one + "x", other)
        expected = "/empty"
    code, report = check(volume)
    assert code == ExitCode.DAMAGE_FOUND and report["damaged"]
    assert expected in {finding["path"] for finding in report["findings"]}, report["findings"]
    # What is there and cannot be recognized may be what seems to be missing.
    assert not gone(report)


def test_a_killed_mount_leaves_nothing_that_check_calls_damage(make_mount):
    mount = make_mount().start()
    for number in range(40):
        (mount.plain / f"f{number}").write_bytes(os.urandom(number * 5000))
    mount.kill()
    code, report = check(mount)
    assert code == 0, report["findings"]
    assert all(finding["kind"] == "unclean" for finding in report["findings"])


def test_a_refused_key_is_no_pass(volume, daemon):
    session = daemon.session()
    key = json.loads(subprocess.run(
        [sys.executable, "-m", "kmsfs.cli", "--json", "inspect", str(volume.cipher)], capture_output=True, text=True, env={**os.environ, "KMSFS_SOCKET": volume.socket},
    ).stdout)["kms_key"]
    session.call("DisableKey", {"KeyId": key})
    try:
        done = subprocess.run([sys.executable, "-m", "kmsfs.cli", "check", str(volume.cipher)], capture_output=True, text=True, env={**os.environ, "KMSFS_SOCKET": volume.socket})
        assert done.returncode == ExitCode.CONFLICT and "disabled" in done.stderr
    finally:
        session.call("EnableKey", {"KeyId": key})


def test_a_reader_after_a_crash_takes_what_verifies(make_mount, daemon):
    """The session that crashed is nobody's: its newest header is verified, also by who only reads."""
    from conftest import MountProcess
    from kmsfs.formats.fileheader import parse_clear

    mount = make_mount().start()
    (mount.plain / "f").write_text("first")
    mount.again()
    with open(mount.plain / "f", "r+") as stream:
        stream.write("FIRST")
        stream.flush()
        os.fsync(stream.fileno())
    [path] = [p for p in mount.cipher.iterdir() if p.name[0] == "n"]

    def generations():
        raw = path.read_bytes()
        return [parse_clear(raw[at : at + 4096]).generation if any(raw[at : at + 4096]) else 0 for at in (0, 4096)]

    before = generations()
    os.truncate(mount.plain / "f", 3)
    deadline = time.monotonic() + 10
    while generations() == before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    mount.kill()
    newest = generations().index(max(generations()))
    damage(path, newest * 4096 + 3000)
    reader = MountProcess(mount.socket, mount.cipher, mount.plain, "--read-only").start()
    try:
        assert (mount.plain / "f").read_text() == "FIRST"
    finally:
        reader.stop()
    code, report = check(mount)
    assert code == 0 and {finding["kind"] for finding in report["findings"]} == {"unclean"}


# --- files that are gone ------------------------------------------------------------------------------------------


def mended(mount, *options):
    environment = {**os.environ, "KMSFS_SOCKET": mount.socket}
    done = subprocess.run([sys.executable, "-m", "kmsfs.cli", "--json", "check", "--repair", *options, str(mount.cipher)], env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, json.loads(done.stdout)


def gone(report):
    return sorted(finding["path"] for finding in report["findings"] if "is gone" in finding["problem"])


def test_a_file_that_somebody_removed_behind_the_mount_is_missed(volume):
    os.unlink(volume.stored["sparse"])
    code, report = check(volume)
    assert code == ExitCode.DAMAGE_FOUND and [finding["remedy"] for finding in report["findings"]] == ["forget"] and len(gone(report)) == 1
    code, report = mended(volume)
    assert code == 0 and report["findings"] == [] and [each["done"] for each in report["repaired"]] == ["its record is forgotten"]
    assert check(volume)[0] == 0
    # Nothing else was forgotten with it.
    volume.again()
    assert (volume.plain / "small").read_text() == "small" and (volume.plain / "d" / "second").read_text() == "small"


def test_a_missing_file_is_named_where_its_listing_is_remembered(make_mount):
    mount = make_mount().start()
    (mount.plain / "d").mkdir()
    for number in range(6):
        (mount.plain / "d" / f"f{number}").write_text("x")
    time.sleep(0.1)
    mount.again()
    number = (mount.plain / "d" / "f3").stat().st_ino
    os.listdir(mount.plain / "d")
    mount.stop()
    [stored] = [path for path in mount.cipher.rglob("*") if path.lstat().st_ino == number]
    stored.unlink()
    code, report = check(mount)
    assert code == ExitCode.DAMAGE_FOUND and gone(report) == ["/d/f3"]


def test_an_older_directory_put_back_lacks_what_was_made_since(volume, tmp_path):
    backup = tmp_path / "old"
    folder = os.path.dirname(volume.stored["d/big"])
    subprocess.run(["cp", "-a", folder, backup], check=True)
    volume.start()
    for number in range(3):
        (volume.plain / "d" / f"later{number}").write_text("x")
    volume.stop()
    assert check(volume)[0] == 0
    subprocess.run(["rm", "-r", folder], check=True)
    subprocess.run(["cp", "-a", backup, folder], check=True)
    code, report = check(volume)
    assert code == ExitCode.DAMAGE_FOUND and len(gone(report)) == 3, report["findings"]


def test_what_was_removed_rightly_is_not_missed(volume):
    volume.start()
    plain = volume.plain
    os.unlink(plain / "small")
    os.unlink(plain / "d" / "second")
    os.rename(plain / "d" / "big", plain / "sparse")
    subprocess.run(["rm", "-r", plain / "d"], check=True)
    held = open(plain / "held", "wb")
    held.write(b"x" * 5000)
    held.flush()
    os.unlink(plain / "held")
    os.sync()
    held.close()
    (plain / "found").write_bytes(b"x" * 5000)
    os.sync()
    found = os.open(plain / "found", os.O_PATH)
    os.unlink(plain / "found")
    subprocess.run(["umount", "-l", plain], check=True)
    os.close(found)
    volume.again()
    # Never looked up in this session.
    os.unlink(plain / "empty")
    volume.stop()
    assert check(volume) == (0, check(volume)[1]) and check(volume)[1]["findings"] == []


def test_what_a_crash_or_a_damaged_file_leaves_is_no_alarm(volume):
    volume.start()
    for number in range(20):
        (volume.plain / f"f{number}").write_text("x")
    time.sleep(TICK_SECONDS + 1)
    for number in range(20):
        os.unlink(volume.plain / f"f{number}")
    volume.kill()
    code, report = check(volume)
    assert code == 0 and {finding["kind"] for finding in report["findings"]} <= {"unclean"}
    volume.start()
    volume.stop()
    code, report = check(volume)
    assert code == 0 and {finding["kind"] for finding in report["findings"]} == {"leftover"} and len(gone(report)) == 20
    assert mended(volume)[1]["findings"] == []
    damage(volume.stored["sparse"], 700)
    damage(volume.stored["sparse"], 4096 + 700)
    volume.start()
    os.unlink(volume.plain / "sparse")
    volume.stop()
    code, report = check(volume)
    assert code == 0 and [finding["kind"] for finding in report["findings"]] == ["leftover"], report
    code, report = mended(volume)
    assert code == 0 and report["findings"] == []
    # The doubt is over: what goes now is missed again. So it is where a crash had left nothing that is to be forgotten.
    for name in ("empty", "d/big"):
        os.unlink(volume.stored[name])
        assert check(volume)[0] == ExitCode.DAMAGE_FOUND
        assert mended(volume)[1]["findings"] == []
        volume.start()
        volume.kill()
        volume.start()
        volume.stop()
        assert mended(volume)[1]["findings"] == []


def test_what_was_closed_long_after_its_removal_is_forgotten_soon(volume):
    """Its record goes with the next barrier, though nothing else is to be stored then."""
    volume.start()
    with open(volume.plain / "held", "wb") as held:
        held.write(b"x" * 5000)
        held.flush()
        os.fsync(held.fileno())
        os.unlink(volume.plain / "held")
        time.sleep(TICK_SECONDS + 1)
    time.sleep(TICK_SECONDS + 1)
    volume.kill()
    volume.start()
    volume.stop()
    assert check(volume)[1]["findings"] == []


@pytest.mark.parametrize("harm", ["header", "content", "hard link"])
def test_what_was_set_aside_is_not_missed(volume, harm):
    victim = volume.stored["d/big"] if harm != "hard link" else volume.stored.get("small") or volume.stored["d/second"]
    if harm == "header":
        damage(victim, 700)
        damage(victim, 4096 + 700)
    elif harm == "content":
        damage(victim, os.path.getsize(victim) // 2)
    else:
        damage(victim, 3000)
    code, report = mended(volume, "--quarantine")
    assert code == 0 and report["repaired"] and {finding["kind"] for finding in report["findings"]} <= {"leftover"}, report
    volume.start()
    assert (volume.plain / "d").is_dir()
    volume.stop()
    assert check(volume)[0] == 0


# --- going on ---------------------------------------------------------------------------------------------------


def noted(folder):
    return [line for path in folder.rglob("checks/*.txt") for line in path.read_text().splitlines() if line]


@pytest.fixture
def cut_off(make_mount, tmp_path, monkeypatch):
    """A volume with large files of which a check has verified some, when it was killed."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    mount = make_mount().start()
    for number in range(300):
        (mount.plain / f"f{number:03}").write_bytes(os.urandom(300_000))
    mount.stop()
    environment = {**os.environ, "KMSFS_SOCKET": mount.socket}
    command = [sys.executable, "-m", "kmsfs.cli", "check", str(mount.cipher)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not noted(tmp_path / "state"):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    mount.state = tmp_path / "state"
    mount.verified = noted(mount.state)
    assert 0 < len(mount.verified) < 300
    return mount


def test_a_check_that_was_cut_off_goes_on(cut_off):
    # What is damaged behind the back of time itself, only a new check sees; what is damaged in what was not verified, this one.
    numbers = {int(line.split()[0]) for line in cut_off.verified}
    files = sorted(path for path in cut_off.cipher.iterdir() if path.name[0] == "n")
    verified = next(path for path in files if path.stat().st_ino in numbers)
    other = next(path for path in files if path.stat().st_ino not in numbers)
    # The file of what is known ends in the middle of a line.
    [place] = cut_off.state.rglob("checks/*.txt")
    with place.open("a") as stream:
        stream.write("12 34")
    with other.open("r+b") as stream:
        stream.seek(100_000)
        stream.write(b"damage")
    code, report = check(cut_off, "--continue")
    assert code == ExitCode.DAMAGE_FOUND and len(report["findings"]) == 1 and report["files"] == 300
    assert report["plain_bytes"] == 299 * 300_000 and noted(cut_off.state) == []
    # Done: the next one begins anew, with or without the option.
    with verified.open("r+b") as stream:
        stream.seek(100_000)
        stream.write(b"damage")
    assert len(check(cut_off, "--continue")[1]["findings"]) == len(check(cut_off)[1]["findings"]) == 2


def test_what_changed_since_is_read_again(cut_off):
    numbers = {int(line.split()[0]) for line in cut_off.verified}
    verified = next(path for path in cut_off.cipher.iterdir() if path.stat().st_ino in numbers)
    with verified.open("r+b") as stream:
        stream.seek(100_000)
        stream.write(b"damage")
    code, report = check(cut_off, "--continue")
    assert code == ExitCode.DAMAGE_FOUND and len(report["findings"]) == 1


def test_what_was_verified_is_not_read_again(cut_off):
    """A line of the file is believed: with that of a damaged file in it, the damage is passed over."""
    numbers = {int(line.split()[0]) for line in cut_off.verified}
    verified = next(path for path in cut_off.cipher.iterdir() if path.stat().st_ino in numbers)
    before = verified.stat().st_ctime_ns
    with verified.open("r+b") as stream:
        stream.seek(100_000)
        stream.write(b"damage")
    [place] = cut_off.state.rglob("checks/*.txt")
    place.write_text(place.read_text().replace(str(before), str(verified.stat().st_ctime_ns)))
    code, report = check(cut_off, "--continue")
    assert code == ExitCode.OK and report["plain_bytes"] == 300 * 300_000
    assert check(cut_off)[0] == ExitCode.DAMAGE_FOUND
