"""The one msgpack door: maps with string keys, bounded sizes, no extension types.

msgspec is six times as fast as msgpack, but takes more: a map's key twice, dates, extension types. So it is asked first, and
what it makes is taken where it holds plain values and encodes to the very same bytes; msgpack's limits judge the rest.
"""

from typing import Any

import msgpack
import msgspec

from kmsfs.errors import BadFrame
from kmsfs.quantity import MAX_BATCH_FRAME_BYTES

MAX_ITEMS = 16_384
MAX_DEPTH = 16
_LEAVES = frozenset({str, bytes, int, bool, type(None), float})
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


def pack(value: Any) -> bytes:
    """Encode plain values (None, bool, int, float, str, bytes, list, dict) as msgpack.

    Raises:
        TypeError, ValueError, OverflowError: if it holds a type, a text or a number that msgpack has not.
    """
    if _plain(value, MAX_DEPTH):
        return _encode(value)
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def pack_builtins(value: Any) -> bytes:
    """As `pack`, for values that msgspec itself made plain, which is not looked at again."""
    return _encode(value)


def unpack_own(data: bytes) -> Any:
    """Decode what `pack` made, as whoever calls has authenticated: it is not looked at again.

    Raises:
        BadFrame: if it is no msgpack all the same.
    """
    try:
        return _decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadFrame("message is not well-formed msgpack") from error


def unpack(data: bytes | memoryview, *, max_bytes: int = MAX_BATCH_FRAME_BYTES) -> Any:
    """Decode one msgpack value that fills `data` exactly.

    Raises:
        BadFrame: if the bytes are not msgpack, leave a rest, nest deeper than 16, repeat or mistype a map key,
            or exceed a length limit.
    """
    if len(data) > max_bytes:
        raise BadFrame("message is longer than its limit")
    try:
        value = _decode(data)
        if _plain(value, MAX_DEPTH) and _encode(value) == data:
            return value
    except (msgspec.DecodeError, ValueError, RecursionError):
        # The strict reader below says what is wrong, or takes what is not in its shortest form.
        value = None
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_str_len=max_bytes,
            max_bin_len=max_bytes,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            max_ext_len=0,
            object_pairs_hook=_unique,
        )
    except BadFrame:
        raise
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise BadFrame("message is not well-formed msgpack") from error
    _check_depth(value, MAX_DEPTH)
    return value


def _plain(value: Any, left: int) -> bool:
    """Whether a value is made of what a message may hold, with at most `left` more levels and no long lists."""
    kind = type(value)
    if kind in _LEAVES:
        return True
    if left < 0:
        return False
    if kind is dict:
        if len(value) > MAX_ITEMS:
            return False
        for key, item in value.items():
            if type(key) is not str or (type(item) not in _LEAVES and not _plain(item, left - 1)):
                return False
        return True
    if kind is list:
        return len(value) <= MAX_ITEMS and all(type(item) in _LEAVES or _plain(item, left - 1) for item in value)
    return False


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        raise BadFrame("a map repeats a key")
    for key in mapping:
        if type(key) is not str:
            raise BadFrame("a map key is not a string")
    return mapping


def _check_depth(value: Any, left: int) -> None:
    if left < 0:
        raise BadFrame("message nests too deep")
    if type(value) is dict:
        for item in value.values():
            if type(item) is dict or type(item) is list:
                _check_depth(item, left - 1)
    elif type(value) is list:
        for item in value:
            if type(item) is dict or type(item) is list:
                _check_depth(item, left - 1)
