"""Shapes of custom key stores (KMS API reference; bounds: botocore kms/2014-11-01, where they are not wider here)."""

from typing import Annotated, Literal

from msgspec import Meta

from kmsfs.api.operation import Shape
from kmsfs.api.shapes.common import Limit, Marker, Seconds

StoreId = Annotated[str, Meta(min_length=1, max_length=64)]
StoreName = Annotated[str, Meta(min_length=1, max_length=256)]
TokenName = Annotated[str, Meta(min_length=1, max_length=24, pattern=r"^[\w-]+$")]
"""What AWS calls the id of a CloudHSM cluster, `cluster-…` of 19 to 24 characters; here the name of a token that the operator declared."""
Pin = Annotated[str, Meta(min_length=4, max_length=32)]
Certificate = Annotated[str, Meta(min_length=1, max_length=5000)]


class CreateCustomKeyStoreRequest(Shape, kw_only=True):
    """A new store. Its password is the token's PIN. The certificate is kept and shown: a PKCS #11 module has its own way to its token."""

    custom_key_store_name: StoreName
    cloud_hsm_cluster_id: TokenName | None = None
    trust_anchor_certificate: Certificate | None = None
    key_store_password: Pin | None = None
    custom_key_store_type: Literal["AWS_CLOUDHSM", "EXTERNAL_KEY_STORE"] = "AWS_CLOUDHSM"


class CreateCustomKeyStoreResponse(Shape, kw_only=True):
    """The new store's id."""

    custom_key_store_id: str


class CustomKeyStoreIdRequest(Shape, kw_only=True):
    """A store."""

    custom_key_store_id: StoreId


class UpdateCustomKeyStoreRequest(Shape, kw_only=True):
    """What is to change of a store that is not connected."""

    custom_key_store_id: StoreId
    new_custom_key_store_name: StoreName | None = None
    key_store_password: Pin | None = None
    cloud_hsm_cluster_id: TokenName | None = None


class DescribeCustomKeyStoresRequest(Shape, kw_only=True):
    """One store by id or name, or a page of all."""

    custom_key_store_id: StoreId | None = None
    custom_key_store_name: StoreName | None = None
    limit: Limit = 100
    marker: Marker | None = None


class CustomKeyStore(Shape, kw_only=True):
    """A store. A connection that failed has a reason."""

    custom_key_store_id: str
    custom_key_store_name: str
    cloud_hsm_cluster_id: str
    trust_anchor_certificate: str | None = None
    connection_state: str
    connection_error_code: str | None = None
    creation_date: Seconds
    custom_key_store_type: str


class DescribeCustomKeyStoresResponse(Shape, kw_only=True):
    """A page of stores."""

    custom_key_stores: list[CustomKeyStore]
    next_marker: str | None = None
    truncated: bool
