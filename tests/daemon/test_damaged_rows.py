"""One row of the state that is damaged: what it was is refused with a clear error, and the rest serves."""

import json
import sqlite3
import subprocess
import sys

import pytest

from conftest import DaemonProcess
from kmsd.config import Config
from kmsd.realm import open_realm
from kmsd.store.schema import Table
from kmsd.store.sealing import RowSealer
from kmsfs import errors
from kmsfs.errors import CorruptStore, ExitCode

ACCOUNT = "111122223333"


@pytest.fixture
def daemon(tmp_path):
    made = DaemonProcess(tmp_path / "kmsd")
    assert made.init("--account", ACCOUNT).returncode == 0
    made.start()
    yield made
    made.stop()


def damage(daemon, table, place, at=20):
    """Flip a bit of a row's ciphertext, as a failing disk does; its tag stays."""
    sealer = RowSealer(open_realm(Config(daemon.state, daemon.socket), None).keyring.domain_keys, lambda size: bytes(size))
    with sqlite3.connect(daemon.state / "state.db") as database:
        where = (int(table), sealer.row_id(table, place))
        [blob] = database.execute("SELECT blob FROM row WHERE tbl = ? AND id = ?", where).fetchone()
        changed = bytearray(blob)
        changed[at] ^= 1
        assert database.execute("UPDATE row SET blob = ? WHERE tbl = ? AND id = ?", (bytes(changed), *where)).rowcount == 1
    database.close()


def refused(call, operation, says="damaged", **parameters):
    with pytest.raises(CorruptStore, match=says):
        call(operation, **parameters)


