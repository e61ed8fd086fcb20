"""Key pairs, HMAC keys, rotation and tags: what each kind does, what it refuses, and that others agree with the results."""

import hashlib
import hmac
import json

import botocore.session
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, utils
from nacl import bindings

from kmsfs import errors
from kmsfs.api.keyspecs import SPECS, is_asymmetric
from kmsfs.api.registry import OPERATIONS
from support.wirefields import wire_fields

MODEL = botocore.session.get_session().get_service_model("kms")


def make(call, spec, usage):
    return call("CreateKey", KeySpec=spec, KeyUsage=usage)["KeyMetadata"]


SIGNERS = [
    (spec, algorithm)
    for spec, kind in SPECS.items()
    for algorithm in kind.algorithms.get("SIGN_VERIFY", ())
    if algorithm != "ED25519_PH_SHA_512"
]


@pytest.fixture(scope="module")
def signer_keys(daemon):
    session = daemon.session()
    made = {}

    def of(spec):
        if spec not in made:
            made[spec] = session.call("CreateKey", {"KeySpec": spec, "KeyUsage": "SIGN_VERIFY"})["KeyMetadata"]["KeyId"]
        return made[spec]

    yield of
    session.close()


def digest_of(algorithm, message):
    return hashlib.new(f"sha{algorithm.rpartition('_')[2]}", message).digest()


def outside_verify(public, algorithm, message, signature):
    if algorithm.startswith("ECDSA"):
        public.verify(signature, message, ec.ECDSA(getattr(hashes, "SHA" + algorithm.rpartition("_")[2])()))
    elif algorithm.startswith("RSASSA"):
        chosen = getattr(hashes, "SHA" + algorithm.rpartition("_")[2])()
        scheme = padding.PSS(padding.MGF1(chosen), chosen.digest_size) if "PSS" in algorithm else padding.PKCS1v15()
        public.verify(signature, message, scheme, chosen)
    else:
        public.verify(signature, message)


