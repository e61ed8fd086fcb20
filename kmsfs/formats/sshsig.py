"""SSH signatures of messages, as git makes them: what is signed, and the armored file (OpenSSH, PROTOCOL.sshsig version 1).

Nothing here signs: the key's owner does. Strings are length-prefixed (RFC 4251, section 5).
"""

import base64
import struct

from kmsfs.errors import ShapeError

MAGIC = b"SSHSIG"
HASH = b"sha512"
_VERSION = 1
_LINE = 70


def string(data: bytes) -> bytes:
    """Return a length-prefixed string."""
    return struct.pack(">I", len(data)) + data


def mpint(number: int) -> bytes:
    """Return a non-negative integer of any length: a string, with a zero byte in front where its first bit is set."""
    return string(number.to_bytes(number.bit_length() // 8 + 1, "big") if number else b"")


def first_string(data: bytes) -> bytes:
    """Return the first string of some bytes: of a public key, its type.

    Raises:
        ShapeError: if they do not begin with one.
    """
    if len(data) < 4 or len(data) < 4 + struct.unpack_from(">I", data)[0]:
        raise ShapeError("this is no SSH public key")
    return data[4 : 4 + struct.unpack_from(">I", data)[0]]


def parse_public_key(text: str) -> tuple[bytes, str]:
    """Return (public key, comment) of a line such as `ssh-ed25519 AAAA… comment`.

    Raises:
        ShapeError: if it is none.
    """
    parts = text.strip().removeprefix("key::").split(None, 2)
    try:
        key = base64.b64decode(parts[1], validate=True)
    except (IndexError, ValueError) as error:
        raise ShapeError("this is no SSH public key") from error
    if first_string(key) != parts[0].encode():
        raise ShapeError("this SSH public key is of another type than it says")
    return key, parts[2] if len(parts) > 2 else ""


def signed_data(namespace: str, digest: bytes) -> bytes:
    """Return what is signed of a message whose SHA-512 is `digest`, for a namespace such as `git`."""
    return MAGIC + string(namespace.encode()) + string(b"") + string(HASH) + string(digest)


def armored(public_key: bytes, namespace: str, algorithm: str, signature: bytes) -> str:
    """Return the signature file: `signature` is as the algorithm's part of SSH has it."""
    blob = MAGIC + struct.pack(">I", _VERSION) + string(public_key) + string(namespace.encode()) + string(b"") + string(HASH)
    text = base64.b64encode(blob + string(string(algorithm.encode()) + string(signature))).decode()
    lines = [text[at : at + _LINE] for at in range(0, len(text), _LINE)]
    return "\n".join(["-----BEGIN SSH SIGNATURE-----", *lines, "-----END SSH SIGNATURE-----", ""])
