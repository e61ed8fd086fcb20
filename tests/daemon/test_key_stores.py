"""Custom key stores: KMS keys whose material a PKCS #11 token keeps."""

import json
import os
import subprocess
import sys

import pytest

from conftest import DaemonProcess
from kmsfs import errors
from kmsfs.client.watch import KeyWatcher
from support.iamworld import World, allow, refused
from support.peers import as_user
from support.tokens import PIN, SOFTHSM, make_softhsm, run
from support.waiting import soon

CLUSTER = "cluster-1234567890a"


@pytest.fixture(scope="module")
def softhsm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("softhsm")
    make_softhsm(folder, "one")
    run("softhsm2-util", "--init-token", "--free", "--label", "two", "--pin", PIN, "--so-pin", "so-pin-of-it")
    return folder


@pytest.fixture(scope="module")
def daemon(tmp_path_factory, softhsm):
    made = DaemonProcess(
        tmp_path_factory.mktemp("kmsd"), "--aws-endpoint", "127.0.0.1:0", "--key-store-token", f"{CLUSTER}={SOFTHSM}:one",
        "--key-store-token", f"second={SOFTHSM}:two", "--key-store-token", f"gone={SOFTHSM}:no-such",
    )  # fmt: skip
    assert made.init("--account", "111122223333").returncode == 0
    made.start()
    yield made
    made.stop()


@pytest.fixture
def call(daemon):
    return lambda operation, **parameters: daemon.session().call(operation, parameters)


@pytest.fixture
def store(call):
    """A connected store."""
    made = call("CreateCustomKeyStore", CustomKeyStoreName="hsm", CloudHsmClusterId=CLUSTER, KeyStorePassword=PIN)["CustomKeyStoreId"]
    call("ConnectCustomKeyStore", CustomKeyStoreId=made)
    yield made
    call("DisconnectCustomKeyStore", CustomKeyStoreId=made)
    call("DeleteCustomKeyStore", CustomKeyStoreId=made)


def state(call, store):
    [found] = call("DescribeCustomKeyStores", CustomKeyStoreId=store)["CustomKeyStores"]
    return found


def test_a_key_store_from_making_to_forgetting(daemon):
    kms = World(daemon).client("kms")
    made = kms.create_custom_key_store(
        CustomKeyStoreName="life", CloudHsmClusterId=CLUSTER, KeyStorePassword=PIN, TrustAnchorCertificate="-----BEGIN"
    )["CustomKeyStoreId"]
    assert made.startswith("cks-")
    [told] = kms.describe_custom_key_stores(CustomKeyStoreName="life")["CustomKeyStores"]
    assert told["ConnectionState"] == "DISCONNECTED" and told["CloudHsmClusterId"] == CLUSTER and told["TrustAnchorCertificate"] == "-----BEGIN"
    assert refused(kms.create_custom_key_store, CustomKeyStoreName="life", CloudHsmClusterId=CLUSTER, KeyStorePassword=PIN) == "CustomKeyStoreNameInUseException"
    assert refused(kms.create_custom_key_store, CustomKeyStoreName="b", CloudHsmClusterId=CLUSTER, KeyStorePassword=PIN) == "CloudHsmClusterInUseException"
    assert refused(kms.create_custom_key_store, CustomKeyStoreName="b", CloudHsmClusterId="cluster-zzzzzzzzzzz", KeyStorePassword=PIN) == "CloudHsmClusterNotFoundException"
    assert refused(kms.create_key, Origin="AWS_CLOUDHSM", CustomKeyStoreId=made) == "CustomKeyStoreInvalidStateException"
    assert refused(kms.create_key, Origin="AWS_CLOUDHSM", CustomKeyStoreId="cks-none") == "CustomKeyStoreNotFoundException"
    kms.connect_custom_key_store(CustomKeyStoreId=made)
    assert kms.describe_custom_key_stores(CustomKeyStoreId=made)["CustomKeyStores"][0]["ConnectionState"] == "CONNECTED"
    for call, more in ((kms.connect_custom_key_store, {}), (kms.delete_custom_key_store, {}), (kms.update_custom_key_store, {"NewCustomKeyStoreName": "x"})):
        assert refused(call, CustomKeyStoreId=made, **more) == "CustomKeyStoreInvalidStateException"
    for more in ({"KeySpec": "RSA_2048", "KeyUsage": "ENCRYPT_DECRYPT"}, {"MultiRegion": True}):
        assert refused(kms.create_key, Origin="AWS_CLOUDHSM", CustomKeyStoreId=made, **more) == "UnsupportedOperationException"
    assert refused(kms.create_key, CustomKeyStoreId=made) == refused(kms.create_key, Origin="AWS_CLOUDHSM") == "ValidationException"
    key = kms.create_key(Origin="AWS_CLOUDHSM", CustomKeyStoreId=made)["KeyMetadata"]
    assert key["Origin"] == "AWS_CLOUDHSM" and key["CustomKeyStoreId"] == made and key["CloudHsmClusterId"] == CLUSTER
    assert key["KeyState"] == "Enabled" and "CurrentKeyMaterialId" not in key
    kms.disconnect_custom_key_store(CustomKeyStoreId=made)
    assert refused(kms.delete_custom_key_store, CustomKeyStoreId=made) == "CustomKeyStoreHasCMKsException"
    told = kms.describe_key(KeyId=key["KeyId"])["KeyMetadata"]
    assert told["KeyState"] == "Unavailable" and told["Enabled"] is False
    # A window that is over destroys the key here and in its token.
    kms.connect_custom_key_store(CustomKeyStoreId=made)
    assert key["KeyId"] in objects("one")
    kms.schedule_key_deletion(KeyId=key["KeyId"], PendingWindowInDays=7)
    assert kms.describe_key(KeyId=key["KeyId"])["KeyMetadata"]["KeyState"] == "PendingDeletion"
    kms.cancel_key_deletion(KeyId=key["KeyId"])
    kms.enable_key(KeyId=key["KeyId"])
    kms.disconnect_custom_key_store(CustomKeyStoreId=made)
    kms.update_custom_key_store(CustomKeyStoreId=made, NewCustomKeyStoreName="parked", CloudHsmClusterId=CLUSTER)
    assert kms.describe_custom_key_stores(CustomKeyStoreId=made)["CustomKeyStores"][0]["CustomKeyStoreName"] == "parked"
    forget(daemon, made, key["KeyId"])


