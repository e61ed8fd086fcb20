"""kmsfs rescue: out of every kind of damage comes all that was not hit, and nothing that was not written."""

import json
import os
import random
import shutil
import subprocess
import sys
import time

import pytest

from kmsfs.errors import ExitCode

pytestmark = [pytest.mark.fuse, pytest.mark.root]


@pytest.fixture
def volume(make_mount):
    """A volume; `contents` are its files, `stored` their places on disk."""
    mount = make_mount().start()
    random_bytes = random.Random(7).randbytes
    mount.contents = {
        "small": b"small", "empty": b"", "d/big": random_bytes(3_000_000), "d/mid": random_bytes(1_000_000),
        "d/deep/x": b"x" * 5000, "d/deep/y": b"y",
        "d/" + "long" * 55: b"long name", "e/f/g": b"deeper",
    }  # fmt: skip
    for name, data in mount.contents.items():
        (mount.plain / name).parent.mkdir(parents=True, exist_ok=True)
        (mount.plain / name).write_bytes(data)
    (mount.plain / "link").symlink_to("small")
    os.utime(mount.plain / "small", ns=(1, 1_234_567_890_123_456_789))
    os.chmod(mount.plain / "small", 0o640)
    inodes = {os.stat(mount.plain / name).st_ino: name for name in [*mount.contents, "d", "d/deep", "e"]}
    mount.stop()
    mount.stored = {
        inodes[ino]: os.path.join(parent, name)
        for parent, folders, files in os.walk(mount.cipher)
        for name in [*files, *folders]
        if (ino := os.lstat(os.path.join(parent, name)).st_ino) in inodes
    }
    return mount


