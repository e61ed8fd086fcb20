"""Rewrapping: after it nothing lies under the old key material, content is as before, and a cut-off run harms nothing."""

import json
import os
import stat
import subprocess
import sys
import time

import pytest

from kmsfs import errors
from kmsfs.formats.fileheader import SLOT_BYTES, parse_clear

pytestmark = [pytest.mark.fuse, pytest.mark.root]


def kmsfs(process, *words):
    done = subprocess.run(
        [sys.executable, "-m", "kmsfs.cli", "--json", *words],
        env={**os.environ, "KMSFS_SOCKET": process.socket}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr


@pytest.fixture
def volume(daemon, make_mount):
    """A volume under a key of its own, with files of every shape; `contents` is what they hold."""
    session = daemon.session()
    key = session.call("CreateKey", {})["KeyMetadata"]["KeyId"]
    process = make_mount("--key", key).start()
    process.session, process.key = session, key
    process.contents = {}
    for folder in ("", "d", "d/deep"):
        (process.plain / folder).mkdir(exist_ok=True)
        for size in (0, 1, 2960, 5000, 300_000, 3_000_000):
            name = f"{folder}/f{size}".lstrip("/")
            process.contents[name] = os.urandom(size)
            (process.plain / name).write_bytes(process.contents[name])
    os.link(process.plain / "f5000", process.plain / "d" / "link")
    process.contents["d/link"] = process.contents["f5000"]
    process.contents["n" * 200] = b"long name"
    (process.plain / ("n" * 200)).write_bytes(b"long name")
    os.symlink("f1", process.plain / "s")
    os.setxattr(process.plain / "f1", "user.a", b"1")
    process.stop()
    return process


def same(process):
    process.start()
    found = {name: (process.plain / name).read_bytes() == data for name, data in process.contents.items()}
    assert all(found.values()), found
    assert os.getxattr(process.plain / "f1", "user.a") == b"1"
    process.stop()
    assert kmsfs(process, "check", str(process.cipher))[0] == 0


def test_after_a_rotation_the_old_material_can_go(volume):
    assert kmsfs(volume, "rewrap", str(volume.cipher), "--dry-run")[1]["headers"][0]["material_version"] == 1
    volume.session.call("RotateKeyOnDemand", {"KeyId": volume.key})
    code, report = kmsfs(volume, "rewrap", str(volume.cipher))
    assert code == 0 and report["rewrapped"] == report["files"] > 15 and not report["failed"]
    assert {entry["material_version"] for entry in report["headers"]} == {2}
    again = kmsfs(volume, "rewrap", str(volume.cipher))[1]
    assert again["rewrapped"] == 0 and {entry["material_version"] for entry in again["headers"]} == {2}
    same(volume)
    code, materials = kmsfs(volume, "key", "materials", volume.key)
    old, new = (material["KeyMaterialId"] for material in materials)
    with pytest.raises(errors.Conflict, match="the one that encrypts"):
        volume.session.call("DestroyKeyMaterial", {"KeyId": volume.key, "KeyMaterialId": new})
    assert kmsfs(volume, "key", "destroy-material", volume.key, old)[0] == 2
    assert kmsfs(volume, "key", "destroy-material", volume.key, old, "--yes")[0] == 0
    same(volume)


def test_destroyed_material_opens_nothing_more(volume):
    older = {path: path.read_bytes() for path in volume.cipher.rglob("*") if stat.S_ISREG(path.lstat().st_mode)}
    volume.session.call("RotateKeyOnDemand", {"KeyId": volume.key})
    assert kmsfs(volume, "rewrap", str(volume.cipher))[0] == 0
    old = kmsfs(volume, "key", "materials", volume.key)[1][0]["KeyMaterialId"]
    volume.session.call("DestroyKeyMaterial", {"KeyId": volume.key, "KeyMaterialId": old})
    for path, data in older.items():
        path.write_bytes(data)
    code, report = kmsfs(volume, "volume", "info", str(volume.cipher))
    assert code == 0 and report["access"].startswith("refused")


def test_to_another_key(volume):
    other = volume.session.call("CreateKey", {})["KeyMetadata"]["KeyId"]
    code, report = kmsfs(volume, "rewrap", str(volume.cipher), "--to", other)
    assert code == 0 and {entry["key_id"] for entry in report["headers"]} == {other}
    volume.session.call("DisableKey", {"KeyId": volume.key})
    same(volume)
    volume.start()
    volume.session.call("DisableKey", {"KeyId": other})
    with pytest.raises(OSError):
        for _ in range(50):
            (volume.plain / "f5000").read_bytes()
            time.sleep(0.05)
    volume.session.call("EnableKey", {"KeyId": other})
    volume.stop()


def test_a_run_that_is_killed_is_run_again(volume):
    other = volume.session.call("CreateKey", {})["KeyMetadata"]["KeyId"]
    command = [sys.executable, "-m", "kmsfs.cli", "rewrap", str(volume.cipher), "--to", other]
    environment = {**os.environ, "KMSFS_SOCKET": volume.socket}
    for delay in (0.3, 0.35, 0.4, 0.45, 0.5):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        time.sleep(delay)
        process.kill()
        process.wait()
        same(volume)
    assert kmsfs(volume, "rewrap", str(volume.cipher), "--to", other)[0] == 0
    same(volume)


def wrapped_keys(process):
    """The wrapped data keys in both headers of each file, read without any key."""
    found = {}
    for path in process.cipher.rglob("*"):
        if path.name[:1] in "nl" and stat.S_ISREG(path.lstat().st_mode):
            raw = path.read_bytes()
            found[path] = {parse_clear(raw[at : at + SLOT_BYTES]).wrapped_key for at in (0, SLOT_BYTES) if any(raw[at : at + SLOT_BYTES])}
    return found


def test_new_data_keys(volume):
    before = wrapped_keys(volume)
    older = {path: path.read_bytes() for path in before}
    code, report = kmsfs(volume, "volume", "rekey", str(volume.cipher))
    assert code == 0 and report["failed"] == [] and report["rekeyed"] == report["files"] == len(before) - 1
    after = wrapped_keys(volume)
    assert before.keys() == after.keys() and not set().union(*before.values()) & set().union(*after.values())
    assert all(len(keys) == 1 for keys in after.values())
    same(volume)
    # The old ones are of the past: the freshness records tell.
    victim = max(older, key=lambda path: len(older[path]))
    victim.write_bytes(older[victim])
    assert kmsfs(volume, "check", str(volume.cipher))[0] == errors.ExitCode.DAMAGE_FOUND


def test_new_data_keys_of_a_directory_with_its_own_kms_key(volume):
    other = volume.session.call("CreateKey", {})["KeyMetadata"]["KeyId"]
    volume.start()
    (volume.plain / "own").mkdir()
    assert kmsfs(volume, "volume", "key", "set", str(volume.plain / "own"), other)[0] == 0
    (volume.plain / "own" / "f").write_bytes(b"own")
    volume.contents["own/f"] = b"own"
    volume.stop()
    assert kmsfs(volume, "volume", "rekey", str(volume.cipher))[0] == 0
    same(volume)
    volume.session.call("DisableKey", {"KeyId": other})
    volume.start()
    assert (volume.plain / "f1").read_bytes() == volume.contents["f1"]
    with pytest.raises(OSError):
        (volume.plain / "own" / "f").read_bytes()
    volume.session.call("EnableKey", {"KeyId": other})
    volume.stop()


def test_a_rekeying_that_is_killed_harms_nothing(volume):
    command = [sys.executable, "-m", "kmsfs.cli", "volume", "rekey", str(volume.cipher)]
    environment = {**os.environ, "KMSFS_SOCKET": volume.socket}
    for delay in (0.4, 0.5, 0.6):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        time.sleep(delay)
        process.kill()
        process.wait()
        same(volume)
    assert kmsfs(volume, "volume", "rekey", str(volume.cipher))[0] == 0
    same(volume)


def test_where_a_barrier_fails_the_next_mount_verifies(volume, monkeypatch):
    """What the disk has of the last commits is unknown then: that session has not ended cleanly."""
    from kmsfs.check import rekey
    from kmsfs.cli.rewrapping import rekey_volume

    def refuse(_descriptor):
        raise errors.StorageError("written back with an error")

    with monkeypatch.context() as patched:
        patched.setattr(rekey, "sync_file_system", refuse)
        with pytest.raises(errors.StorageError):
            rekey_volume(volume.cipher, volume.session)
    time.sleep(2.5)
    with pytest.raises(errors.UsageError, match="did not end cleanly"):
        rekey_volume(volume.cipher, volume.session)
    same(volume)


def test_what_is_refused(volume, make_mount):
    volume.start()
    assert kmsfs(volume, "rewrap", str(volume.cipher))[0] == kmsfs(volume, "volume", "rekey", str(volume.cipher))[0] == 12
    (volume.plain / "f1").write_bytes(b"changed")
    volume.kill()
    time.sleep(2.5)
    code, text = kmsfs(volume, "rewrap", str(volume.cipher))
    assert code == 2 and "did not end cleanly" in text
    volume.start()
    time.sleep(1)
    volume.stop()
    assert kmsfs(volume, "rewrap", str(volume.cipher), "--to", "alias/none")[0] == 11
    volume.contents.pop("f1")
    same(volume)


def test_parameters_and_secrets_hold_their_material(daemon):
    session = daemon.session()
    key = session.call("CreateKey", {})["KeyMetadata"]["KeyId"]
    session.call("PutParameter", {"Name": "/m/s", "Value": "v", "Type": "SecureString", "KeyId": key})
    session.call("CreateSecret", {"Name": "m/s", "SecretString": "v", "KmsKeyId": key})
    old = session.call("DescribeKey", {"KeyId": key})["KeyMetadata"]["CurrentKeyMaterialId"]
    session.call("RotateKeyOnDemand", {"KeyId": key})
    for drop in (("DeleteParameter", {"Name": "/m/s"}), ("DeleteSecret", {"SecretId": "m/s", "ForceDeleteWithoutRecovery": True})):
        with pytest.raises(errors.Conflict, match="stored value"):
            session.call("DestroyKeyMaterial", {"KeyId": key, "KeyMaterialId": old})
        session.call(*drop)
    assert session.call("DestroyKeyMaterial", {"KeyId": key, "KeyMaterialId": old})["MaterialVersion"] == 1
