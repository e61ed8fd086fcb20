"""Bech32 of any length, as age has it for recipients and identities (BIP-173; C2SP, age.md)."""

from kmsfs.errors import ShapeError

_LETTERS = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)


def encode(prefix: str, data: bytes) -> str:
    """Return the text of some bytes under a lower-case prefix."""
    values = _regroup(data, 8, 5)
    check = _checksum([*_spread(prefix), *values, *(0,) * 6]) ^ 1
    values += [check >> 5 * (5 - place) & 31 for place in range(6)]
    return f"{prefix}1{''.join(_LETTERS[value] for value in values)}"


def decode(text: str) -> tuple[str, bytes]:
    """Return (prefix in lower case, bytes) of a text in lower or upper case.

    Raises:
        ShapeError: if it is none, or its checksum is wrong.
    """
    if text not in (text.lower(), text.upper()):
        raise ShapeError("this mixes upper and lower case")
    prefix, _, rest = text.lower().rpartition("1")
    values = [_LETTERS.find(letter) for letter in rest]
    if not prefix or len(values) < 6 or -1 in values or _checksum([*_spread(prefix), *values]) != 1:
        raise ShapeError("this was mistyped: its checksum is wrong")
    values = values[:-6]
    if (spare := len(values) * 5 % 8) > 4 or (values and values[-1] & ((1 << spare) - 1)):
        raise ShapeError("this has bits left over")
    data = _regroup(values, 5, 8)
    return prefix, bytes(data[: len(values) * 5 // 8])


def _spread(prefix: str) -> list[int]:
    return [*(ord(letter) >> 5 for letter in prefix), 0, *(ord(letter) & 31 for letter in prefix)]


def _checksum(values: list[int]) -> int:
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for place, word in enumerate(_GENERATOR):
            if top >> place & 1:
                check ^= word
    return check


def _regroup(values: bytes | list[int], size: int, into: int) -> list[int]:
    """Return the same bits in groups of another size, with zeros behind the last."""
    bits = "".join(f"{value:0{size}b}" for value in values)
    bits += "0" * (-len(bits) % into)
    return [int(bits[at : at + into], 2) for at in range(0, len(bits), into)]