def rescue(mount, target):
    environment = {**os.environ, "KMSFS_SOCKET": str(mount.socket)}
    command = [sys.executable, "-m", "kmsfs.cli", "--json", "rescue", str(mount.cipher), str(target)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr


def snapshot(mount):
    return {
        str(path): os.lstat(path).st_ino if path.is_symlink() or path.is_dir() else path.read_bytes()
        for path in mount.cipher.rglob("*")
    }


def flip(path, at):
    with open(path, "r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)
        stream.seek(at)
        stream.write(bytes([byte[0] ^ 1]))


def others_are_whole(mount, target, *hit):
    for name, data in mount.contents.items():
        if name not in hit:
            assert (target / name).read_bytes() == data, name


def test_of_a_whole_volume_everything(volume, tmp_path):
    before = snapshot(volume)
    code, report = rescue(volume, tmp_path / "out")
    assert code == 0 and report["problems"] == [] and report["lost_bytes"] == 0 and snapshot(volume) == before
    others_are_whole(volume, tmp_path / "out")
    facts = os.stat(tmp_path / "out" / "small")
    assert facts.st_mtime_ns == 1_234_567_890_123_456_789 and facts.st_mode & 0o777 == 0o640
    assert os.readlink(tmp_path / "out" / "link") == "small"


def test_of_a_file_with_damaged_chunks_the_others(volume, tmp_path):
    path = volume.stored["d/big"]
    size = os.path.getsize(path)
    for at in (size // 3, size // 2, size - 10_000):
        flip(path, at)
    code, report = rescue(volume, tmp_path / "out")
    assert code == ExitCode.DAMAGE_FOUND and [p["path"] for p in report["problems"]] == ["d/big"]
    data, found = volume.contents["d/big"], (tmp_path / "out" / "d" / "big").read_bytes()
    assert len(found) == len(data)
    chunks = [(data[at : at + 16384], found[at : at + 16384]) for at in range(0, len(data), 16384)]
    wrong = [pair for pair in chunks if pair[0] != pair[1]]
    # One may have hit a block that nothing uses.
    assert len(wrong) in (2, 3) and all(not any(piece) for _, piece in wrong)
    assert report["lost_bytes"] == sum(len(piece) for _, piece in wrong)
    others_are_whole(volume, tmp_path / "out", "d/big")


def test_a_file_that_was_cut_off(volume, tmp_path):
    os.truncate(volume.stored["d/mid"], 500_000)
    code, report = rescue(volume, tmp_path / "out")
    found = (tmp_path / "out" / "d" / "mid").read_bytes()
    assert code == ExitCode.DAMAGE_FOUND and len(found) == 1_000_000
    assert found[:450_000] == volume.contents["d/mid"][:450_000]
    assert 500_000 <= report["lost_bytes"] < 550_000
    others_are_whole(volume, tmp_path / "out", "d/mid")


def test_one_header_is_enough_and_none_is_not(volume, tmp_path):
    # The header that is hit may be the newest: what the other one says comes out, at one of the file's commits.
    for number, name in enumerate(("d/deep/x", "small")):
        with open(volume.stored[name], "rb") as stream:
            slots = [number for number in (0, 1) if any(os.pread(stream.fileno(), 4096, number * 4096))]
        flip(volume.stored[name], slots[0] * 4096 + 700)
    code, report = rescue(volume, tmp_path / "out")
    for name in ("d/deep/x", "small"):
        lost = [p for p in report["problems"] if p["path"].endswith(name)]
        assert lost or (tmp_path / "out" / name).exists()
        if (tmp_path / "out" / name).exists():
            assert (tmp_path / "out" / name).read_bytes() in (volume.contents[name], b"")
    others_are_whole(volume, tmp_path / "out", "d/deep/x", "small")


def test_a_directory_without_its_id_tells_it_by_its_files(volume, tmp_path):
    os.unlink(os.path.join(volume.stored["d/deep"], ".kd"))
    code, report = rescue(volume, tmp_path / "out")
    assert code == 0, report
    others_are_whole(volume, tmp_path / "out")


def test_a_directory_that_nothing_tells(volume, tmp_path):
    """Only a directory lies in it: its name is lost, what is below it not."""
    os.unlink(os.path.join(volume.stored["e"], ".kd"))
    code, report = rescue(volume, tmp_path / "out")
    assert code == ExitCode.DAMAGE_FOUND and "lost its id" in str(report["problems"])
    [found] = [path for path in (tmp_path / "out" / "lost+found").rglob("g")]
    assert found.read_bytes() == b"deeper"
    others_are_whole(volume, tmp_path / "out", "e/f/g")


def test_moved_and_foreign_entries(volume, tmp_path):
    shutil.move(volume.stored["small"], os.path.join(volume.stored["d"], os.path.basename(volume.stored["small"])))
    (volume.cipher / "foreign").write_text("what")
    code, report = rescue(volume, tmp_path / "out")
    assert code == ExitCode.DAMAGE_FOUND and [p["path"] for p in report["problems"]] == ["foreign"]
    # Its name was made elsewhere, its header still has it.
    assert (tmp_path / "out" / "lost+found" / "small").read_bytes() == b"small"
    others_are_whole(volume, tmp_path / "out", "small")


def test_files_of_the_past_come_out(volume, tmp_path):
    shutil.copytree(volume.cipher, tmp_path / "past", symlinks=True)
    volume.start()
    (volume.plain / "small").write_text("present")
    volume.stop()
    shutil.copy2(tmp_path / "past" / os.path.basename(volume.stored["small"]), volume.stored["small"])
    code, _ = rescue(volume, tmp_path / "out")
    assert code == 0
    others_are_whole(volume, tmp_path / "out")


def test_random_damage_never_gives_what_was_not_written(volume, tmp_path):
    rng = random.Random(11)
    for round_number in range(6):
        copy = tmp_path / f"c{round_number}"
        shutil.copytree(volume.cipher, copy, symlinks=True)
        for path in copy.rglob("n*"):
            if path.is_file() and not path.is_symlink() and rng.random() < 0.6 and path.stat().st_size:
                for _ in range(rng.randrange(1, 5)):
                    flip(path, rng.randrange(path.stat().st_size))
        whole, volume.cipher = volume.cipher, copy
        target = tmp_path / f"o{round_number}"
        code, report = rescue(volume, target)
        volume.cipher = whole
        assert code in (0, ExitCode.DAMAGE_FOUND), report
        for name, data in volume.contents.items():
            if (target / name).exists():
                found = (target / name).read_bytes()
                assert len(found) == len(data) or found == b""
                for at in range(0, len(found), 4096):
                    piece = found[at : at + 4096]
                    assert piece == data[at : at + 4096] or not any(piece)


def test_places_that_would_surprise(volume, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    for target in (tmp_path / "full", volume.cipher, volume.cipher / "inside", tmp_path / "full" / "x"):
        code, _ = rescue(volume, target)
        assert code == ExitCode.USAGE
    assert (tmp_path / "full" / "x").read_text() == "mine"
    volume.start()
    assert rescue(volume, tmp_path / "out")[0] == ExitCode.CONFLICT


# --- check --repair ---------------------------------------------------------------------------------------------


def check(mount, *options):
    environment = {**os.environ, "KMSFS_SOCKET": str(mount.socket)}
    command = [sys.executable, "-m", "kmsfs.cli", "--json", "check", str(mount.cipher), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr


def slots_of(path):
    """(slot, generation) of a file's headers, newest first."""
    with open(path, "rb") as stream:
        raw = stream.read(8192)
    found = []
    for number in (0, 1):
        piece = raw[number * 4096 : (number + 1) * 4096]
        if any(piece):
            found.append((number, int.from_bytes(piece[48:56], "little")))
    return sorted(found, key=lambda slot: -slot[1])


def test_a_damaged_header_is_written_anew_from_the_good_one(volume):
    volume.start()
    (volume.plain / "small").write_text("second")
    os.sync()
    volume.again()
    (volume.plain / "small").write_text("third")
    volume.stop()
    path = volume.stored["small"]
    from kmsfs.formats.fileheader import parse_clear

    raw = open(path, "rb").read(8192)
    generations = [parse_clear(raw[at : at + 4096]).generation for at in (0, 4096)]
    older = generations.index(min(generations))
    flip(path, older * 4096 + 700)
    assert check(volume)[0] == ExitCode.DAMAGE_FOUND
    code, report = check(volume, "--repair")
    assert code == 0 and [r["done"] for r in report["repaired"]] == ["the damaged header is written anew"], report
    volume.start()
    assert (volume.plain / "small").read_text() == "third"
    volume.stop()
    # The newer one is hit: what is left is of the past, and is not made the present.
    raw = open(path, "rb").read(8192)
    generations = [parse_clear(raw[at : at + 4096]).generation for at in (0, 4096)]
    flip(path, generations.index(max(generations)) * 4096 + 700)
    before = open(path, "rb").read()
    code, report = check(volume, "--repair")
    assert code == ExitCode.DAMAGE_FOUND and report["repaired"] == [] and report["left"]
    assert open(path, "rb").read() == before


def test_what_cannot_be_read_is_set_aside_where_that_is_asked(volume):
    flip(volume.stored["d/mid"], 500_000)
    (volume.cipher / "foreign").write_text("what")
    os.truncate(volume.stored["d/deep/x"], 0)
    long_name = volume.stored["d/" + "long" * 55]
    flip(long_name, 700)
    flip(long_name, 4096 + 700) if os.path.getsize(long_name) > 4800 else None
    code, report = check(volume, "--repair")
    assert code == ExitCode.DAMAGE_FOUND and report["repaired"] == []
    content = open(volume.stored["d/mid"], "rb").read()
    code, report = check(volume, "--repair", "--quarantine")
    assert code == 0 and len(report["repaired"]) == 4, report
    aside = [path.read_bytes() for path in (volume.cipher / ".damaged").iterdir()]
    assert content in aside and b"what" in aside
    volume.start()
    assert sorted(os.listdir(volume.plain / "d")) == ["big", "deep"]
    assert (volume.plain / "d" / "big").read_bytes() == volume.contents["d/big"]
    volume.stop()
    assert check(volume)[0] == 0


def test_leftovers_go(volume):
    volume.start()
    (volume.plain / ("n" * 200)).write_text("x")
    os.setxattr(volume.plain / "small", "user.a", b"1")
    volume.stop()
    for path in volume.cipher.iterdir():
        if path.name[0] == "l":
            path.unlink()
    for path in [volume.stored["small"]]:
        os.unlink(path)
    code, report = check(volume, "--repair")
    assert code == 0 and sorted(r["done"] for r in report["repaired"]) == [*["its record is forgotten"] * 2, "removed", "removed"], report
    assert check(volume) == (0, check(volume)[1]) and check(volume)[1]["findings"] == []


def test_repair_wants_a_volume_at_rest(volume):
    assert check(volume, "--quarantine")[0] == ExitCode.USAGE
    flip(volume.stored["small"], 700)
    volume.start()
    assert check(volume, "--repair")[0] == ExitCode.CONFLICT
    volume.kill()
    code, said = check(volume, "--repair")
    assert code in (ExitCode.USAGE, ExitCode.CONFLICT), said


def test_a_header_of_a_file_that_no_record_knows_is_not_trusted(volume):
    """After a restore was accepted nothing says which of two headers was the newer one."""
    volume.start()
    (volume.plain / "small").write_text("second")
    volume.again()
    (volume.plain / "small").write_text("third")
    volume.stop()
    environment = {**os.environ, "KMSFS_SOCKET": str(volume.socket)}
    accept = [sys.executable, "-m", "kmsfs.cli", "volume", "accept-restore", "--yes", str(volume.cipher)]
    subprocess.run(accept, env=environment, check=True, capture_output=True)
    volume.start()
    time.sleep(2)
    volume.stop()
    path = volume.stored["small"]
    assert len(slots_of(path)) == 2
    flip(path, 700)
    before = open(path, "rb").read()
    code, report = check(volume, "--repair")
    assert code == ExitCode.DAMAGE_FOUND and report["repaired"] == [], report
    assert "no record says" in str(report["left"]) and open(path, "rb").read() == before


def test_extended_attributes_come_out(make_mount, tmp_path):
    mount = make_mount().start()
    (mount.plain / "d").mkdir()
    for name in ("f", "d", "damaged"):
        if name != "d":
            (mount.plain / name).write_bytes(name.encode())
        os.setxattr(mount.plain / name, "user.note", name.encode() + b"\0\xff")
        if name == "d":
            between = set((mount.cipher / ".kx").iterdir())
    mount.stop()
    [record] = set((mount.cipher / ".kx").iterdir()) - between
    flip(record, 20)
    target = tmp_path / "out"
    code, told = rescue(mount, target)
    assert code == ExitCode.DAMAGE_FOUND and [problem["path"] for problem in told["problems"]] == ["damaged"]
    assert "extended attributes are lost" in told["problems"][0]["problem"] and (target / "damaged").read_bytes() == b"damaged"
    assert os.listxattr(target / "damaged") == []
    assert {name: os.getxattr(target / name, "user.note") for name in ("f", "d")} == {"f": b"f\0\xff", "d": b"d\0\xff"}
