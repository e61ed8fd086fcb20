"""Grant tokens: authenticated names of grants. They are no secrets; authority is the grant itself."""

import base64
import binascii
import uuid

from kmsfs.aead.kdf import equal, hmac_sha256
from kmsfs.errors import InvalidGrantToken
from kmsfs.ids import owner_of

_TAG_BYTES = 16


class GrantTokens:
    """Mints and reads tokens: base64url(key UUID 16 ‖ grant id 32 ‖ HMAC-SHA256 tag 16)."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def mint(self, key_id: str, grant_id: str) -> str:
        """Return the token of a grant."""
        body = owner_of(key_id) + bytes.fromhex(grant_id)
        return base64.urlsafe_b64encode(body + hmac_sha256(self._key, body)[:_TAG_BYTES]).decode()

    def read(self, token: str) -> tuple[str, str]:
        """Return (key id, grant id).

        Raises:
            InvalidGrantToken: if this daemon did not mint it.
        """
        try:
            raw = base64.b64decode(token, altchars=b"-_", validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidGrantToken("The grant token is not valid.") from error
        body, tag = raw[:48], raw[48:]
        if len(raw) != 64 or not equal(hmac_sha256(self._key, body)[:_TAG_BYTES], tag):
            raise InvalidGrantToken("The grant token is not valid.")
        return str(uuid.UUID(bytes=body[:16])), body[16:].hex()
