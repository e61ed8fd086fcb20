"""Recovery shares: the root key split so that any M of N bring it back and fewer tell nothing (SLIP-0039, Shamir 1979)."""

from dataclasses import dataclass

from shamir_mnemonic import MnemonicError, combine_mnemonics, generate_mnemonics
from shamir_mnemonic import Share as Mnemonic

from kmsfs.errors import RootKeyMissing, UsageError
from kmsfs.secret import KeyMaterial

SHARES_MAX = 16
"""Shares of one group (SLIP-0039)."""
SHARE_WORDS = 33
"""Words of a share of a key of 32 bytes."""
_ROOT_KEY_BYTES = 32
_EXPONENT_MAX = 1


def make_shares(root_key: KeyMaterial, threshold: int, count: int) -> list[str]:
    """Return `count` shares of 33 words, any `threshold` of which are enough. Secret.

    Raises:
        UsageError: if the numbers are not 2 <= threshold <= count <= 16.
    """
    if not 2 <= threshold <= count <= SHARES_MAX:
        raise UsageError(
            f"{threshold} of {count} shares cannot be made", hint=f"from 2 shares on, and of {SHARES_MAX} at most"
        )
    return list(generate_mnemonics(1, [(threshold, count)], root_key.reveal())[0])


def looks_like_share(text: str) -> bool:
    """Tell whether a line is a share, rather than a recovery code."""
    return len(text.split()) > 8


@dataclass(frozen=True, slots=True)
class Share:
    """A share as it is written, with the number of its set, its own number in it, and how many of the set are needed."""

    text: str
    identifier: int
    index: int
    threshold: int


def read_share(text: str) -> Share:
    """Return a share.

    Raises:
        RootKeyMissing: if it is mistyped, or of another kind.
    """
    words = " ".join(text.lower().split())
    try:
        found = Mnemonic.from_mnemonic(words)
    except (MnemonicError, ValueError) as error:
        raise RootKeyMissing(f"this is no share: {error}", hint=f"it has {SHARE_WORDS} words; compare them one by one") from error
    # A share says how much work joining its set is: what we make is one step up, more is a way to keep a daemon busy for hours.
    if found.group_count != 1 or len(found.value) != _ROOT_KEY_BYTES or found.iteration_exponent > _EXPONENT_MAX:
        raise RootKeyMissing("this is a share of something else")
    return Share(words, found.identifier, found.index, found.member_threshold)


def join_shares(shares: list[str]) -> KeyMaterial:
    """Return the root key of as many shares as it takes.

    Raises:
        RootKeyMissing: if one is mistyped, they are of different sets, or there are too few.
    """
    wanted = list(dict.fromkeys(" ".join(share.lower().split()) for share in shares if share.strip()))
    try:
        key = combine_mnemonics(wanted)
    except MnemonicError as error:
        raise RootKeyMissing(f"these shares give no root key: {error}", hint="one share a line, 33 words each") from error
    if len(key) != _ROOT_KEY_BYTES:
        raise RootKeyMissing("these are shares of something else")
    return KeyMaterial(key)
