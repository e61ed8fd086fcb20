"""Imported key material: wrapped by an independent implementation, in every algorithm and key spec that is offered."""

import os
import time

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding

from kmsfs import errors

ALGORITHMS = ["RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256", "RSA_AES_KEY_WRAP_SHA_1", "RSA_AES_KEY_WRAP_SHA_256"]


def wrap(parameters, algorithm, material):
    public = serialization.load_der_public_key(parameters["PublicKey"])
    chosen = hashes.SHA1() if algorithm.endswith("_SHA_1") else hashes.SHA256()
    oaep = padding.OAEP(padding.MGF1(chosen), chosen, None)
    if algorithm.startswith("RSAES_OAEP"):
        return public.encrypt(material, oaep)
    key = os.urandom(32)
    return public.encrypt(key, oaep) + aes_key_wrap_with_padding(key, material)


def make(call, **more):
    return call("CreateKey", Origin="EXTERNAL", **more)["KeyMetadata"]["KeyId"]


def bring(call, key, material, algorithm="RSAES_OAEP_SHA_256", size="RSA_2048", **more):
    parameters = call("GetParametersForImport", KeyId=key, WrappingAlgorithm=algorithm, WrappingKeySpec=size)
    more = more or {"ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE"}
    return call(
        "ImportKeyMaterial", KeyId=key, ImportToken=parameters["ImportToken"],
        EncryptedKeyMaterial=wrap(parameters, algorithm, material), **more,
    )  # fmt: skip


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_wrapping_algorithm(call, algorithm):
    key = make(call)
    told = call("DescribeKey", KeyId=key)["KeyMetadata"]
    assert (told["KeyState"], told["Enabled"], told["Origin"]) == ("PendingImport", False, "EXTERNAL")
    with pytest.raises(errors.KeyInvalidState, match="is pending import"):
        call("Encrypt", KeyId=key, Plaintext=b"x")
    parameters = call("GetParametersForImport", KeyId=key, WrappingAlgorithm=algorithm, WrappingKeySpec="RSA_3072")
    assert abs(parameters["ParametersValidTo"] - time.time() - 86_400) < 60
    assert bring(call, key, os.urandom(32), algorithm, "RSA_3072")["KeyMaterialId"]
    told = call("DescribeKey", KeyId=key)["KeyMetadata"]
    assert (told["KeyState"], told["ExpirationModel"]) == ("Enabled", "KEY_MATERIAL_DOES_NOT_EXPIRE")
    sealed = call("Encrypt", KeyId=key, Plaintext=b"hello")["CiphertextBlob"]
    assert call("Decrypt", CiphertextBlob=sealed)["Plaintext"] == b"hello"


def der(private):
    return private.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.mark.parametrize(
    ("spec", "usage", "make_material"),
    [
        ("HMAC_256", "GENERATE_VERIFY_MAC", lambda: os.urandom(32)),
        ("HMAC_512", "GENERATE_VERIFY_MAC", lambda: os.urandom(64)),
        ("RSA_2048", "SIGN_VERIFY", lambda: der(rsa.generate_private_key(65537, 2048))),
        ("ECC_NIST_P256", "SIGN_VERIFY", lambda: der(ec.generate_private_key(ec.SECP256R1()))),
        ("ECC_SECG_P256K1", "SIGN_VERIFY", lambda: der(ec.generate_private_key(ec.SECP256K1()))),
        ("ECC_NIST_EDWARDS25519", "SIGN_VERIFY", lambda: der(ed25519.Ed25519PrivateKey.generate())),
    ],
)
def test_every_kind_of_key(call, spec, usage, make_material):
    key, material = make(call, KeySpec=spec, KeyUsage=usage), make_material()
    for wrong in (os.urandom(31), material[:-1], der(ec.generate_private_key(ec.SECP384R1()))):
        with pytest.raises(errors.InvalidCiphertext):
            bring(call, key, wrong, "RSA_AES_KEY_WRAP_SHA_256")
    bring(call, key, material, "RSA_AES_KEY_WRAP_SHA_256")
    if usage == "SIGN_VERIFY":
        public = call("GetPublicKey", KeyId=key)["PublicKey"]
        private = serialization.load_der_private_key(material, None)
        wanted = private.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        assert public == wanted
    else:
        import hashlib
        import hmac

        name = "sha" + spec.removeprefix("HMAC_")
        made = call("GenerateMac", KeyId=key, Message=b"m", MacAlgorithm=f"HMAC_SHA_{spec.removeprefix('HMAC_')}")["Mac"]
        assert made == hmac.new(material, b"m", getattr(hashlib, name)).digest()