def forget(daemon, store, *keys):
    """End the keys' windows by the daemon's own upkeep, as if it were a week later, and the store with them."""
    call = daemon.session().call
    if state(lambda op, **p: call(op, p), store)["ConnectionState"] != "CONNECTED":
        call("ConnectCustomKeyStore", {"CustomKeyStoreId": store})
    for key in keys:
        if call("DescribeKey", {"KeyId": key})["KeyMetadata"]["KeyState"] != "PendingDeletion":
            call("ScheduleKeyDeletion", {"KeyId": key, "PendingWindowInDays": 7})
    daemon.stop()
    purge = (
        "import sys; from pathlib import Path\n"
        "from kmsd.app import Daemon; from kmsd.__main__ import Config, open_realm, parse_places\n"
        "config = Config(Path(sys.argv[1]), Path(sys.argv[2]), key_store_tokens=parse_places(sys.argv[3:]))\n"
        "daemon = Daemon(config, open_realm(config, None)); print(daemon._keys.purge_due(daemon._clock() + 8 * 86400)); daemon._close()\n"
    )
    places = [word for word in daemon.options if "=" in word]
    done = subprocess.run([sys.executable, "-c", purge, daemon.state, daemon.socket, *places], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    daemon.start()
    call = daemon.session().call
    for key in keys:
        with pytest.raises(errors.NotFound):
            call("DescribeKey", {"KeyId": key})
    call("DisconnectCustomKeyStore", {"CustomKeyStoreId": store})
    call("DeleteCustomKeyStore", {"CustomKeyStoreId": store})


def objects(label):
    """The labels of what a token says it has. In a process of its own: SoftHSM reads its configuration once in the life of one."""
    look = (
        "import sys; from pkcs11 import Attribute, ObjectClass, lib\n"
        "with lib(sys.argv[1]).get_token(token_label=sys.argv[2]).open(user_pin=sys.argv[3]) as session:\n"
        "    print(*(each.label for each in session.get_objects({Attribute.CLASS: ObjectClass.SECRET_KEY})))\n"
    )
    return run(sys.executable, "-c", look, SOFTHSM, label, PIN)


def test_a_key_in_a_token_does_what_others_do(daemon):
    call = lambda operation, **parameters: daemon.session().call(operation, parameters)  # noqa: E731
    store = call("CreateCustomKeyStore", CustomKeyStoreName="work", CloudHsmClusterId="second", KeyStorePassword=PIN)["CustomKeyStoreId"]
    call("ConnectCustomKeyStore", CustomKeyStoreId=store)
    key = call("CreateKey", Origin="AWS_CLOUDHSM", CustomKeyStoreId=store)["KeyMetadata"]["KeyId"]
    context = {"a": "b"}
    blob = call("Encrypt", KeyId=key, Plaintext=b"x", EncryptionContext=context)["CiphertextBlob"]
    opened = call("Decrypt", CiphertextBlob=blob, EncryptionContext=context)
    assert opened["Plaintext"] == b"x" and "KeyMaterialId" not in opened
    with pytest.raises(errors.InvalidCiphertext):
        call("Decrypt", CiphertextBlob=blob)
    with pytest.raises(errors.InvalidCiphertext):
        call("Decrypt", CiphertextBlob=blob[:-1] + bytes([blob[-1] ^ 1]), EncryptionContext=context)
    made = call("GenerateDataKey", KeyId=key, KeySpec="AES_256")
    assert call("Decrypt", CiphertextBlob=made["CiphertextBlob"])["Plaintext"] == made["Plaintext"]
    other = call("CreateKey")["KeyMetadata"]["KeyId"]
    moved = call("ReEncrypt", CiphertextBlob=blob, SourceEncryptionContext=context, DestinationKeyId=other)["CiphertextBlob"]
    assert call("Decrypt", CiphertextBlob=moved)["Plaintext"] == b"x"
    keys = call("GenerateDataKeyBatch", KeyId=key, EncryptionContexts=[context] * 3)["DataKeys"]
    items = [{"CiphertextBlob": each["CiphertextBlob"], "EncryptionContext": context} for each in keys]
    assert [item["Plaintext"] for item in call("DecryptBatch", Items=items)["Items"]] == [each["Plaintext"] for each in keys]
    call("PutParameter", Name="/in-a-token", Value="v", Type="SecureString", KeyId=key)
    assert call("GetParameter", Name="/in-a-token", WithDecryption=True)["Parameter"]["Value"] == "v"
    for operation, more in (
        ("EnableKeyRotation", {}), ("RotateKeyOnDemand", {}), ("ListKeyRotations", {}), ("GenerateDataKeyPair", {"KeyPairSpec": "ECC_NIST_P256"}),
        ("DestroyKeyMaterial", {"KeyMaterialId": "a" * 64}),
        ("GetParametersForImport", {"WrappingAlgorithm": "RSAES_OAEP_SHA_256", "WrappingKeySpec": "RSA_2048"}),
    ):  # fmt: skip
        with pytest.raises(errors.UnsupportedOperation):
            call(operation, KeyId=key, **more)
    # It comes back with the daemon.
    daemon.stop()
    daemon.start()
    assert call("Decrypt", CiphertextBlob=blob, EncryptionContext=context)["Plaintext"] == b"x"
    # Nothing of the material is in the state, nor the PIN in the log.
    assert PIN.encode() not in b"".join(path.read_bytes() for path in daemon.state.rglob("*") if path.is_file())
    # The watch stream tells that it cannot be used any more.
    seen = []
    watch = KeyWatcher(daemon.session(), [key], seen.append)
    watch.start()
    try:
        call("DisconnectCustomKeyStore", CustomKeyStoreId=store)
        soon(["policy"], lambda: [event["kind"] for event in seen], 5)
    finally:
        watch.close()
    with pytest.raises(errors.KeyInvalidState, match="is unavailable"):
        call("Decrypt", CiphertextBlob=blob, EncryptionContext=context)
    [item] = call("DecryptBatch", Items=items[:1])["Items"]
    assert item["ErrorCode"] == "KMSInvalidStateException"
    call("ConnectCustomKeyStore", CustomKeyStoreId=store)
    assert call("Decrypt", CiphertextBlob=blob, EncryptionContext=context)["Plaintext"] == b"x"
    call("DeleteParameter", Name="/in-a-token")
    forget(daemon, store, key)
    assert key not in objects("two")


def test_two_tokens_of_one_module_work_side_by_side(call, daemon):
    stores, blobs = {}, []
    for name, token in (("left", CLUSTER), ("right", "second")):
        stores[name] = call("CreateCustomKeyStore", CustomKeyStoreName=name, CloudHsmClusterId=token, KeyStorePassword=PIN)["CustomKeyStoreId"]
        call("ConnectCustomKeyStore", CustomKeyStoreId=stores[name])
    keys = [call("CreateKey", Origin="AWS_CLOUDHSM", CustomKeyStoreId=store)["KeyMetadata"]["KeyId"] for store in stores.values()]
    for _ in range(3):
        blobs += [call("Encrypt", KeyId=key, Plaintext=b"x")["CiphertextBlob"] for key in keys]
    # A look for a token that is not there makes the library start over; the others go on.
    third = call("CreateCustomKeyStore", CustomKeyStoreName="lost", CloudHsmClusterId="gone", KeyStorePassword=PIN)["CustomKeyStoreId"]
    call("ConnectCustomKeyStore", CustomKeyStoreId=third)
    assert state(call, third)["ConnectionErrorCode"] == "CLUSTER_NOT_FOUND"
    assert all(call("Decrypt", CiphertextBlob=blob)["Plaintext"] == b"x" for blob in blobs)
    call("UpdateCustomKeyStore", CustomKeyStoreId=third, NewCustomKeyStoreName="lost2")
    call("DeleteCustomKeyStore", CustomKeyStoreId=third)
    for store, key in zip(stores.values(), keys, strict=True):
        forget(daemon, store, key)


def test_a_wrong_pin_is_told_and_mended(call):
    made = call("CreateCustomKeyStore", CustomKeyStoreName="wrong", CloudHsmClusterId=CLUSTER, KeyStorePassword="wrong-pin")["CustomKeyStoreId"]
    call("ConnectCustomKeyStore", CustomKeyStoreId=made)
    assert (state(call, made)["ConnectionState"], state(call, made)["ConnectionErrorCode"]) == ("FAILED", "INVALID_CREDENTIALS")
    call("UpdateCustomKeyStore", CustomKeyStoreId=made, KeyStorePassword=PIN)
    call("ConnectCustomKeyStore", CustomKeyStoreId=made)
    assert state(call, made)["ConnectionState"] == "CONNECTED"
    call("DisconnectCustomKeyStore", CustomKeyStoreId=made)
    call("DeleteCustomKeyStore", CustomKeyStoreId=made)


@pytest.mark.root
def test_stores_are_the_accounts(daemon, store):
    with as_user(daemon, 4321) as other:
        for operation, more in (
            ("CreateCustomKeyStore", {"CustomKeyStoreName": "x", "CloudHsmClusterId": "second", "KeyStorePassword": PIN}),
            ("DescribeCustomKeyStores", {}), ("DisconnectCustomKeyStore", {"CustomKeyStoreId": store}),
            ("CreateKey", {"Origin": "AWS_CLOUDHSM", "CustomKeyStoreId": store}),
        ):  # fmt: skip
            with pytest.raises(errors.AccessDenied):
                other(operation, **more)
    world = World(daemon)
    _, who = world.user(policy=[allow(["kms:DescribeCustomKeyStores"])])
    kms = world.client("kms", who)
    assert kms.describe_custom_key_stores()["CustomKeyStores"]
    assert refused(kms.disconnect_custom_key_store, CustomKeyStoreId=store) == "AccessDeniedException"
    # Another region's callers do not see it.
    far = world.client("kms", region="eu-west-1")
    assert far.describe_custom_key_stores()["CustomKeyStores"] == []
    assert refused(far.disconnect_custom_key_store, CustomKeyStoreId=store) == "CustomKeyStoreNotFoundException"


def test_the_command_line(daemon):
    def kmsfs(*words, code=0, stdin=""):
        environment = {**os.environ, "KMSFS_SOCKET": str(daemon.socket), "NO_COLOR": "1"}
        done = subprocess.run([sys.executable, "-m", "kmsfs.cli", *words], env=environment, capture_output=True, text=True, timeout=60, input=stdin)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    made = kmsfs("keystore", "create", "cli", "--token", "second", "--pin-file", "-", stdin=PIN + "\n").split()[0]
    assert "connected" in kmsfs("keystore", "list")
    key = kmsfs("key", "create", "--store", "cli").split()[0]
    assert json.loads(kmsfs("--json", "key", "describe", key))["CustomKeyStoreId"] == made
    assert "cannot be read until" in kmsfs("keystore", "disconnect", "cli", code=2)
    kmsfs("keystore", "disconnect", "cli", "--yes")
    assert "1 KMS key(s)" in kmsfs("keystore", "delete", "cli", "--yes", code=errors.CustomKeyStoreHasKeys.exit_code)
    kmsfs("keystore", "update", "cli", "--name", "cli2")
    assert "is connected" in kmsfs("keystore", "connect", "cli2")
    assert "there is no custom key store" in kmsfs("keystore", "connect", "cli", code=errors.CustomKeyStoreNotFound.exit_code)
    forget(daemon, made, key)
    refused_at = kmsfs("keystore", "create", "bad", "--token", "second", "--pin-file", "-", stdin="wrong-pin\n", code=errors.CustomKeyStoreInvalidState.exit_code)
    assert "INVALID_CREDENTIALS" in refused_at
    kmsfs("keystore", "delete", "bad", "--yes")