@pytest.mark.parametrize("spec,algorithm", SIGNERS)
def test_signatures(call, signer_keys, spec, algorithm):
    key, message = signer_keys(spec), b"the message" * 9
    made = call("Sign", KeyId=key, Message=message, SigningAlgorithm=algorithm)
    request = {"KeyId": key, "Signature": made["Signature"], "SigningAlgorithm": algorithm}
    assert call("Verify", Message=message, **request)["SignatureValid"] is True
    with pytest.raises(errors.SignatureMismatch):
        call("Verify", Message=message + b".", **request)
    broken = bytearray(made["Signature"])
    broken[len(broken) // 2] ^= 1
    with pytest.raises(errors.SignatureMismatch):
        call("Verify", Message=message, **{**request, "Signature": bytes(broken)})
    public = serialization.load_der_public_key(call("GetPublicKey", KeyId=key)["PublicKey"])
    outside_verify(public, algorithm, message, made["Signature"])
    with pytest.raises(InvalidSignature):
        outside_verify(public, algorithm, message + b".", made["Signature"])
    if algorithm.startswith(("ECDSA", "RSASSA")):
        digest = digest_of(algorithm, message)
        by_digest = call("Sign", KeyId=key, Message=digest, MessageType="DIGEST", SigningAlgorithm=algorithm)["Signature"]
        assert call("Verify", KeyId=key, Message=message, Signature=by_digest, SigningAlgorithm=algorithm)["SignatureValid"]
        with pytest.raises(errors.InvalidRequest, match="Digest is invalid length"):
            call("Sign", KeyId=key, Message=digest + b"x", MessageType="DIGEST", SigningAlgorithm=algorithm)
    else:
        with pytest.raises(errors.InvalidRequest):
            call("Sign", KeyId=key, Message=b"x" * 64, MessageType="DIGEST", SigningAlgorithm=algorithm)


def test_ed25519_of_a_digest(call, signer_keys):
    """AWS KMS hashes the digest once more (API reference, Sign, MessageType)."""
    key, algorithm = signer_keys("ECC_NIST_EDWARDS25519"), "ED25519_PH_SHA_512"
    assert call("GetPublicKey", KeyId=key)["SigningAlgorithms"] == ["ED25519_SHA_512", algorithm]
    digest = hashlib.sha512(b"the message").digest()
    request = {"KeyId": key, "SigningAlgorithm": algorithm}
    made = call("Sign", Message=digest, MessageType="DIGEST", **request)["Signature"]
    assert call("Verify", Message=digest, MessageType="DIGEST", Signature=made, **request)["SignatureValid"]
    public = serialization.load_der_public_key(call("GetPublicKey", KeyId=key)["PublicKey"])
    other = bindings.crypto_sign_ed25519ph_state()
    bindings.crypto_sign_ed25519ph_update(other, digest)
    assert bindings.crypto_sign_ed25519ph_final_verify(other, made, public.public_bytes_raw())
    with pytest.raises(InvalidSignature):
        public.verify(made, digest)
    for wrong in (made[:-1], made + b"x", bytes(64), made[32:] + made[:32]):
        with pytest.raises(errors.SignatureMismatch):
            call("Verify", Message=digest, MessageType="DIGEST", Signature=wrong, **request)
    with pytest.raises(errors.SignatureMismatch):
        call("Verify", Message=hashlib.sha512(b"another").digest(), MessageType="DIGEST", Signature=made, **request)
    with pytest.raises(errors.SignatureMismatch):
        call("Verify", KeyId=key, Message=digest, Signature=made, SigningAlgorithm="ED25519_SHA_512")
    for kind, message, told in (("RAW", b"m", "not valid"), ("EXTERNAL_MU", digest, "not valid"), ("DIGEST", digest[:-1], "invalid length")):
        with pytest.raises(errors.InvalidRequest, match=told):
            call("Sign", Message=message, MessageType=kind, **request)


def test_ml_dsa_external_mu(call, signer_keys):
    """mu = SHAKE256(SHAKE256(public key, 64) || 0x00 || 0x00 || message, 64) (FIPS 204 section 6.2, empty context)."""
    key, message = signer_keys("ML_DSA_65"), b"m" * 100
    public = serialization.load_der_public_key(call("GetPublicKey", KeyId=key)["PublicKey"]).public_bytes_raw()
    mu = hashlib.shake_256(hashlib.shake_256(public).digest(64) + b"\0\0" + message).digest(64)
    request = {"KeyId": key, "SigningAlgorithm": "ML_DSA_SHAKE_256"}
    made = call("Sign", Message=mu, MessageType="EXTERNAL_MU", **request)["Signature"]
    assert call("Verify", Message=message, Signature=made, **request)["SignatureValid"]
    raw = call("Sign", Message=message, **request)["Signature"]
    assert call("Verify", Message=mu, MessageType="EXTERNAL_MU", Signature=raw, **request)["SignatureValid"]
    with pytest.raises(errors.InvalidRequest, match="invalid length"):
        call("Sign", Message=mu[:-1], MessageType="EXTERNAL_MU", **request)


@pytest.mark.parametrize("bits", [224, 256, 384, 512])
def test_macs(call, bits):
    key, algorithm = make(call, f"HMAC_{bits}", "GENERATE_VERIFY_MAC"), f"HMAC_SHA_{bits}"
    assert key["MacAlgorithms"] == [algorithm] and "EncryptionAlgorithms" not in key
    made = call("GenerateMac", KeyId=key["KeyId"], Message=b"m", MacAlgorithm=algorithm)
    assert len(made["Mac"]) == bits // 8 and made["KeyId"] == key["Arn"]
    assert call("VerifyMac", KeyId=key["KeyId"], Message=b"m", MacAlgorithm=algorithm, Mac=made["Mac"])["MacValid"]
    for message, mac in ((b"n", made["Mac"]), (b"m", made["Mac"][:-1]), (b"m", made["Mac"] + b"\0")):
        with pytest.raises(errors.MacMismatch):
            call("VerifyMac", KeyId=key["KeyId"], Message=message, MacAlgorithm=algorithm, Mac=mac)
    other = "HMAC_SHA_256" if bits != 256 else "HMAC_SHA_512"
    with pytest.raises(errors.InvalidKeyUsage, match="incompatible with key spec"):
        call("GenerateMac", KeyId=key["KeyId"], Message=b"m", MacAlgorithm=other)


@pytest.mark.parametrize("algorithm,most", [("RSAES_OAEP_SHA_1", 214), ("RSAES_OAEP_SHA_256", 190)])
def test_rsa_encryption(call, algorithm, most):
    key = make(call, "RSA_2048", "ENCRYPT_DECRYPT")
    assert key["EncryptionAlgorithms"] == ["RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256"]
    request = {"KeyId": key["KeyId"], "EncryptionAlgorithm": algorithm}
    sealed = call("Encrypt", Plaintext=b"p" * most, **request)
    assert sealed["EncryptionAlgorithm"] == algorithm and len(sealed["CiphertextBlob"]) == 256
    assert call("Decrypt", CiphertextBlob=sealed["CiphertextBlob"], **request)["Plaintext"] == b"p" * most
    with pytest.raises(errors.InvalidRequest, match=f"cannot encrypt data larger than {most} bytes"):
        call("Encrypt", Plaintext=b"p" * (most + 1), **request)
    with pytest.raises(errors.InvalidCiphertext):
        call("Decrypt", CiphertextBlob=sealed["CiphertextBlob"][:-1] + b"\0", **request)
    with pytest.raises(errors.InvalidRequest, match="KeyId is required"):
        call("Decrypt", CiphertextBlob=sealed["CiphertextBlob"], EncryptionAlgorithm=algorithm)
    with pytest.raises(errors.InvalidRequest, match="encryption context"):
        call("Encrypt", Plaintext=b"p", EncryptionContext={"a": "b"}, **request)
    with pytest.raises(errors.InvalidKeyUsage, match="incompatible"):
        call("Encrypt", KeyId=key["KeyId"], Plaintext=b"p")
    # Others encrypt to it with the public key alone.
    public = serialization.load_der_public_key(call("GetPublicKey", KeyId=key["KeyId"])["PublicKey"])
    chosen = hashes.SHA1() if algorithm.endswith("_1") else hashes.SHA256()
    outside = public.encrypt(b"from outside", padding.OAEP(padding.MGF1(chosen), chosen, None))
    assert call("Decrypt", CiphertextBlob=outside, **request)["Plaintext"] == b"from outside"
    symmetric = call("CreateKey")["KeyMetadata"]["KeyId"]
    moved = call("ReEncrypt", CiphertextBlob=outside, SourceKeyId=key["KeyId"], SourceEncryptionAlgorithm=algorithm,
                 DestinationKeyId=symmetric, DestinationEncryptionContext={"a": "b"})  # fmt: skip
    assert call("Decrypt", CiphertextBlob=moved["CiphertextBlob"], EncryptionContext={"a": "b"})["Plaintext"] == b"from outside"


@pytest.mark.parametrize("spec,curve", [("ECC_NIST_P256", ec.SECP256R1), ("ECC_NIST_P384", ec.SECP384R1), ("ECC_NIST_P521", ec.SECP521R1)])
def test_key_agreement(call, spec, curve):
    key = make(call, spec, "KEY_AGREEMENT")
    assert key["KeyAgreementAlgorithms"] == ["ECDH"]
    mine = ec.generate_private_key(curve())
    der = mine.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    shared = call("DeriveSharedSecret", KeyId=key["KeyId"], KeyAgreementAlgorithm="ECDH", PublicKey=der)["SharedSecret"]
    public = serialization.load_der_public_key(call("GetPublicKey", KeyId=key["KeyId"])["PublicKey"])
    assert shared == mine.exchange(ec.ECDH(), public)
    other = ec.generate_private_key(ec.SECP256K1()).public_key()
    wrong = other.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    for rubbish in (wrong, b"rubbish", der[:-1]):
        with pytest.raises(errors.InvalidRequest):
            call("DeriveSharedSecret", KeyId=key["KeyId"], KeyAgreementAlgorithm="ECDH", PublicKey=rubbish)


@pytest.mark.parametrize("level", [768, 1024])
def test_encapsulation(call, level):
    key = make(call, f"ML_KEM_{level}", "ENCAPSULATE_DECAPSULATE")
    made = call("Encapsulate", KeyId=key["KeyId"], EncapsulationAlgorithm="ML_KEM")
    request = {"KeyId": key["KeyId"], "EncapsulationAlgorithm": "ML_KEM"}
    opened = call("Decapsulate", SharedSecretCiphertextBlob=made["SharedSecretCiphertextBlob"], **request)
    assert opened["SharedSecret"] == made["SharedSecret"] and len(made["SharedSecret"]) == 32
    public = serialization.load_der_public_key(call("GetPublicKey", KeyId=key["KeyId"])["PublicKey"])
    secret, sealed = public.encapsulate()
    assert call("Decapsulate", SharedSecretCiphertextBlob=sealed, **request)["SharedSecret"] == secret
    with pytest.raises(errors.InvalidCiphertext):
        call("Decapsulate", SharedSecretCiphertextBlob=sealed[:-1], **request)


def test_data_key_pairs(call):
    key = call("CreateKey")["KeyMetadata"]["KeyId"]
    for spec in ("RSA_4096", "ECC_NIST_P384", "ECC_SECG_P256K1", "ECC_NIST_EDWARDS25519", "ML_KEM_768"):
        made = call("GenerateDataKeyPair", KeyId=key, KeyPairSpec=spec, EncryptionContext={"a": "b"})
        opened = call("Decrypt", CiphertextBlob=made["PrivateKeyCiphertextBlob"], EncryptionContext={"a": "b"})["Plaintext"]
        assert opened == made["PrivateKeyPlaintext"]
        private = serialization.load_der_private_key(opened, None)
        public = private.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        assert public == made["PublicKey"]
    assert "PrivateKeyPlaintext" not in call("GenerateDataKeyPairWithoutPlaintext", KeyId=key, KeyPairSpec="ECC_NIST_P256")
    with pytest.raises(errors.UnsupportedOperation):
        call("GenerateDataKeyPair", KeyId=key, KeyPairSpec="SM2")


def test_a_usage_is_for_ever(call, signer_keys):
    signer, arn = signer_keys("ECC_NIST_P256"), call("DescribeKey", KeyId=signer_keys("ECC_NIST_P256"))["KeyMetadata"]["Arn"]
    symmetric = call("CreateKey")["KeyMetadata"]["KeyId"]
    with pytest.raises(errors.InvalidKeyUsage, match=f"{arn} key usage is SIGN_VERIFY which is not valid for Encrypt."):
        call("Encrypt", KeyId=signer, Plaintext=b"x")
    with pytest.raises(errors.InvalidKeyUsage, match="key usage is ENCRYPT_DECRYPT which is not valid for Sign."):
        call("Sign", KeyId=symmetric, Message=b"x", SigningAlgorithm="ECDSA_SHA_256")
    with pytest.raises(errors.InvalidKeyUsage, match="incompatible with key spec ECC_NIST_P256"):
        call("Sign", KeyId=signer, Message=b"x", SigningAlgorithm="ECDSA_SHA_384")
    with pytest.raises(errors.UnsupportedOperation):
        call("GetPublicKey", KeyId=symmetric)
    for operation in ("EnableKeyRotation", "RotateKeyOnDemand", "GetKeyRotationStatus"):
        with pytest.raises(errors.UnsupportedOperation):
            call(operation, KeyId=signer)
    rsa = make(call, "RSA_2048", "ENCRYPT_DECRYPT")["KeyId"]
    with pytest.raises(errors.InvalidKeyUsage):
        call("GenerateDataKey", KeyId=rsa, KeySpec="AES_256")
    with pytest.raises(errors.InvalidKeyUsage):
        call("GenerateDataKeyBatch", KeyId=rsa, EncryptionContexts=[{}])


@pytest.mark.parametrize("request_,kind,text", [
    ({"KeySpec": "RSA_2048"}, errors.InvalidRequest, "must specify a KeyUsage"),
    ({"KeySpec": "RSA_2048", "KeyUsage": "KEY_AGREEMENT"}, errors.InvalidRequest, "KeyUsage KEY_AGREEMENT is not compatible with KeySpec RSA_2048"),
    ({"KeySpec": "SYMMETRIC_DEFAULT", "KeyUsage": "SIGN_VERIFY"}, errors.InvalidRequest, "not compatible"),
    ({"KeySpec": "SM2", "KeyUsage": "SIGN_VERIFY"}, errors.UnsupportedOperation, "SM2"),
    ({"KeySpec": "NONSENSE"}, errors.InvalidRequest, "keySpec"),
    ({"Origin": "AWS_CLOUDHSM"}, errors.InvalidRequest, "AWS_CLOUDHSM"),
    ({"Origin": "EXTERNAL_KEY_STORE"}, errors.UnsupportedOperation, "EXTERNAL_KEY_STORE"),
    ({"KeySpec": "HMAC_256", "CustomerMasterKeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC"}, errors.InvalidRequest, "same request"),
    ({"Tags": [{"TagKey": "a", "TagValue": "1"}, {"TagKey": "a", "TagValue": "2"}]}, errors.InvalidTag, "Duplicate tag keys"),
    ({"Tags": [{"TagKey": "aws:x", "TagValue": "1"}]}, errors.InvalidTag, "reserved"),
])  # fmt: skip
def test_create_key_refuses(call, request_, kind, text):
    with pytest.raises(kind, match=text):
        call("CreateKey", **request_)


def test_tags(call):
    key = call("CreateKey", Tags=[{"TagKey": "a", "TagValue": "1"}])["KeyMetadata"]["KeyId"]
    call("TagResource", KeyId=key, Tags=[{"TagKey": "a", "TagValue": "2"}, {"TagKey": "b", "TagValue": ""}])
    assert call("ListResourceTags", KeyId=key)["Tags"] == [{"TagKey": "a", "TagValue": "2"}, {"TagKey": "b", "TagValue": ""}]
    first = call("ListResourceTags", KeyId=key, Limit=1)
    assert first["Truncated"] and call("ListResourceTags", KeyId=key, Marker=first["NextMarker"])["Tags"][0]["TagKey"] == "b"
    call("UntagResource", KeyId=key, TagKeys=["a", "none"])
    assert [tag["TagKey"] for tag in call("ListResourceTags", KeyId=key)["Tags"]] == ["b"]
    with pytest.raises(errors.InvalidTag, match="Too many tags"):
        call("TagResource", KeyId=key, Tags=[{"TagKey": f"t{n}", "TagValue": ""} for n in range(50)])
    assert call("ListKeyPolicies", KeyId=key)["PolicyNames"] == ["default"]


def test_rotation(call):
    key = call("CreateKey")["KeyMetadata"]["KeyId"]
    assert call("GetKeyRotationStatus", KeyId=key)["KeyRotationEnabled"] is False
    call("EnableKeyRotation", KeyId=key, RotationPeriodInDays=90)
    status = call("GetKeyRotationStatus", KeyId=key)
    assert status["KeyRotationEnabled"] and status["RotationPeriodInDays"] == 90 and status["NextRotationDate"]
    with pytest.raises(errors.InvalidRequest):
        call("EnableKeyRotation", KeyId=key, RotationPeriodInDays=89)
    blob = call("Encrypt", KeyId=key, Plaintext=b"old")["CiphertextBlob"]
    for _ in range(25):
        call("RotateKeyOnDemand", KeyId=key)
    with pytest.raises(errors.LimitExceeded, match="on-demand rotations limit"):
        call("RotateKeyOnDemand", KeyId=key)
    assert call("Decrypt", CiphertextBlob=blob)["Plaintext"] == b"old"
    listed = call("ListKeyRotations", KeyId=key)["Rotations"]
    assert len(listed) == 25 and {entry["RotationType"] for entry in listed} == {"ON_DEMAND"}
    assert len({entry["KeyMaterialId"] for entry in listed}) == 25
    whole = call("ListKeyRotations", KeyId=key, IncludeKeyMaterial="ALL_KEY_MATERIAL")["Rotations"]
    assert len(whole) == 26 and [entry["KeyMaterialState"] for entry in whole].count("CURRENT") == 1
    call("DisableKeyRotation", KeyId=key)
    assert call("GetKeyRotationStatus", KeyId=key)["KeyRotationEnabled"] is False


def test_rotation_by_time_and_everything_after_a_restart(fresh_daemon, tmp_path):
    """The state holds specs, usages, tags and rotations; automatic rotation acts on time."""
    from kmsd.config import Config
    from kmsd.keys.material import MaterialVault
    from kmsd.keys.registry import KeyRegistry
    from kmsd.keys.upkeep import KeyUpkeepService
    from kmsd.realm import open_realm
    from kmsd.store.sqlite import SqliteStore
    from kmsd.store.sealing import RowSealer
    import os
    import time

    session = fresh_daemon.start().session()
    signer = session.call("CreateKey", {"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY", "Tags": [{"TagKey": "k", "TagValue": "v"}]})["KeyMetadata"]["KeyId"]
    made = session.call("Sign", {"KeyId": signer, "Message": b"m", "SigningAlgorithm": "ECDSA_SHA_256"})["Signature"]
    key = session.call("CreateKey", {})["KeyMetadata"]["KeyId"]
    session.call("EnableKeyRotation", {"KeyId": key})
    blob = session.call("Encrypt", {"KeyId": key, "Plaintext": b"before"})["CiphertextBlob"]
    fresh_daemon.stop()
    config = Config(fresh_daemon.state, fresh_daemon.socket)
    realm = open_realm(config, None)
    store = SqliteStore(config.database, RowSealer(realm.keyring.domain_keys, os.urandom))
    registry = KeyRegistry("0" * 12, store, MaterialVault(realm.keyring.realm_id, realm.keyring.domain_keys, os.urandom))
    upkeep = KeyUpkeepService(registry)
    assert upkeep.rotate_due(time.time()) == []
    assert len(upkeep.rotate_due(time.time() + 366 * 86_400)) == 1
    assert upkeep.rotate_due(time.time() + 366 * 86_400) == []
    store.close()
    session = fresh_daemon.start("--accept-rollback").session()
    assert session.call("Verify", {"KeyId": signer, "Message": b"m", "Signature": made, "SigningAlgorithm": "ECDSA_SHA_256"})["SignatureValid"]
    assert session.call("ListResourceTags", {"KeyId": signer})["Tags"] == [{"TagKey": "k", "TagValue": "v"}]
    assert session.call("Decrypt", {"CiphertextBlob": blob})["Plaintext"] == b"before"
    assert session.call("ListKeyRotations", {"KeyId": key})["Rotations"][0]["RotationType"] == "AUTOMATIC"


def test_aliases_keep_to_one_kind_of_key(call, signer_keys):
    symmetric = call("CreateKey")["KeyMetadata"]["KeyId"]
    call("CreateAlias", AliasName="alias/kinds", TargetKeyId=symmetric)
    with pytest.raises(errors.KeyInvalidState):
        call("UpdateAlias", AliasName="alias/kinds", TargetKeyId=signer_keys("ECC_NIST_P256"))


# What AWS's model has and we do not take: each is refused by name as an unknown parameter.
NOT_OFFERED = {
    "Recipient", "CustomKeyStoreId", "XksKeyId", "XksProxyUriEndpoint", "XksProxyUriPath", "XksProxyVpcEndpointServiceName",
    "XksProxyVpcEndpointServiceOwner", "XksProxyAuthenticationCredential", "XksProxyConnectivity", "DryRunModifiers", "GranteeServicePrincipal", "RetiringServicePrincipal",
    "ResourceOwners",
}  # fmt: skip
# Optional in the model only for dry runs without a ciphertext, or for service principals: not offered.
REQUIRED_HERE = {"Decrypt": {"CiphertextBlob"}, "ReEncrypt": {"CiphertextBlob"}, "CreateGrant": {"GranteePrincipal"},
                 "ListRetirableGrants": {"RetiringPrincipal"}}  # fmt: skip
# What we take beyond AWS's model: a grant that ends by itself, and why it was made.
BEYOND = {"CreateGrant": {"ExpiresInSeconds", "Reason"}}
# A malformed alias or ARN is told apart from a missing one, where AWS's model lists no error for it.
MORE_ERRORS = {"InvalidArnException", "InvalidAliasNameException"}


@pytest.mark.parametrize("name", sorted(name for name, op in OPERATIONS.items() if op.service == "kms"))
def test_shapes_are_awss(name):
    """Names and required fields of every KMS operation, against botocore's service model."""
    ours, theirs = OPERATIONS[name], MODEL.operation_model(name)
    mine = {field: needed for field, needed in wire_fields(ours.request).items() if field not in BEYOND.get(name, set())}
    model = theirs.input_shape
    members = set(model.members) if model else set()
    assert set(mine) <= members and members - set(mine) <= NOT_OFFERED, members ^ set(mine)
    must = {field for field, needed in mine.items() if needed} - REQUIRED_HERE.get(name, set())
    assert must == set(model.required_members if model else ()), must
    answer = theirs.output_shape
    assert set(wire_fields(ours.response)) <= (set(answer.members) if answer else set())
    declared = {error.code for error in ours.errors} - {"AccessDeniedException", "ValidationException"}
    assert declared <= {shape.name for shape in theirs.error_shapes} | MORE_ERRORS, declared - {s.name for s in theirs.error_shapes}


def test_grants_fit_the_usage(call, signer_keys):
    who = call("GetStatus")["Principal"]
    signer, symmetric = signer_keys("ECC_NIST_P256"), call("CreateKey")["KeyMetadata"]["KeyId"]
    assert call("CreateGrant", KeyId=signer, GranteePrincipal=who, Operations=["Sign", "Verify", "GetPublicKey", "DescribeKey"])["GrantId"]
    for key, operation in ((signer, "Decrypt"), (signer, "ReEncryptTo"), (signer, "GenerateDataKeyPair"), (symmetric, "Sign")):
        with pytest.raises(errors.InvalidRequest, match=f"The operation {operation} is not valid"):
            call("CreateGrant", KeyId=key, GranteePrincipal=who, Operations=[operation])


def test_a_multi_region_key_is_one_of_a_single_region(call):
    key = call("CreateKey", MultiRegion=True)["KeyMetadata"]
    assert key["KeyId"].startswith("mrk-") and len(key["KeyId"]) == 36 and key["MultiRegion"] is True
    told = call("DescribeKey", KeyId=key["Arn"])["KeyMetadata"]["MultiRegionConfiguration"]
    assert told["MultiRegionKeyType"] == "PRIMARY" and told["PrimaryKey"]["Arn"] == key["Arn"] and told["ReplicaKeys"] == []
    sealed = call("Encrypt", KeyId=key["KeyId"], Plaintext=b"x", EncryptionContext={"a": "b"})
    assert call("Decrypt", CiphertextBlob=sealed["CiphertextBlob"], EncryptionContext={"a": "b"})["KeyId"] == key["Arn"]
    who = call("GetStatus")["Principal"]
    grant = call("CreateGrant", KeyId=key["KeyId"], GranteePrincipal=who, RetiringPrincipal=who, Operations=["Decrypt"])
    call("RetireGrant", GrantToken=grant["GrantToken"])
    with pytest.raises(errors.UnsupportedOperation, match="Replicas in other regions"):
        call("ReplicateKey", KeyId=key["KeyId"], ReplicaRegion="eu-west-1")
    for bad in ("mrk-1", "mrk-" + "A" * 32, "mrk-" + "0" * 31):
        with pytest.raises(errors.NotFound):
            call("DescribeKey", KeyId=bad)


def test_texts_of_aliases_and_enumerations(call):
    key = call("CreateKey")["KeyMetadata"]["KeyId"]
    for alias, code, text in (("alias/aws/ebs", "NotAuthorizedException", "^$"), ("alias/a:b", "ValidationException", "contains invalid characters for an alias"),
                              ("noprefix", "ValidationException", 'must start with the prefix "alias/"')):  # fmt: skip
        with pytest.raises(errors.KmsfsError, match=text) as caught:
            call("CreateAlias", AliasName=alias, TargetKeyId=key)
        assert caught.value.wire_code == code
    with pytest.raises(errors.KmsfsError, match=r"Value 'AES_512' at 'keySpec' failed to satisfy constraint: Member must satisfy enum value set: \[AES_256, AES_128\]"):
        call("GenerateDataKey", KeyId=key, KeySpec="AES_512")
    with pytest.raises(errors.KmsfsError, match=r"enum value set: \[.*ECDSA_SHA_256.*\]"):
        call("Sign", KeyId=key, Message=b"x", SigningAlgorithm="NONE")