def test_the_same_material_again_and_no_other(call):
    key, material = make(call), os.urandom(32)
    first = bring(call, key, material)["KeyMaterialId"]
    sealed = call("Encrypt", KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    assert call("DeleteImportedKeyMaterial", KeyId=key)["KeyMaterialId"] == first
    assert call("DescribeKey", KeyId=key)["KeyMetadata"]["KeyState"] == "PendingImport"
    for operation, more in (("Decrypt", {"CiphertextBlob": sealed}), ("EnableKey", {"KeyId": key}), ("CreateGrant", {"KeyId": key, "GranteePrincipal": call("GetStatus")["Principal"], "Operations": ["Decrypt"]})):  # fmt: skip
        with pytest.raises(errors.KeyInvalidState, match="pending import"):
            call(operation, **more)
    call("TagResource", KeyId=key, Tags=[{"TagKey": "a", "TagValue": "b"}])
    with pytest.raises(errors.IncorrectKeyMaterial):
        bring(call, key, os.urandom(32))
    assert bring(call, key, material)["KeyMaterialId"] == first
    assert call("Decrypt", CiphertextBlob=sealed)["Plaintext"] == b"x"


def test_material_that_expires(call):
    key = make(call)
    for more in ({"ExpirationModel": "KEY_MATERIAL_EXPIRES"}, {"ValidTo": time.time() - 5},
                 {"ValidTo": time.time() + 500 * 86_400}, {"ValidTo": time.time() + 60, "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE"}):  # fmt: skip
        with pytest.raises(errors.InvalidRequest, match="(?i)validTo"):
            bring(call, key, bytes(32), **more)
    bring(call, key, os.urandom(32), ValidTo=time.time() + 1.5)
    assert call("DescribeKey", KeyId=key)["KeyMetadata"]["ExpirationModel"] == "KEY_MATERIAL_EXPIRES"
    sealed = call("Encrypt", KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            call("Decrypt", CiphertextBlob=sealed)
        except errors.KeyInvalidState:
            break
        time.sleep(0.1)
    else:
        pytest.fail("expired material still decrypts")
    assert call("DescribeKey", KeyId=key)["KeyMetadata"]["KeyState"] == "PendingImport"


def test_tokens_that_do_not_fit(call):
    key, other, plain = make(call), make(call), call("CreateKey")["KeyMetadata"]["KeyId"]
    ask = {"WrappingAlgorithm": "RSAES_OAEP_SHA_256", "WrappingKeySpec": "RSA_2048"}
    parameters = call("GetParametersForImport", KeyId=key, **ask)
    wrapped = wrap(parameters, "RSAES_OAEP_SHA_256", os.urandom(32))
    token = parameters["ImportToken"]
    last = {"ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE"}
    with pytest.raises(errors.InvalidImportToken):
        call("ImportKeyMaterial", KeyId=other, ImportToken=token, EncryptedKeyMaterial=wrapped, **last)
    for bad in (b"x", token[:-1], bytes([token[0] ^ 1]) + token[1:]):
        with pytest.raises(errors.InvalidImportToken):
            call("ImportKeyMaterial", KeyId=key, ImportToken=bad, EncryptedKeyMaterial=wrapped, **last)
    for bad in (b"x", wrapped[:-1], wrap(call("GetParametersForImport", KeyId=key, **ask), "RSAES_OAEP_SHA_256", bytes(32))):
        with pytest.raises(errors.InvalidCiphertext):
            call("ImportKeyMaterial", KeyId=key, ImportToken=token, EncryptedKeyMaterial=bad, **last)
    for operation, more in (("GetParametersForImport", ask), ("DeleteImportedKeyMaterial", {}),
                            ("ImportKeyMaterial", {"ImportToken": token, "EncryptedKeyMaterial": wrapped, **last})):  # fmt: skip
        with pytest.raises(errors.UnsupportedOperation, match="origin is AWS_KMS which is not valid for this operation"):
            call(operation, KeyId=plain, **more)
    for operation in ("EnableKeyRotation", "RotateKeyOnDemand"):
        with pytest.raises((errors.UnsupportedOperation, errors.KeyInvalidState)):
            call(operation, KeyId=key)
    with pytest.raises(errors.UnsupportedOperation):
        call("ReplicateKey", KeyId=plain, ReplicaRegion="eu-west-1")
    assert call("GetKeyRotationStatus", KeyId=key)["KeyRotationEnabled"] is False


def test_imported_material_survives_a_restart(fresh_daemon):
    daemon = fresh_daemon.start()
    session = daemon.session()
    call = lambda operation, **parameters: session.call(operation, parameters)  # noqa: E731
    key, empty, material = make(call), make(call), os.urandom(32)
    bring(call, key, material)
    sealed = call("Encrypt", KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    call("ScheduleKeyDeletion", KeyId=empty, PendingWindowInDays=7)
    call("CancelKeyDeletion", KeyId=empty)
    daemon.stop(9)
    daemon.start()
    session = daemon.session()
    assert session.call("Decrypt", {"CiphertextBlob": sealed})["Plaintext"] == b"x"
    assert session.call("DescribeKey", {"KeyId": empty})["KeyMetadata"]["KeyState"] == "PendingImport"
    stored = b"".join((daemon.state / file).read_bytes() for file in os.listdir(daemon.state) if file.startswith("state.db"))
    assert material not in stored


# --- several materials of one key -----------------------------------------------------------------------------

NEW = {"ImportType": "NEW_KEY_MATERIAL", "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE"}


def rotations(call, key):
    found = call("ListKeyRotations", KeyId=key, IncludeKeyMaterial="ALL_KEY_MATERIAL")["Rotations"]
    return [(entry["KeyMaterialId"], entry["KeyMaterialState"], entry["ImportState"]) for entry in found]


def state(call, key):
    return call("DescribeKey", KeyId=key)["KeyMetadata"]["KeyState"]


def test_new_material_waits_for_a_rotation_and_old_ciphertext_opens(call):
    key, first, second = make(call), os.urandom(32), os.urandom(32)
    one = bring(call, key, first)["KeyMaterialId"]
    old = call("Encrypt", KeyId=key, Plaintext=b"old")["CiphertextBlob"]
    with pytest.raises(errors.KeyInvalidState, match="pending rotation"):
        call("RotateKeyOnDemand", KeyId=key)
    two = bring(call, key, second, **NEW, KeyMaterialDescription="of this year")["KeyMaterialId"]
    assert rotations(call, key) == [(one, "CURRENT", "IMPORTED"), (two, "PENDING_ROTATION", "IMPORTED")]
    assert call("DescribeKey", KeyId=key)["KeyMetadata"]["CurrentKeyMaterialId"] == one
    with pytest.raises(errors.KeyInvalidState, match="pending rotation"):
        bring(call, key, os.urandom(32), **NEW)
    call("RotateKeyOnDemand", KeyId=key)
    new = call("Encrypt", KeyId=key, Plaintext=b"new")
    assert call("DescribeKey", KeyId=key)["KeyMetadata"]["CurrentKeyMaterialId"] == two
    assert rotations(call, key) == [(one, "NON_CURRENT", "IMPORTED"), (two, "CURRENT", "IMPORTED")]
    (entry,) = call("ListKeyRotations", KeyId=key)["Rotations"]
    assert (entry["RotationType"], entry["KeyMaterialDescription"]) == ("ON_DEMAND", "of this year")
    assert [call("Decrypt", CiphertextBlob=blob)["Plaintext"] for blob in (old, new["CiphertextBlob"])] == [b"old", b"new"]
    with pytest.raises(errors.UnsupportedOperation):
        call("EnableKeyRotation", KeyId=key)


def test_all_material_must_be_there(call):
    key, first, second = make(call), os.urandom(32), os.urandom(32)
    one = bring(call, key, first)["KeyMaterialId"]
    old = call("Encrypt", KeyId=key, Plaintext=b"old")["CiphertextBlob"]
    two = bring(call, key, second, **NEW, KeyMaterialDescription="kept")["KeyMaterialId"]
    call("RotateKeyOnDemand", KeyId=key)
    new = call("Encrypt", KeyId=key, Plaintext=b"new")["CiphertextBlob"]
    assert call("DeleteImportedKeyMaterial", KeyId=key, KeyMaterialId=one)["KeyMaterialId"] == one
    assert state(call, key) == "PendingImport" and rotations(call, key)[0] == (one, "NON_CURRENT", "PENDING_IMPORT")
    for blob in (old, new):
        with pytest.raises(errors.KeyInvalidState):
            call("Decrypt", CiphertextBlob=blob)
    assert call("DeleteImportedKeyMaterial", KeyId=key)["KeyMaterialId"] == two
    with pytest.raises(errors.KeyInvalidState, match="pending import"):
        bring(call, key, os.urandom(32), **NEW)
    with pytest.raises(errors.IncorrectKeyMaterial):
        bring(call, key, first, KeyMaterialId=two, ExpirationModel="KEY_MATERIAL_DOES_NOT_EXPIRE")
    bring(call, key, second)
    assert state(call, key) == "PendingImport"
    bring(call, key, first, KeyMaterialId=one, ImportType="EXISTING_KEY_MATERIAL", ExpirationModel="KEY_MATERIAL_DOES_NOT_EXPIRE")
    assert state(call, key) == "Enabled"
    assert [call("Decrypt", CiphertextBlob=blob)["Plaintext"] for blob in (old, new)] == [b"old", b"new"]
    assert call("ListKeyRotations", KeyId=key)["Rotations"][0]["KeyMaterialDescription"] == "kept"


def test_material_that_was_never_current_goes_without_a_trace(call):
    key = make(call)
    bring(call, key, os.urandom(32))
    two = bring(call, key, os.urandom(32), **NEW)["KeyMaterialId"]
    call("DeleteImportedKeyMaterial", KeyId=key, KeyMaterialId=two)
    assert state(call, key) == "Enabled" and len(rotations(call, key)) == 1
    with pytest.raises(errors.NotFound):
        call("DeleteImportedKeyMaterial", KeyId=key, KeyMaterialId=two)
    bring(call, key, os.urandom(32), ImportType="NEW_KEY_MATERIAL", ValidTo=time.time() + 1.5)
    deadline = time.monotonic() + 10
    while len(rotations(call, key)) == 2 and time.monotonic() < deadline:
        time.sleep(0.2)
        call("Encrypt", KeyId=key, Plaintext=b"x")
    assert state(call, key) == "Enabled" and len(rotations(call, key)) == 1


def test_what_is_asked_for_wrongly(call):
    key, mac = make(call), make(call, KeySpec="HMAC_256", KeyUsage="GENERATE_VERIFY_MAC")
    bring(call, key, os.urandom(32))
    bring(call, mac, os.urandom(32))
    with pytest.raises(errors.UnsupportedOperation, match="HMAC_256"):
        bring(call, mac, os.urandom(32), **NEW)
    with pytest.raises(errors.InvalidRequest, match="KeyMaterialId"):
        bring(call, key, os.urandom(32), **NEW, KeyMaterialId="0" * 64)
    with pytest.raises(errors.IncorrectKeyMaterial):
        bring(call, key, os.urandom(32), ImportType="EXISTING_KEY_MATERIAL", ExpirationModel="KEY_MATERIAL_DOES_NOT_EXPIRE")


def test_several_materials_survive_a_restart_and_a_deletion_that_was_called_off(fresh_daemon):
    daemon = fresh_daemon.start()
    call = lambda operation, **parameters: daemon.session().call(operation, parameters)  # noqa: E731
    key, first = make(call), os.urandom(32)
    one = bring(call, key, first)["KeyMaterialId"]
    old = call("Encrypt", KeyId=key, Plaintext=b"old")["CiphertextBlob"]
    bring(call, key, os.urandom(32), **NEW)
    call("RotateKeyOnDemand", KeyId=key)
    three = bring(call, key, os.urandom(32), **NEW)["KeyMaterialId"]
    before = rotations(call, key)
    daemon.stop(9)
    daemon.start()
    assert rotations(call, key) == before and before[-1] == (three, "PENDING_ROTATION", "IMPORTED")
    assert call("Decrypt", CiphertextBlob=old)["Plaintext"] == b"old"
    call("ScheduleKeyDeletion", KeyId=key, PendingWindowInDays=7)
    call("CancelKeyDeletion", KeyId=key)
    assert state(call, key) == "Disabled"
    call("EnableKey", KeyId=key)
    call("RotateKeyOnDemand", KeyId=key)
    # Old material that nothing needs is destroyed, and the key does without it.
    call("DestroyKeyMaterial", KeyId=key, KeyMaterialId=one)
    assert state(call, key) == "Enabled" and one not in {entry[0] for entry in rotations(call, key)}
    with pytest.raises(errors.InvalidCiphertext):
        call("Decrypt", CiphertextBlob=old)
    daemon.stop(9)
    daemon.start()
    assert state(call, key) == "Enabled" and len(rotations(call, key)) == 2


def test_rows_of_before_keys_took_several_are_read():
    from kmsd.keys.registry import Import, _imports

    assert _imports({"imported_id": "x", "valid_to": 5.0, "expiration_model": "KEY_MATERIAL_EXPIRES"}) == {1: Import("x", 5.0, "KEY_MATERIAL_EXPIRES")}
    assert _imports({"imported_id": None}) == {} and _imports({}) == {}
    assert _imports({"imports": [[2, "y", None, None, "d"]]}) == {2: Import("y", None, None, "d")}
