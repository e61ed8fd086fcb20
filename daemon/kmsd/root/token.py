"""The root key in a PKCS #11 token: 32 random bytes, encrypted to a key pair whose private half never leaves the token.

Beside the keyring lies `root.token`, a JSON document with what is needed to ask the token: {"version": 1, "module": path,
"token": label, "key": label of the pair, "wrapped": hexadecimal}. Nothing in it is secret without the token and its PIN.
"""

import json
import os
from pathlib import Path

from kmsd.store.files import write_atomically
from kmsd.tokens.token import Token, TokenPlace
from kmsfs.aead.nonces import Rng
from kmsfs.errors import RootKeyMissing, TokenUnavailable, UsageError
from kmsfs.secret import KeyMaterial

PIN_CREDENTIAL = "kmsfs-pin"
_VERSION = 1
_ROOT_BYTES = 32


def make_token_root(path: Path, place: TokenPlace | None, pin: bytes, rng: Rng) -> KeyMaterial:
    """Make a root key and a key pair in the token for it, and write what finds it again.

    Raises:
        UsageError: if no token is named.
        RootKeyMissing: if the token is not there, cannot do it, or the PIN is wrong.
    """
    if place is None:
        raise UsageError("which token?", hint="--token MODULE:LABEL, such as /usr/lib/softhsm/libsofthsm2.so:kmsfs")
    label, root_key = f"kmsfs-root-{rng(8).hex()}", rng(_ROOT_BYTES)
    try:
        token = Token(place, pin.decode())
        token.make_pair(label)
        wrapped = token.encrypt(label, root_key)
        if token.decrypt(label, wrapped) != root_key:
            raise RootKeyMissing(f"the token {place.label!r} does not give back what it encrypted")
        token.close()
    except (TokenUnavailable, UnicodeDecodeError) as error:
        raise _no_root(error) from error
    document = {
        "version": _VERSION, "module": os.fspath(place.module), "token": place.label, "key": label, "wrapped": wrapped.hex(),
    }  # fmt: skip
    write_atomically(path, (json.dumps(document, indent=1) + "\n").encode(), mode=0o600)
    return KeyMaterial(root_key)


def read_token_root(path: Path, pin: bytes) -> KeyMaterial:
    """Have the token decrypt the root key.

    Raises:
        RootKeyMissing: if the document or the token is missing or damaged, or the PIN is wrong.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["version"] != _VERSION:
            raise RootKeyMissing(f"{path} has version {document['version']}, which this kmsd does not know", hint="use a newer kmsd")
        place = TokenPlace(Path(document["module"]), document["token"])
        label, wrapped = str(document["key"]), bytes.fromhex(document["wrapped"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RootKeyMissing(
            f"{path} is missing or damaged: it says which token has the root key", hint="`kmsd recover` with the recovery code"
        ) from error
    try:
        token = Token(place, pin.decode())
        plain = token.decrypt(label, wrapped)
        token.close()
    except (TokenUnavailable, UnicodeDecodeError) as error:
        raise _no_root(error) from error
    if len(plain) != _ROOT_BYTES:
        raise RootKeyMissing(f"the token {place.label!r} answered {len(plain)} bytes instead of a root key")
    return KeyMaterial(plain)


def _no_root(error: Exception) -> RootKeyMissing:
    if isinstance(error, TokenUnavailable):
        return RootKeyMissing(error.detail, hint=error.hint)
    return RootKeyMissing("the PIN is not text")