def test_the_rest_serves(daemon):
    call = lambda operation, **parameters: daemon.session().call(operation, parameters)  # noqa: E731
    keys = [call("CreateKey")["KeyMetadata"] for _ in range(5)]
    lost, lamed, old, aliased, whole = (key["KeyId"] for key in keys)
    blobs = {key: call("Encrypt", KeyId=key, Plaintext=b"x")["CiphertextBlob"] for key in (lost, lamed, old, whole)}
    call("RotateKeyOnDemand", KeyId=old)
    grant = call("CreateGrant", KeyId=lost, GranteePrincipal=f"arn:kmsfs:iam::{ACCOUNT}:uid/4321", Operations=["Decrypt"])
    for name, key in (("alias/lost", lost), ("alias/damaged", aliased), ("alias/whole", whole)):
        call("CreateAlias", AliasName=name, TargetKeyId=key)
    for name in ("/lost", "/versions", "/whole"):
        call("PutParameter", Name=name, Value="1", Type="String")
        call("PutParameter", Name=name, Value="2", Type="String", Overwrite=True)
    secret = call("CreateSecret", Name="lost", SecretString="s")["ARN"]
    call("CreateSecret", Name="whole", SecretString="s")
    volume = "ab" * 16
    # Its lease is given back when the connection ends.
    call("OpenVolumeSession", KeyId=whole, VolumeId=volume)
    policy = call("CreatePolicy", PolicyName="p", PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Action": "kms:*", "Resource": "*"}]}))["Policy"]["Arn"]
    call("CreateGroup", GroupName="g")
    for user in ("limited", "member", "free"):
        call("CreateUser", UserName=user)
    call("AttachUserPolicy", UserName="limited", PolicyArn=policy)
    call("AddUserToGroup", UserName="member", GroupName="g")
    daemon.stop()
    for table, place in (
        (Table.KEY, lost), (Table.MATERIAL, f"{lamed}/1"), (Table.MATERIAL, f"{old}/1"), (Table.ALIAS, "alias/damaged"), (Table.PARAMETER, "/lost"),
        (Table.PARAMETER_VERSION, "/versions:1"), (Table.SECRET, secret), (Table.VOLUME, volume), (Table.IDENTITY, policy),
        (Table.IDENTITY, f"arn:kmsfs:iam::{ACCOUNT}:group/g"),
    ):  # fmt: skip
        damage(daemon, table, place)
    daemon.start()
    assert call("GetStatus")["DamagedRecords"] == 9  # versions of parameters are met when they are read
    # Keys.
    refused(call, "DescribeKey", KeyId=lost)
    refused(call, "Decrypt", CiphertextBlob=blobs[lost])
    refused(call, "Encrypt", KeyId=lamed, Plaintext=b"x")
    refused(call, "Decrypt", CiphertextBlob=blobs[lamed])
    refused(call, "Decrypt", CiphertextBlob=blobs[old])
    assert call("Encrypt", KeyId=old, Plaintext=b"x") and call("DescribeKey", KeyId=lamed)
    refused(call, "DescribeKey", KeyId="alias/damaged")
    refused(call, "CreateAlias", says="lies where this would be stored", AliasName="alias/damaged", TargetKeyId=whole)
    with pytest.raises(errors.KmsfsError):
        call("RevokeGrant", KeyId=lost, GrantId=grant["GrantId"])
    assert call("Decrypt", CiphertextBlob=blobs[whole])["Plaintext"] == b"x" and call("DescribeKey", KeyId="alias/whole")
    assert lost not in {entry["KeyId"] for entry in call("ListKeys")["Keys"]}
    with pytest.raises(errors.KmsfsError, match="damaged"):
        call("DestroyKeyMaterial", KeyId=rotated(call, whole), KeyMaterialId=first_material(call, whole))
    # Parameters and secrets: nothing is written over what may be saved yet.
    refused(call, "GetParameter", Name="/lost")
    refused(call, "PutParameter", Name="/lost", Value="3", Type="String")
    refused(call, "GetParameter", Name="/versions:1")
    assert call("GetParameter", Name="/versions")["Parameter"]["Value"] == "2" == call("GetParameter", Name="/whole")["Parameter"]["Value"]
    refused(call, "GetSecretValue", SecretId=secret)
    assert call("GetSecretValue", SecretId="whole")["SecretString"] == "s"
    # A volume does not begin anew: older states of it could be put back.
    refused(call, "OpenVolumeSession", KeyId=whole, VolumeId=volume)
    assert call("OpenVolumeSession", KeyId=whole, VolumeId="cd" * 16)["Session"] == 1
    # Whose Deny is lost does nothing.
    for user in ("limited", "member"):
        refused(call, "SimulateKeyAccess", KeyId=whole, Principal=f"arn:kmsfs:iam::{ACCOUNT}:user/{user}", Action="kms:Decrypt")
    assert call("SimulateKeyAccess", KeyId=whole, Principal=f"arn:kmsfs:iam::{ACCOUNT}:user/free", Action="kms:Decrypt")["Allowed"] is False
    log = [json.loads(line) for line in (daemon.state / "audit" / "audit.jsonl").read_text().splitlines()]
    [told] = [record for record in log if record["op"] == "RecordsQuarantined"]
    assert told["params"]["tables"].split() == sorted(["key", "material", "material", "alias", "parameter", "secret", "volume", "identity", "identity"])


def rotated(call, key):
    call("RotateKeyOnDemand", KeyId=key)
    return key


def first_material(call, key):
    return call("ListKeyRotations", KeyId=key, IncludeKeyMaterial="ALL_KEY_MATERIAL")["Rotations"][0]["KeyMaterialId"]


def test_what_would_let_somebody_do_more_stops_the_daemon(daemon):
    """A closed account that nobody knows to be closed, users who fall back to the managing one."""
    call = daemon.session().call
    call("CreateAccount", {"AccountName": "a", "Email": "a@kmsfs.local", "AccountId": "444455556666"})
    daemon.stop()
    damage(daemon, Table.ACCOUNT, "444455556666")
    daemon.start(wait=False)
    assert daemon.process.wait(20) == ExitCode.INTEGRITY and "damaged" in daemon.process.stderr.read()


def test_a_tag_that_is_not_the_one_that_was_written_is_an_attack(daemon):
    key = daemon.session().call("CreateKey", {})["KeyMetadata"]["KeyId"]
    daemon.stop()
    damage(daemon, Table.KEY, key, at=-1)
    daemon.start(wait=False)
    assert daemon.process.wait(20) == ExitCode.INTEGRITY and "removed, added or put back" in daemon.process.stderr.read()


def test_a_backup_is_whole_or_none(daemon, tmp_path):
    key = daemon.session().call("CreateKey", {})["KeyMetadata"]["KeyId"]
    backup = [sys.executable, "-m", "kmsd", "backup", "--state", str(daemon.state)]
    assert subprocess.run([*backup, str(tmp_path / "good")], capture_output=True).returncode == 0
    daemon.stop()
    damage(daemon, Table.KEY, key)
    daemon.start()
    done = subprocess.run([*backup, str(tmp_path / "bad")], capture_output=True, text=True)
    assert done.returncode == ExitCode.INTEGRITY and "1 records of the state are damaged" in done.stderr and not (tmp_path / "bad").exists()
