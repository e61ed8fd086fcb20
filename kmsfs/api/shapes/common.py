"""Field types that several shapes share, with the bounds of botocore's service models (kms/2014-11-01)."""

from typing import Annotated, Literal

from msgspec import Meta

KeyIdText = Annotated[str, Meta(min_length=1, max_length=2048)]
AliasText = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[a-zA-Z0-9:/_-]+$")]
Blob = Annotated[bytes, Meta(min_length=1, max_length=6144)]
Plaintext = Annotated[bytes, Meta(min_length=1, max_length=4096)]
Context = dict[str, str]
GrantTokenText = Annotated[str, Meta(min_length=1, max_length=8192)]
GrantTokens = Annotated[list[GrantTokenText], Meta(max_length=10)]
GrantIdText = Annotated[str, Meta(min_length=1, max_length=128)]
PrincipalText = Annotated[str, Meta(min_length=1, max_length=256)]
Limit = Annotated[int, Meta(ge=1, le=1000)]
Marker = Annotated[str, Meta(min_length=1, max_length=1024)]
Description = Annotated[str, Meta(max_length=8192)]
PolicyText = Annotated[str, Meta(min_length=1, max_length=131072)]
NumberOfBytes = Annotated[int, Meta(ge=1, le=1024)]
DataKeySpec = Literal["AES_256", "AES_128"]
EncryptionAlgorithm = Literal["SYMMETRIC_DEFAULT", "RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256", "SM2PKE"]
GrantOperation = Literal[
    "Decrypt",
    "Encrypt",
    "GenerateDataKey",
    "GenerateDataKeyWithoutPlaintext",
    "ReEncryptFrom",
    "ReEncryptTo",
    "CreateGrant",
    "RetireGrant",
    "DescribeKey",
    "Sign",
    "Verify",
    "GetPublicKey",
    "GenerateDataKeyPair",
    "GenerateDataKeyPairWithoutPlaintext",
    "GenerateMac",
    "VerifyMac",
    "DeriveSharedSecret",
    "Encapsulate",
    "Decapsulate",
]
Seconds = float
"""A point in time: seconds since the epoch; clients turn it into a datetime."""
