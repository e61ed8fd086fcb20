"""AES-256-GCM over single messages and over runs of chunks (NIST SP 800-38D; 12-byte nonce, 16-byte tag)."""

from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kmsfs.aead.nonces import Rng, draw
from kmsfs.errors import AuthenticationFailed, InvariantBroken
from kmsfs.suites import AES_256_BYTES, GCM_NONCE_BYTES, GCM_TAG_BYTES

PIN_BYTES = GCM_NONCE_BYTES + GCM_TAG_BYTES
"""A pin is nonce ‖ tag: it names exactly one sealed message under a key."""


class GcmKey:
    """One AES-256-GCM key, ready for use. Building it costs a key schedule (about 1.4 µs), so keep it."""

    __slots__ = ("_aead",)

    def __init__(self, key: bytes) -> None:
        if len(key) != AES_256_BYTES:
            raise InvariantBroken("an AES-256-GCM key has 32 bytes")
        self._aead = AESGCM(key)

    def seal(self, rng: Rng, plain: bytes | memoryview, aad: bytes) -> bytes:
        """Return nonce ‖ ciphertext ‖ tag; `len(plain) + 28` bytes."""
        nonce = draw(rng, 1)
        return nonce + self._aead.encrypt(nonce, plain, aad)

    def open(self, sealed: bytes | memoryview, aad: bytes) -> bytes:
        """Return the plaintext of nonce ‖ ciphertext ‖ tag.

        Raises:
            AuthenticationFailed: if the bytes, the key or the associated data are not right.
        """
        if len(sealed) < PIN_BYTES:
            raise AuthenticationFailed("sealed bytes are too short")
        try:
            return self._aead.decrypt(bytes(sealed[:GCM_NONCE_BYTES]), sealed[GCM_NONCE_BYTES:], aad)
        except InvalidTag as error:
            raise AuthenticationFailed("authentication tag does not match") from error

    def seal_detached(
        self, rng: Rng, plain: bytes | bytearray | memoryview, aad: bytes
    ) -> tuple[bytes, bytes]:
        """Return (nonce ‖ tag, ciphertext): the pin is stored away from the ciphertext."""
        nonce = draw(rng, 1)
        sealed = self._aead.encrypt(nonce, plain, aad)
        return nonce + sealed[-GCM_TAG_BYTES:], sealed[:-GCM_TAG_BYTES]

    def open_detached(self, pin: bytes, cipher: bytes | memoryview, aad: bytes) -> bytes:
        """Return the plaintext of a ciphertext whose nonce ‖ tag is `pin`.

        Raises:
            AuthenticationFailed: as `open`.
        """
        try:
            return self._aead.decrypt(pin[:GCM_NONCE_BYTES], b"".join((cipher, pin[GCM_NONCE_BYTES:])), aad)
        except InvalidTag as error:
            raise AuthenticationFailed("authentication tag does not match") from error

    def seal_run(
        self, rng: Rng, plain: memoryview, chunk_bytes: int, aads: Sequence[bytes], out: memoryview
    ) -> list[bytes]:
        """Seal consecutive chunks of `plain` into `out` and return their pins, one per chunk.

        Every chunk but the last has `chunk_bytes` bytes. Ciphertext i lands at the offset of plaintext i;
        `out` has `len(plain) + 16` bytes, the spare ones hold the last tag. Tags are lifted before the next
        chunk overwrites them.
        """
        encrypt_into = self._aead.encrypt_into
        nonces = draw(rng, len(aads))
        total = len(plain)
        pins = []
        start = 0
        for index, aad in enumerate(aads):
            end = min(start + chunk_bytes, total)
            nonce = nonces[index * 12 : index * 12 + 12]
            encrypt_into(nonce, plain[start:end], aad, out[start : end + GCM_TAG_BYTES])
            pins.append(nonce + out[end : end + GCM_TAG_BYTES])
            start = end
        return pins

    def open_run(
        self,
        pins: Sequence[bytes],
        cipher: memoryview,
        chunk_bytes: int,
        aads: Sequence[bytes],
        out: memoryview,
    ) -> None:
        """Open consecutive chunks from `cipher` into `out`, the inverse of `seal_run`.

        `cipher` has 16 spare bytes at its end and is destroyed. Works from the last chunk down, so that each
        tag may overwrite the start of a chunk that is already open.

        Raises:
            AuthenticationFailed: with the index of the chunk within the run as `evidence`; `out` is wiped
                first, because OpenSSL leaves unverified plaintext in it.
        """
        decrypt_into = self._aead.decrypt_into
        total = len(out)
        for index in range(len(aads) - 1, -1, -1):
            start = index * chunk_bytes
            end = min(start + chunk_bytes, total)
            pin = pins[index]
            cipher[end : end + GCM_TAG_BYTES] = pin[GCM_NONCE_BYTES:]
            try:
                decrypt_into(
                    pin[:GCM_NONCE_BYTES], cipher[start : end + GCM_TAG_BYTES], aads[index], out[start:end]
                )
            except InvalidTag as error:
                out[:] = bytes(total)
                raise AuthenticationFailed("a chunk's tag does not match", evidence=str(index)) from error
