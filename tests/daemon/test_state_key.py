"""A state whose key has sealed as much as it may: said before, refused then, and given another key."""

import json
import os
import subprocess
import sys

import pytest
from kmsd.realm import open_realm, open_store
from kmsd.store.sealing import RowSealer

from kmsfs import errors
from kmsfs.quantity import STATE_SEALS_LIMIT
from kmsfs.secret import KeyMaterial
from support.realmworld import World


def renew(folder, *more):
    command = [sys.executable, "-m", "kmsd", "renew-state-key", "--state", str(folder), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_state_goes_on_under_another_key(tmp_path, caplog):
    world = World(tmp_path)
    call = lambda operation, **parameters: world.call("us-east-1", operation, **parameters)  # noqa: E731
    key = call("CreateKey")["KeyMetadata"]["KeyId"]
    blob = call("Encrypt", KeyId=key, Plaintext=b"before")["CiphertextBlob"]
    call("PutParameter", Name="/a", Value="one", Type="SecureString")
    # As if there had been a thousand million changes; the count is stored with each.
    world.daemon._store._sealer.usage.used = STATE_SEALS_LIMIT - 60
    call("PutParameter", Name="/b", Value="two", Type="String")
    world.restart()
    assert "nearly used up" in caplog.text and "renew-state-key" in caplog.text
    with pytest.raises(errors.LimitExceeded) as caught:
        for number in range(60):
            call("PutParameter", Name=f"/c/{number}", Value="three", Type="String")
    assert "renew-state-key" in caught.value.hint
    assert number > 5 and call("GetParameter", Name=f"/c/{number - 1}")["Parameter"]["Value"] == "three"
    with pytest.raises(errors.ParameterNotFound):
        call("GetParameter", Name=f"/c/{number}")
    # Full as it is, it ends and begins again.
    world.restart()
    assert call("Decrypt", CiphertextBlob=blob)["Plaintext"] == b"before"
    world.daemon._close()
    done = renew(tmp_path / "state")
    assert done.returncode == 0 and "domain key 2" in done.stdout, done.stderr
    caplog.clear()
    world._start()
    assert "nearly used up" not in caplog.text
    assert world.daemon._store._sealer.usage.used < 100
    assert call("Decrypt", CiphertextBlob=blob)["Plaintext"] == b"before"
    assert call("GetParameter", Name="/a", WithDecryption=True)["Parameter"]["Value"] == "one"
    for number in range(60):
        call("PutParameter", Name=f"/d/{number}", Value="four", Type="String")
    other = call("CreateKey")["KeyMetadata"]["KeyId"]
    after = call("Encrypt", KeyId=other, Plaintext=b"after")["CiphertextBlob"]
    used = world.daemon._store._sealer.usage.used
    world.restart()
    assert used <= world.daemon._store._sealer.usage.used < used + 100
    assert call("Decrypt", CiphertextBlob=after)["Plaintext"] == b"after"
    world.daemon._close()
    # Once more, and each row opens under the key that sealed it; without the new one, nothing is taken for whole.
    assert "domain key 3" in renew(tmp_path / "state").stdout
    realm = open_realm(world._config, None)
    store = open_store(world._config, realm.keyring)
    store.close()
    del realm.keyring.domain_keys[2]
    with pytest.raises(errors.CorruptStore):
        open_store(world._config, realm.keyring)


def test_who_may_give_it_one(fresh_daemon, tmp_path):
    daemon = fresh_daemon.start()
    assert renew(daemon.state).returncode == 12
    daemon.stop()
    code = tmp_path / "code"
    code.write_text(json.loads(daemon.init_output)["recovery_code"])
    assert renew(daemon.state, "--code-file", str(code)).returncode == 0
    assert renew(tmp_path / "none").returncode != 0 and not (tmp_path / "none").exists()
    daemon.start()
    log = (daemon.state / "audit" / "audit.jsonl").read_text()
    assert '"op":"StateKeyRenewed"' in log


def test_a_count_is_of_the_key_that_sealed_the_head():
    keys = {1: KeyMaterial(bytes(32)), 2: KeyMaterial(b"2" * 32)}
    old, new = RowSealer({1: keys[1]}, os.urandom), RowSealer(keys, os.urandom)
    head = old.seal(0, bytes(16), bytes(16), 0, {"seals": 7})
    new.take_count(head, 7)
    assert new.usage.used == 0
    new.take_count(new.seal(0, bytes(16), bytes(16), 0, {"seals": 7}), 7)
    assert new.usage.used == 7
