"""Key pairs: RSA (RFC 8017), elliptic curves (FIPS 186-5, SEC 2), Ed25519 (RFC 8032), ML-DSA (FIPS 204), ML-KEM (FIPS 203).

Private keys travel as PKCS #8 DER, public keys as SubjectPublicKeyInfo DER, ECDSA signatures as ASN.1 (ANSI X9.62),
as AWS KMS does it. Names of specs and algorithms are AWS's.
"""

import hashlib
import hmac
from typing import Any

from cryptography.exceptions import InvalidSignature as _Mismatch
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, mlkem, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
    load_der_public_key,
)

from kmsfs.aead.ed25519ph import sign_prehashed, verify_prehashed
from kmsfs.errors import AuthenticationFailed, InvariantBroken, ShapeError, UnsupportedOperation

_CURVES: dict[str, ec.EllipticCurve] = {
    "ECC_NIST_P256": ec.SECP256R1(),
    "ECC_NIST_P384": ec.SECP384R1(),
    "ECC_NIST_P521": ec.SECP521R1(),
    "ECC_SECG_P256K1": ec.SECP256K1(),
}
_OTHERS: dict[str, Any] = {
    "ECC_NIST_EDWARDS25519": ed25519.Ed25519PrivateKey,
    "ML_DSA_44": mldsa.MLDSA44PrivateKey,
    "ML_DSA_65": mldsa.MLDSA65PrivateKey,
    "ML_DSA_87": mldsa.MLDSA87PrivateKey,
    "ML_KEM_768": mlkem.MLKEM768PrivateKey,
    "ML_KEM_1024": mlkem.MLKEM1024PrivateKey,
}
_HASHES: dict[str, hashes.HashAlgorithm] = {
    "1": hashes.SHA1(),  # noqa: S303  (RSAES_OAEP_SHA_1 is AWS's; collisions do not matter to OAEP)
    "224": hashes.SHA224(), "256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512(),
}  # fmt: skip
MU_BYTES = 64
RSA_EXPONENT = 65537


def generate_private(spec: str) -> bytes:
    """Return a new private key of a spec as PKCS #8 DER. Secret.

    Raises:
        UnsupportedOperation: if this machine's cryptographic library lacks the algorithm.
    """
    try:
        made = _generate(spec)
    except UnsupportedAlgorithm as error:
        raise UnsupportedOperation(
            f"KeySpec {spec} is not offered here.", hint="the cryptographic library of this machine lacks it"
        ) from error
    der: bytes = made.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return der


def _generate(spec: str) -> Any:
    if spec.startswith("RSA_"):
        return rsa.generate_private_key(RSA_EXPONENT, int(spec.removeprefix("RSA_")))
    if spec in _CURVES:
        return ec.generate_private_key(_CURVES[spec])
    return _OTHERS[spec].generate()


def hash_of(algorithm: str) -> hashes.HashAlgorithm:
    """Return the hash that ends an algorithm's name, such as `…_SHA_256`."""
    return _HASHES[algorithm.rpartition("_")[2]]


def digest_bytes(algorithm: str) -> int:
    """Return the length of an algorithm's digest in bytes."""
    return 64 if algorithm == "ML_DSA_SHAKE_256" else hash_of(algorithm).digest_size


