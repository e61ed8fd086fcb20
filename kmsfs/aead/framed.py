"""The cryptography of AWS Encryption SDK messages, suite 0x0478 (HKDF-SHA512, key commitment, no signature).

Source: aws-encryption-sdk-specification, data-format/message-body.md and message-header.md. IVs are frame
numbers: safe because the content key is derived from a fresh 256-bit message id and used for one message.
"""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kmsfs.aead.kdf import equal, hkdf_expand_sha512, hkdf_extract_sha512
from kmsfs.errors import AuthenticationFailed

SUITE_ID = b"\x04\x78"


class MessageKeys:
    """Content key and commitment of one message."""

    __slots__ = ("_aead", "commitment")

    def __init__(self, data_key: bytes, message_id: bytes) -> None:
        prk = hkdf_extract_sha512(message_id, data_key)
        self._aead = AESGCM(hkdf_expand_sha512(prk, SUITE_ID + b"DERIVEKEY", 32))
        self.commitment = hkdf_expand_sha512(prk, b"COMMITKEY", 32)

    def commits_to(self, commitment: bytes) -> bool:
        """Compare the message's commitment with ours in constant time."""
        return equal(self.commitment, commitment)

    def seal_frame(self, number: int, plain: bytes, aad: bytes) -> bytes:
        """Return ciphertext ‖ tag of frame `number` (0 for the header's tag)."""
        return self._aead.encrypt(number.to_bytes(12, "big"), plain, aad)

    def open_frame(self, number: int, sealed: bytes, aad: bytes) -> bytes:
        """Return a frame's plaintext.

        Raises:
            AuthenticationFailed: if the tag does not match.
        """
        try:
            return self._aead.decrypt(number.to_bytes(12, "big"), sealed, aad)
        except InvalidTag as error:
            raise AuthenticationFailed("frame tag does not match") from error
