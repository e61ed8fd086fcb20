"""One PKCS #11 token, open: keys that never leave it (PKCS #11 v2.40, OASIS; by python-pkcs11).

The only module that speaks to tokens. A module is a shared object that runs within kmsd, so which ones there are says the
operator alone, never a caller.
"""

import os
import re
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kmsfs.errors import TokenUnavailable, UsageError

_RSA_BITS = 2048
_MAC_BITS = 256
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class TokenPlace:
    """Where a token is: the shared object that knows how to speak to it, and the token's label."""

    module: Path
    label: str


def parse_place(text: str) -> TokenPlace:
    """Read `MODULE:LABEL`, such as `/usr/lib/softhsm/libsofthsm2.so:kmsfs`.

    Raises:
        UsageError: if it is none, or the module is not an absolute path.
    """
    module, _, label = text.rpartition(":")
    if not module.startswith("/") or not label:
        raise UsageError(f"{text!r} is no token", hint="MODULE:LABEL, such as /usr/lib/softhsm/libsofthsm2.so:kmsfs")
    return TokenPlace(Path(module), label)


def parse_places(texts: Iterable[str]) -> dict[str, TokenPlace]:
    """Read `NAME=MODULE:LABEL` of several tokens.

    Raises:
        UsageError: if one cannot be read, or a name or a token is there twice.
    """
    places: dict[str, TokenPlace] = {}
    for text in texts:
        name, _, place = text.partition("=")
        if not re.fullmatch(r"[\w-]{1,24}", name):
            raise UsageError(f"{text!r} is no token", hint="NAME=MODULE:LABEL, with a name of at most 24 letters, digits and hyphens")
        found = parse_place(place)
        if name in places or found in places.values():
            raise UsageError(f"the token {text!r} is declared twice")
        places[name] = found
    return places