def is_private_of(spec: str, der: bytes) -> bool:
    """Tell whether bytes are a private key of a spec as PKCS #8 DER, with all its numbers right."""
    try:
        key = load_der_private_key(der, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False
    if spec.startswith("RSA_"):
        return isinstance(key, rsa.RSAPrivateKey) and key.key_size == int(spec.removeprefix("RSA_"))
    if spec in _CURVES:
        return isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == _CURVES[spec].name
    return isinstance(key, _OTHERS[spec])


class KeyPair:
    """A loaded private key. Loading costs more than signing, so keep it."""

    __slots__ = ("_private", "spec")

    def __init__(self, spec: str, der: bytes) -> None:
        self.spec = spec
        # We made and sealed this key ourselves: checking an RSA key's primes again costs tens of milliseconds.
        self._private: Any = load_der_private_key(der, None, unsafe_skip_rsa_key_validation=True)

    def public_der(self) -> bytes:
        """Return the public key as SubjectPublicKeyInfo DER."""
        der: bytes = self._private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return der

    def sign(self, algorithm: str, message: bytes, *, prehashed: bool) -> bytes:
        """Return a signature; `prehashed` says that `message` is the digest (for ML-DSA, the 64-byte mu).

        Ed25519ph hashes the digest once more, as AWS KMS does (API reference, Sign, MessageType).
        """
        private = self._private
        if algorithm == "ML_DSA_SHAKE_256":
            signature: bytes = private.sign_mu(message) if prehashed else private.sign(message)
        elif algorithm == "ED25519_SHA_512":
            signature = private.sign(message)
        elif algorithm == "ED25519_PH_SHA_512":
            signature = sign_prehashed(private.private_bytes_raw(), private.public_key().public_bytes_raw(), message)
        elif algorithm.startswith("ECDSA_"):
            signature = private.sign(message, ec.ECDSA(_how(algorithm, prehashed=prehashed)))
        else:
            signature = private.sign(message, _rsa_padding(algorithm), _how(algorithm, prehashed=prehashed))
        return signature

    def verify(self, algorithm: str, message: bytes, signature: bytes, *, prehashed: bool) -> None:
        """Check a signature of this key.

        Raises:
            AuthenticationFailed: if it is not one of this message.
        """
        public = self._private.public_key()
        try:
            if algorithm == "ML_DSA_SHAKE_256":
                (public.verify_mu if prehashed else public.verify)(signature, message)
            elif algorithm == "ED25519_SHA_512":
                public.verify(signature, message)
            elif algorithm == "ED25519_PH_SHA_512":
                verify_prehashed(public.public_bytes_raw(), message, signature)
            elif algorithm.startswith("ECDSA_"):
                public.verify(signature, message, ec.ECDSA(_how(algorithm, prehashed=prehashed)))
            else:
                how = _how(algorithm, prehashed=prehashed)
                public.verify(signature, message, _rsa_padding(algorithm), how)
        except _Mismatch as error:
            raise AuthenticationFailed("signature does not fit") from error

    def encrypt(self, algorithm: str, plain: bytes) -> bytes:
        """RSAES-OAEP under the public key; `plain` is at most `oaep_max_bytes`."""
        sealed: bytes = self._private.public_key().encrypt(plain, _oaep(algorithm))
        return sealed

    def decrypt(self, algorithm: str, sealed: bytes) -> bytes:
        """RSAES-OAEP with the private key.

        Raises:
            AuthenticationFailed: if it does not open.
        """
        try:
            plain: bytes = self._private.decrypt(sealed, _oaep(algorithm))
        except ValueError as error:
            raise AuthenticationFailed("does not open") from error
        return plain

    def agree(self, peer_der: bytes) -> bytes:
        """Return the raw ECDH shared secret with another public key (SP 800-56A, cofactor one). Secret.

        Raises:
            ShapeError: if the other key is no point of the same curve.
        """
        try:
            peer = load_der_public_key(peer_der)
            if not isinstance(peer, ec.EllipticCurvePublicKey):
                raise ShapeError("PublicKey is not an elliptic curve key.")
            shared: bytes = self._private.exchange(ec.ECDH(), peer)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ShapeError("PublicKey is not a key of the same curve.") from error
        return shared

    def encapsulate(self) -> tuple[bytes, bytes]:
        """Return (shared secret, ciphertext) under the public key (FIPS 203, ML-KEM.Encaps). The first is secret."""
        secret, sealed = self._private.public_key().encapsulate()
        return secret, sealed

    def decapsulate(self, sealed: bytes) -> bytes:
        """Return the shared secret of a ciphertext. Secret. A changed one gives another secret (implicit rejection).

        Raises:
            AuthenticationFailed: if its length is impossible.
        """
        try:
            secret: bytes = self._private.decapsulate(sealed)
        except ValueError as error:
            raise AuthenticationFailed("impossible ciphertext") from error
        return secret


def oaep_max_bytes(spec: str, algorithm: str) -> int:
    """Return the longest plaintext of OAEP: modulus bytes less two hashes less two (RFC 8017 section 7.1.1)."""
    return int(spec.removeprefix("RSA_")) // 8 - 2 * hash_of(algorithm).digest_size - 2


def mac(algorithm: str, key: bytes, message: bytes) -> bytes:
    """HMAC (RFC 2104) with the hash that ends the algorithm's name."""
    name = f"sha{algorithm.rpartition('_')[2]}"
    if name not in hashlib.algorithms_guaranteed:
        raise InvariantBroken(f"no hash {name}")
    return hmac.digest(key, message, name)


def _how(algorithm: str, *, prehashed: bool) -> Any:
    chosen = hash_of(algorithm)
    return utils.Prehashed(chosen) if prehashed else chosen


def _rsa_padding(algorithm: str) -> Any:
    if algorithm.startswith("RSASSA_PSS_"):
        return padding.PSS(padding.MGF1(hash_of(algorithm)), padding.PSS.DIGEST_LENGTH)
    return padding.PKCS1v15()


def _oaep(algorithm: str) -> Any:
    chosen = hash_of(algorithm)
    return padding.OAEP(padding.MGF1(chosen), chosen, None)
