"""Kinds of KMS keys: which usages and algorithms each key spec has (KMS developer guide, "Key spec reference").

Not offered: SM2 (China regions only), ML_KEM_512 and the prehashed form of Ed25519, which the cryptographic library lacks.
"""

from dataclasses import dataclass, field

from kmsfs.errors import InvalidKeyUsage, ShapeError, UnsupportedOperation

ENCRYPT, SIGN, MAC = "ENCRYPT_DECRYPT", "SIGN_VERIFY", "GENERATE_VERIFY_MAC"
AGREE, ENCAPSULATE = "KEY_AGREEMENT", "ENCAPSULATE_DECAPSULATE"
SYMMETRIC = "SYMMETRIC_DEFAULT"

_OAEP = ("RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256")
_RSA_SIGN = tuple(
    f"RSASSA_{scheme}_SHA_{bits}" for scheme in ("PKCS1_V1_5", "PSS") for bits in (256, 384, 512)
)
_ECDH = ("ECDH",)


@dataclass(frozen=True, slots=True)
class KeySpec:
    """One key spec: its algorithms by usage."""

    name: str
    algorithms: dict[str, tuple[str, ...]] = field(default_factory=dict)


def _ec(name: str, bits: int, *, agree: bool = True) -> KeySpec:
    algorithms: dict[str, tuple[str, ...]] = {SIGN: (f"ECDSA_SHA_{bits}",)}
    if agree:
        algorithms[AGREE] = _ECDH
    return KeySpec(name, algorithms)


SPECS: dict[str, KeySpec] = {
    spec.name: spec
    for spec in (
        KeySpec(SYMMETRIC, {ENCRYPT: (SYMMETRIC,)}),
        *(KeySpec(f"RSA_{bits}", {ENCRYPT: _OAEP, SIGN: _RSA_SIGN}) for bits in (2048, 3072, 4096)),
        _ec("ECC_NIST_P256", 256),
        _ec("ECC_NIST_P384", 384),
        _ec("ECC_NIST_P521", 512),
        _ec("ECC_SECG_P256K1", 256, agree=False),
        KeySpec("ECC_NIST_EDWARDS25519", {SIGN: ("ED25519_SHA_512", "ED25519_PH_SHA_512")}),
        *(KeySpec(f"HMAC_{bits}", {MAC: (f"HMAC_SHA_{bits}",)}) for bits in (224, 256, 384, 512)),
        *(KeySpec(f"ML_DSA_{level}", {SIGN: ("ML_DSA_SHAKE_256",)}) for level in (44, 65, 87)),
        *(KeySpec(f"ML_KEM_{level}", {ENCAPSULATE: ("ML_KEM",)}) for level in (768, 1024)),
    )
}
DATA_KEY_PAIR_SPECS = frozenset(name for name in SPECS if name.startswith(("RSA_", "ECC_", "ML_KEM_")))


def is_asymmetric(spec: str) -> bool:
    """Whether keys of this spec have a public half."""
    return spec != SYMMETRIC and not spec.startswith("HMAC_")


def usage_of(spec_name: str, usage: str | None) -> str:
    """Return the usage of a new key: the one asked for, or the only one that its spec has.

    Raises:
        UnsupportedOperation: if this spec is not offered here.
        ShapeError: if the usage is missing or does not fit the spec, with AWS's text.
    """
    spec = SPECS.get(spec_name)
    if spec is None:
        raise UnsupportedOperation(f"KeySpec {spec_name} is not offered here.")
    if usage is None:
        if spec_name == SYMMETRIC:
            return ENCRYPT
        raise ShapeError(
            "You must specify a KeyUsage value for all KMS keys except for symmetric encryption keys."
        )
    if usage not in spec.algorithms:
        raise ShapeError(f"KeyUsage {usage} is not compatible with KeySpec {spec_name}")
    return usage


def require_algorithm(spec_name: str, usage: str, algorithm: str) -> None:
    """Check that a key may be used with an algorithm.

    Raises:
        InvalidKeyUsage: if not, with AWS's text.
    """
    if algorithm not in SPECS[spec_name].algorithms.get(usage, ()):
        raise InvalidKeyUsage(f"Algorithm {algorithm} is incompatible with key spec {spec_name}.")
