"""The recovery code: the root key as groups of letters that a person can write down."""

import base64
import binascii

from kmsfs.aead.kdf import sha256
from kmsfs.errors import RootKeyMissing
from kmsfs.secret import KeyMaterial

PREFIX = "KMSFS1"
_CHECK_BYTES = 3


def recovery_code(root_key: KeyMaterial) -> str:
    """Return the code: prefix and eight groups of seven letters; the last letters are a checksum. Secret."""
    raw = root_key.reveal()
    letters = base64.b32encode(raw + sha256(b"kmsfs/recovery" + raw)[:_CHECK_BYTES]).decode()
    return "-".join([PREFIX, *(letters[i : i + 7] for i in range(0, len(letters), 7))])


def parse_recovery_code(text: str) -> KeyMaterial:
    """Return the root key of a code; spaces, dashes and case do not matter.

    Raises:
        RootKeyMissing: if the code is mistyped.
    """
    letters = "".join(text.split()).replace("-", "").upper().removeprefix(PREFIX)
    try:
        raw = base64.b32decode(letters)
    except binascii.Error as error:
        raise RootKeyMissing(
            "this is not a recovery code", hint="it has 56 letters and digits in eight groups"
        ) from error
    secret, check = raw[:32], raw[32:]
    if len(raw) != 35 or sha256(b"kmsfs/recovery" + secret)[:_CHECK_BYTES] != check:
        raise RootKeyMissing("the recovery code is mistyped", hint="compare it group by group")
    return KeyMaterial(secret)