class Token:
    """An open session. Its login lasts as long as the process; one that broke is opened anew once for each call."""

    def __init__(self, place: TokenPlace, pin: str) -> None:
        """Open the token as its user. The PIN is secret.

        Raises:
            TokenUnavailable: if the module or the token is not there, or the PIN is wrong.
        """
        self._place = place
        self._pin = pin
        self._keys: dict[str, Any] = {}
        self._session = self._open()

    # --- root keys -----------------------------------------------------------------------------------------------

    def make_pair(self, label: str) -> None:
        """Make an RSA pair of 2,048 bits whose private key stays in the token.

        Raises:
            TokenUnavailable: if the token cannot.
        """
        from pkcs11 import Attribute, KeyType

        kept = {Attribute.EXTRACTABLE: False, Attribute.SENSITIVE: True}
        self._run(
            lambda session: session.generate_keypair(
                KeyType.RSA, _RSA_BITS, store=True, label=label, id=label.encode(), private_template=kept
            )
        )

    def encrypt(self, label: str, plain: bytes) -> bytes:
        """Encrypt under the pair's public key (RSAES-OAEP with SHA-1, RFC 8017, which every token offers).

        Raises:
            TokenUnavailable: if the token cannot.
        """
        return self._run(lambda session: bytes(_found(session, label, public=True).encrypt(plain, **_oaep())))

    def decrypt(self, label: str, sealed: bytes) -> bytes:
        """Decrypt what `encrypt` made, within the token.

        Raises:
            TokenUnavailable: if the token cannot.
        """
        return self._run(lambda session: bytes(_found(session, label, public=False).decrypt(sealed, **_oaep())))

    # --- keys of custom key stores ---------------------------------------------------------------------------------

    def make_mac_key(self, label: str) -> None:
        """Make a secret of 256 bits for HMAC-SHA256 that stays in the token.

        Raises:
            TokenUnavailable: if the token cannot.
        """
        from pkcs11 import Attribute, KeyType, Mechanism

        attributes = {Attribute.EXTRACTABLE: False, Attribute.SENSITIVE: True, Attribute.SIGN: True, Attribute.VERIFY: True}
        attributes |= {
            getattr(Attribute, other): False for other in ("ENCRYPT", "DECRYPT", "WRAP", "UNWRAP", "DERIVE")
        }
        self._run(
            lambda session: session.generate_key(
                KeyType.GENERIC_SECRET, _MAC_BITS, store=True, label=label, id=label.encode(), template=attributes,
                mechanism=Mechanism.GENERIC_SECRET_KEY_GEN,
            )
        )  # fmt: skip

    def mac(self, label: str, message: bytes) -> bytes:
        """Return the HMAC-SHA256 of a message (RFC 2104), made within the token.

        Raises:
            TokenUnavailable: if the token cannot, or the key is not there.
        """
        from pkcs11 import Mechanism

        def sign(session: Any) -> bytes:
            key = self._keys.get(label)
            if key is None:
                key = self._keys[label] = _secret(session, label)
            return bytes(key.sign(message, mechanism=Mechanism.SHA256_HMAC))

        return self._run(sign)

    def has_mac_key(self, label: str) -> bool:
        """Tell whether the token has a key of this label."""
        try:
            self._run(lambda session: _secret(session, label))
        except TokenUnavailable:
            return False
        return True

    def destroy_mac_key(self, label: str) -> None:
        """Destroy a key for ever; one that is gone is no error.

        Raises:
            TokenUnavailable: if the token cannot.
        """
        self._keys.pop(label, None)
        if self.has_mac_key(label):
            self._run(lambda session: _secret(session, label).destroy())

    def close(self) -> None:
        """End the session."""
        from pkcs11.exceptions import PKCS11Error

        self._keys.clear()
        try:
            self._session.close()
        except PKCS11Error:
            return

    # --- the session -------------------------------------------------------------------------------------------------

    def _run(self, act: Callable[[Any], _T]) -> _T:
        """Do something in the session; in a new one, if this one is gone, as after a token was pulled and put back."""
        from pkcs11 import exceptions as pkcs11

        gone = (pkcs11.SessionHandleInvalid, pkcs11.SessionClosed, pkcs11.UserNotLoggedIn, pkcs11.DeviceRemoved, pkcs11.KeyHandleInvalid)
        try:
            try:
                return act(self._session)
            except gone:
                self.close()
                self._session = self._open()
                return act(self._session)
        except pkcs11.PKCS11Error as error:
            raise self._failed(error) from error

    def _open(self) -> Any:
        try:
            import pkcs11
            from pkcs11.exceptions import NoSuchToken, PKCS11Error, UserAlreadyLoggedIn
        except ImportError as error:
            raise TokenUnavailable("PKCS #11 tokens need the package python-pkcs11", hint="pip install 'kmsfs[pkcs11]'") from error
        _check_module(self._place.module)
        try:
            library = pkcs11.lib(os.fspath(self._place.module))
            try:
                token = library.get_token(token_label=self._place.label)
            except NoSuchToken:
                # A token that came since the library was loaded is seen by a new look; sessions with others are opened anew.
                library.reinitialize()
                token = library.get_token(token_label=self._place.label)
            try:
                return token.open(user_pin=self._pin, rw=True)
            except UserAlreadyLoggedIn:
                # The login is the process's: the PIN was right before, and this one is compared by nobody.
                raise TokenUnavailable(f"the token {self._place.label!r} is in use by this daemon under another PIN") from None
        except PKCS11Error as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> TokenUnavailable:
        # Not the error's text: modules put into it what they like.
        return TokenUnavailable(
            f"the token {self._place.label!r} of {self._place.module} failed: {type(error).__name__}",
            hint="look at it with: pkcs11-tool --module MODULE --list-slots",
            evidence=type(error).__name__,
        )


def _found(session: Any, label: str, *, public: bool) -> Any:
    from pkcs11 import KeyType, ObjectClass

    kind = ObjectClass.PUBLIC_KEY if public else ObjectClass.PRIVATE_KEY
    return session.get_key(object_class=kind, key_type=KeyType.RSA, label=label)


def _secret(session: Any, label: str) -> Any:
    from pkcs11 import ObjectClass

    return session.get_key(object_class=ObjectClass.SECRET_KEY, label=label)


def _oaep() -> dict[str, Any]:
    from pkcs11 import MGF, Mechanism

    return {"mechanism": Mechanism.RSA_PKCS_OAEP, "mechanism_param": (Mechanism.SHA_1, MGF.SHA1, None)}


def _check_module(path: Path) -> None:
    """Refuse a module that others could replace: it runs within the key daemon."""
    try:
        facts = path.stat()
    except OSError as error:
        raise TokenUnavailable(f"cannot read the PKCS #11 module {path}: {error.strerror}") from error
    if not stat.S_ISREG(facts.st_mode) or facts.st_uid not in (0, os.getuid()) or facts.st_mode & 0o022:
        raise TokenUnavailable(f"the PKCS #11 module {path} must be a file that only root, or the daemon's user, can write")
