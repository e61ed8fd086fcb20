"""Rules across the fields of one request, referred to by the declarations."""

from typing import Any

from kmsfs.api.keyspecs import usage_of
from kmsfs.api.shapes.crypto import GenerateDataKeyRequest, GenerateRandomRequest
from kmsfs.api.shapes.grants import CreateGrantRequest, RetireGrantRequest
from kmsfs.api.shapes.keys import CreateKeyRequest, TagResourceRequest
from kmsfs.api.shapes.keystores import CreateCustomKeyStoreRequest
from kmsfs.errors import InvalidTag, ShapeError, UnsupportedOperation
from kmsfs.formats.context import check_limits

CLOUD_HSM = "AWS_CLOUDHSM"
"""Origin of keys in custom key stores."""


def one_key_size(request: GenerateDataKeyRequest) -> None:
    """KeySpec xor NumberOfBytes, with AWS's text."""
    if (request.key_spec is None) == (request.number_of_bytes is None):
        raise ShapeError("Please specify either number of bytes or key spec.")


def needs_number_of_bytes(request: GenerateRandomRequest) -> None:
    """AWS's model calls NumberOfBytes optional; the service does not."""
    if request.number_of_bytes is None:
        raise ShapeError("NumberOfBytes is required.")


def contexts_fit(*fields: str) -> Any:
    """Return a rule that every encryption context in `fields` is within its limits."""

    def rule(request: Any) -> None:
        """Refuse a request with a context that is too large."""
        for name in fields:
            value = getattr(request, name)
            for context in value if isinstance(value, list) else (value,):
                if context:
                    check_limits(context)

    return rule


def store_in_a_token(request: CreateCustomKeyStoreRequest) -> None:
    """A custom key store needs a token and its PIN; external key store proxies are another kind."""
    if request.custom_key_store_type != CLOUD_HSM:
        raise UnsupportedOperation(f"External key store proxies are not offered here; a PKCS #11 token is {CLOUD_HSM}.")
    if request.cloud_hsm_cluster_id is None or request.key_store_password is None:
        raise ShapeError("A custom key store needs CloudHsmClusterId, the name of its token, and KeyStorePassword, the token's PIN.")


def one_grant_constraint(request: CreateGrantRequest) -> None:
    """EncryptionContextEquals xor EncryptionContextSubset."""
    constraints = request.constraints
    if constraints is None:
        return
    both = (constraints.encryption_context_equals, constraints.encryption_context_subset)
    if None not in both:
        raise ShapeError("A grant has EncryptionContextEquals or EncryptionContextSubset, not both.")
    for context in both:
        if context:
            check_limits(context)


def token_or_id(request: RetireGrantRequest) -> None:
    """A grant is named by its token, or by key and grant id."""
    by_id = request.key_id is not None and request.grant_id is not None
    if (request.grant_token is not None) == by_id:
        raise ShapeError("Name the grant by GrantToken, or by KeyId and GrantId.")


def one_key_spec(request: CreateKeyRequest) -> None:
    """KeySpec and CustomerMasterKeySpec are two names of one field; its usage must fit (CreateKey, AWS KMS API)."""
    if None not in (request.customer_master_key_spec, request.key_spec):
        raise ShapeError("You cannot specify KeySpec and CustomerMasterKeySpec in the same request.")
    spec = request.key_spec or request.customer_master_key_spec or "SYMMETRIC_DEFAULT"
    request.key_spec = spec
    if request.origin == "EXTERNAL_KEY_STORE":
        raise UnsupportedOperation(f"Origin {request.origin} is not offered here.")
    if (request.origin == CLOUD_HSM) != (request.custom_key_store_id is not None):
        raise ShapeError(f"Origin {CLOUD_HSM} and CustomKeyStoreId belong together.")
    if request.origin == CLOUD_HSM and (spec != "SYMMETRIC_DEFAULT" or request.multi_region):
        raise UnsupportedOperation("A custom key store keeps symmetric encryption keys of a single Region.")
    usage_of(spec, request.key_usage)


def good_tags(request: CreateKeyRequest | TagResourceRequest) -> None:
    """Tag keys are unique and not reserved (KMS API, TagException)."""
    keys = [tag.tag_key for tag in request.tags]
    if len(keys) != len(set(keys)):
        raise InvalidTag("Duplicate tag keys")
    if any(key.lower().startswith("aws:") for key in keys):
        raise InvalidTag("Tags beginning with aws: are reserved")
