"""Temporary credentials that the daemon need not remember: all is in the session token, sealed.

A token says whose it is (uid, gid and groups of a local user, or an identity of IAM) and until when; the access key id is bound to it as associated data. The
secret is HMAC-SHA256 of the access key id, so whoever holds the daemon's key can compute it, and nobody else.
"""

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from kmsfs.aead.gcm import GcmKey
from kmsfs.aead.kdf import hmac_sha256
from kmsfs.aead.nonces import Rng
from kmsfs.errors import AuthenticationFailed, BadFrame, TokenExpired, UnknownCredentials
from kmsfs.formats.packing import pack, unpack

_AAD = b"kmsfs/session/v1"
_SECRET_CHARACTERS = 40


@dataclass(frozen=True, slots=True)
class IssuedCredentials:
    """What a client signs with; `expires` in seconds since the epoch."""

    access_key_id: str
    secret: str
    token: str
    expires: float


class SessionTokens:
    """Issues and reads session tokens under a 64-byte key: 32 bytes seal tokens, 32 make secrets."""

    def __init__(self, key: bytes, rng: Rng) -> None:
        self._cipher = GcmKey(key[:32])
        self._secrets = key[32:]
        self._rng = rng

    def issue(self, facts: dict[str, Any], now: float, seconds: int) -> IssuedCredentials:
        """Return credentials, of whomever the facts tell, that work for `seconds` from `now`."""
        access_key_id = "ASIA" + base64.b32encode(self._rng(10)).decode()
        body = pack({**facts, "exp": now + seconds})
        sealed = self._cipher.seal(self._rng, body, _AAD + access_key_id.encode())
        return IssuedCredentials(
            access_key_id, self.secret_of(access_key_id), base64.b64encode(sealed).decode(), now + seconds
        )

    def secret_of(self, access_key_id: str) -> str:
        """Return the secret access key of an access key id: 40 characters, as AWS's. Secret."""
        return base64.b64encode(hmac_sha256(self._secrets, access_key_id.encode())).decode()[
            :_SECRET_CHARACTERS
        ]

    def open(self, access_key_id: str, token: str, now: float) -> dict[str, Any]:
        """Return the facts that a token was issued with.

        Raises:
            UnknownCredentials: if this daemon did not issue the token for this access key id.
            TokenExpired: if its time is over.
        """
        try:
            sealed = base64.b64decode(token, validate=True)
            facts: dict[str, Any] = unpack(self._cipher.open(sealed, _AAD + access_key_id.encode()))
        except (binascii.Error, ValueError, AuthenticationFailed, BadFrame) as error:
            raise UnknownCredentials("The security token included in the request is invalid.") from error
        if now >= facts["exp"]:
            raise TokenExpired("The security token included in the request is expired")
        return facts
