"""What brings a sealed daemon its root key: shares given one by one, a passphrase, or the realm's own source."""

from collections import OrderedDict
from collections.abc import Callable

from kmsd.root.keyring import SealType
from kmsd.root.shares import join_shares, read_share
from kmsfs.errors import RootKeyMissing
from kmsfs.secret import KeyMaterial

_SETS_MAX = 8
"""Sets of which shares are held at once: somebody's wrong shares must not push out everybody's right ones for ever."""


class Unsealing:
    """One unsealing under way. `opens` raises RootKeyMissing for a key that is not the realm's."""

    def __init__(
        self,
        seal_type: SealType,
        read_source: Callable[[bytes | None], KeyMaterial],
        opens: Callable[[KeyMaterial], None],
    ) -> None:
        """`read_source` returns the key of the realm's source, with this passphrase if it is one."""
        self.seal_type = seal_type
        self._read_source = read_source
        self._opens = opens
        self._sets: OrderedDict[tuple[int, int], dict[int, str]] = OrderedDict()
        self.root_key: KeyMaterial | None = None
        """The realm's root key, once it is there."""

    @property
    def given(self) -> int:
        """How many shares there are of the set that is nearest to its end."""
        return max((len(shares) for shares in self._sets.values()), default=0)

    @property
    def needed(self) -> int | None:
        """How many shares of that set are needed; None before the first."""
        if not self._sets:
            return None
        _, threshold = max(self._sets, key=lambda found: len(self._sets[found]))
        return threshold

    def take_share(self, text: str) -> None:
        """Take a share; the last one that is needed brings the key.

        Raises:
            RootKeyMissing: if it is mistyped, or its set is complete and is another realm's: the set is forgotten then.
        """
        share = read_share(text)
        name = (share.identifier, share.threshold)
        found = self._sets.setdefault(name, {})
        found[share.index] = share.text
        self._sets.move_to_end(name)
        if len(self._sets) > _SETS_MAX:
            self._sets.popitem(last=False)
        if len(found) >= share.threshold:
            del self._sets[name]
            self._take(join_shares(list(found.values())))

    def take_passphrase(self, passphrase: bytes) -> None:
        """Take the passphrase, or the token's PIN.

        Raises:
            RootKeyMissing: if it is another, or the realm has none.
        """
        if self.seal_type not in (SealType.PASSPHRASE, SealType.PKCS11):
            raise RootKeyMissing(f"this realm has no passphrase: its root key comes from {self.seal_type.name.lower()}")
        self._take(self._read_source(passphrase))

    def take_source(self) -> None:
        """Ask the realm's own source again.

        Raises:
            RootKeyMissing: if it has no key, or needs somebody to give it.
        """
        self._take(self._read_source(None))

    def _take(self, key: KeyMaterial) -> None:
        self._opens(key)
        self._sets.clear()
        self.root_key = key
