"""AWS's own Encryption SDK opens an advanced SecureString, KMS alone opens a standard one: the owner needs no kmsfs for it."""

import base64

import pytest

aws_encryption_sdk = pytest.importorskip("aws_encryption_sdk", reason="aws-encryption-sdk is a test dependency")

from aws_encryption_sdk.identifiers import CommitmentPolicy
from aws_encryption_sdk.key_providers.base import MasterKey, MasterKeyConfig, MasterKeyProvider, MasterKeyProviderConfig
from aws_encryption_sdk.structures import DataKey

PROVIDER = "kmsfs"


class _KeyConfig(MasterKeyConfig):
    provider_id = PROVIDER


def provider_over(session):
    """A master key provider whose Decrypt is kmsd's."""

    class Key(MasterKey):
        provider_id = PROVIDER
        _config_class = _KeyConfig

        def _generate_data_key(self, algorithm, encryption_context):
            raise NotImplementedError

        def _encrypt_data_key(self, data_key, algorithm, encryption_context):
            raise NotImplementedError

        def _decrypt_data_key(self, encrypted_data_key, algorithm, encryption_context):
            request = {"CiphertextBlob": encrypted_data_key.encrypted_data_key, "EncryptionContext": encryption_context}
            plain = session.call("Decrypt", request)["Plaintext"]
            return DataKey(encrypted_data_key.key_provider, plain, encrypted_data_key.encrypted_data_key)

    class Provider(MasterKeyProvider):
        provider_id = PROVIDER
        _config_class = MasterKeyProviderConfig

        def _new_master_key(self, key_id):
            return Key(config=_KeyConfig(key_id=key_id))

    return Provider()


@pytest.mark.parametrize("size", [1, 4096, 4097, 8192])
def test_the_encryption_sdk_opens_an_advanced_secure_string(daemon, size):
    session = daemon.session()
    key = session.call("CreateKey", {})["KeyMetadata"]["KeyId"]
    value = "".join(chr(97 + i % 26) for i in range(size))
    request = {"Name": "/sdk/a", "Value": value, "Type": "SecureString", "Tier": "Advanced", "KeyId": key, "Overwrite": True}
    session.call("PutParameter", request)
    message = base64.b64decode(session.call("GetParameter", {"Name": "/sdk/a"})["Parameter"]["Value"])
    client = aws_encryption_sdk.EncryptionSDKClient(commitment_policy=CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT)
    plain, header = client.decrypt(source=message, key_provider=provider_over(session))
    assert plain.decode() == value
    arn = session.call("GetParameter", {"Name": "/sdk/a"})["Parameter"]["ARN"]
    assert header.encryption_context["PARAMETER_ARN"] == arn
    broken = bytearray(message)
    broken[-1] ^= 1
    with pytest.raises(Exception):
        client.decrypt(source=bytes(broken), key_provider=provider_over(session))


def test_kms_alone_opens_a_standard_secure_string(daemon):
    session = daemon.session()
    key = session.call("CreateKey", {})["KeyMetadata"]["KeyId"]
    session.call("PutParameter", {"Name": "/sdk/s", "Value": "s3cret", "Type": "SecureString", "KeyId": key})
    stored = session.call("GetParameter", {"Name": "/sdk/s"})["Parameter"]
    blob = base64.b64decode(stored["Value"])
    opened = session.call("Decrypt", {"CiphertextBlob": blob, "EncryptionContext": {"PARAMETER_ARN": stored["ARN"]}})
    assert opened["Plaintext"] == b"s3cret"
