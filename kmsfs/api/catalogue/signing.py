"""Operations on key pairs and HMAC keys."""

from typing import Any

from kmsfs import errors
from kmsfs.api import keyspecs, rules
from kmsfs.api.operation import ENABLED, Operation, Resource, Shape
from kmsfs.api.shapes import signing

_USE = (
    errors.InvalidArn, errors.KeyNotFound, errors.AccessDenied, errors.KeyDisabled, errors.KeyInvalidState,
    errors.InvalidGrantToken, errors.InvalidKeyUsage,
)  # fmt: skip
_context = rules.contexts_fit("encryption_context")


def _declare(
    name: str, request: type[Shape], response: type[Shape], summary: str, usage: str | None, **more: Any
) -> Operation:
    dry_run = (errors.DryRunSucceeded,) if "dry_run" in request.__struct_fields__ else ()
    usages = frozenset({usage} if usage else {})
    more.setdefault("audit", ("key_id",))
    return Operation(
        name, "kms", f"kms:{name}", request, response, summary, resource=Resource.KEY, resource_field="key_id",
        key_states=ENABLED, cryptographic=True, grantable=True, usages=usages,
        errors=(*_USE, *more.pop("failures", ()), *dry_run), **more,
    )  # fmt: skip


SIGNING_OPERATIONS = (
    _declare(
        "Sign", signing.SignRequest, signing.SignResponse, "Sign a message or a digest.", keyspecs.SIGN,
        audit=("key_id", "message_type", "signing_algorithm"), secret=("Message",),
    ),
    _declare(
        "Verify", signing.VerifyRequest, signing.VerifyResponse, "Check a signature; one that does not fit is an error.",
        keyspecs.SIGN, audit=("key_id", "message_type", "signing_algorithm"), secret=("Message",),
        failures=(errors.SignatureMismatch,),
    ),
    _declare(
        "GenerateMac", signing.GenerateMacRequest, signing.GenerateMacResponse, "Return a message's HMAC.", keyspecs.MAC,
        audit=("key_id", "mac_algorithm"), secret=("Message",),
    ),
    _declare(
        "VerifyMac", signing.VerifyMacRequest, signing.VerifyMacResponse,
        "Check an HMAC; one that does not fit is an error.", keyspecs.MAC,
        audit=("key_id", "mac_algorithm"), secret=("Message", "Mac"), failures=(errors.MacMismatch,),
    ),
    _declare(
        "GetPublicKey", signing.GetPublicKeyRequest, signing.GetPublicKeyResponse, "Return the public half of a key pair.",
        None, failures=(errors.UnsupportedOperation,),
    ),
    _declare(
        "DeriveSharedSecret", signing.DeriveSharedSecretRequest, signing.DeriveSharedSecretResponse,
        "Agree on a secret with the owner of another public key.", keyspecs.AGREE,
        audit=("key_id", "key_agreement_algorithm"),
    ),
    _declare(
        "Encapsulate", signing.EncapsulateRequest, signing.EncapsulateResponse,
        "Make a secret that only the key pair's owner can take out of its ciphertext.", keyspecs.ENCAPSULATE,
        audit=("key_id", "encapsulation_algorithm"),
    ),
    _declare(
        "Decapsulate", signing.DecapsulateRequest, signing.DecapsulateResponse,
        "Take the shared secret out of a ciphertext.", keyspecs.ENCAPSULATE,
        audit=("key_id", "encapsulation_algorithm"), secret=("SharedSecretCiphertextBlob",),
        failures=(errors.InvalidCiphertext,),
    ),
    _declare(
        "GenerateDataKeyPair", signing.GenerateDataKeyPairRequest, signing.GenerateDataKeyPairResponse,
        "Return a fresh key pair with its private key in plaintext and wrapped under a KMS key.", keyspecs.ENCRYPT,
        audit=("key_id", "encryption_context", "key_pair_spec"), rules=(_context,),
        failures=(errors.UnsupportedOperation,),
    ),
    _declare(
        "GenerateDataKeyPairWithoutPlaintext", signing.GenerateDataKeyPairRequest,
        signing.GenerateDataKeyPairWithoutPlaintextResponse,
        "Return a fresh key pair with its private key wrapped under a KMS key only.", keyspecs.ENCRYPT,
        audit=("key_id", "encryption_context", "key_pair_spec"), rules=(_context,),
        failures=(errors.UnsupportedOperation,),
    ),
)  # fmt: skip
