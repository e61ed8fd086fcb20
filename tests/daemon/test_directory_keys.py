"""The KMS keys of a volume's directories, as kmsd keeps them: for the mount that holds the lease, within limits."""

import os
import signal

import pytest

from kmsfs import errors
from kmsfs.client.remote import to_exception


class Lease:
    def __init__(self, daemon, key, volume):
        self.about = {"KeyId": key, "VolumeId": volume}
        self.transport = daemon.session().open_transport()
        opened = self.call("OpenVolumeSession")
        self.session, self.keys = opened["Session"], opened.get("DirectoryKeys", {})

    def call(self, operation, **more):
        answer = self.transport.call(operation, {**self.about, **more})
        if "e" in answer:
            raise to_exception(answer["e"])
        return answer["r"]

    def set(self, directory, key=None):
        more = {"TargetKeyId": key} if key else {}
        return self.call("SetDirectoryKey", Session=self.session, DirectoryId=directory, **more)

    def end(self):
        self.call("CloseVolumeSession", Session=self.session)
        self.transport.close()


@pytest.fixture
def make_key(daemon):
    session = daemon.session()
    yield lambda **about: session.call("CreateKey", about)["KeyMetadata"]["KeyId"]
    session.close()


def test_they_outlive_sessions_restarts_and_moves(fresh_daemon):
    daemon = fresh_daemon.start()
    keys = [daemon.session().call("CreateKey", {})["KeyMetadata"]["KeyId"] for _ in range(3)]
    volume, directory = os.urandom(16).hex(), os.urandom(16).hex()
    lease = Lease(daemon, keys[0], volume)
    assert lease.keys == {}
    assert lease.set(directory, keys[1]) == {"TargetKeyId": keys[1]}
    lease.end()
    daemon.stop(signal.SIGKILL)
    daemon.start()
    lease = Lease(daemon, keys[0], volume)
    assert lease.keys == {directory: keys[1]}
    session = daemon.session()
    assert session.call("ListKeyDependents", {"KeyId": keys[1]})["Volumes"] == [volume]
    lease.call("MoveVolume", Session=lease.session, TargetKeyId=keys[2])
    lease.end()
    moved = Lease(daemon, keys[2], volume)
    assert moved.keys == {directory: keys[1]}
    assert moved.set(directory) == {} == moved.set(directory)
    assert session.call("ListKeyDependents", {"KeyId": keys[1]})["Volumes"] == []
    moved.end()


def test_only_the_lease_sets_them_and_only_to_keys_that_encrypt(daemon, make_key):
    key, volume = make_key(), os.urandom(16).hex()
    lease = Lease(daemon, key, volume)
    request = {**lease.about, "Session": lease.session, "DirectoryId": "0" * 32, "TargetKeyId": key}
    with pytest.raises(errors.VolumeBusy):
        daemon.session().call("SetDirectoryKey", request)
    with pytest.raises(errors.VolumeBusy):
        lease.call("SetDirectoryKey", Session=lease.session + 1, DirectoryId="0" * 32, TargetKeyId=key)
    with pytest.raises(errors.InvalidKeyUsage):
        lease.set("0" * 32, make_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY"))
    with pytest.raises(errors.InvalidKeyUsage):
        lease.set("0" * 32, make_key(KeySpec="RSA_2048", KeyUsage="ENCRYPT_DECRYPT"))
    disabled = make_key()
    daemon.session().call("DisableKey", {"KeyId": disabled})
    with pytest.raises(errors.KeyDisabled):
        lease.set("0" * 32, disabled)
    for bad in ("0" * 31, "g" * 32, ""):
        with pytest.raises(errors.InvalidRequest):
            lease.set(bad, key)
    lease.end()
    again = Lease(daemon, key, volume)
    assert again.keys == {}
    again.end()


def test_limits(daemon, make_key):
    lease = Lease(daemon, make_key(), os.urandom(16).hex())
    keys = [make_key() for _ in range(33)]
    for number, key in enumerate(keys[:32]):
        lease.set(f"{number:032x}", key)
    with pytest.raises(errors.LimitExceeded):
        lease.set("f" * 32, keys[32])
    for number in range(32, 1024):
        lease.set(f"{number:032x}", keys[number % 32])
    with pytest.raises(errors.LimitExceeded):
        lease.set("f" * 32, keys[0])
    lease.set("0" * 32)
    lease.set("f" * 32, keys[1])
    lease.end()
