"""The one msgpack door: maps with string keys, bounded sizes, no extension types."""

from typing import Any

import msgpack

from kmsfs.errors import BadFrame
from kmsfs.quantity import MAX_BATCH_FRAME_BYTES

MAX_ITEMS = 16_384
MAX_DEPTH = 16


def pack(value: Any) -> bytes:
    """Encode plain values (None, bool, int, float, str, bytes, list, dict) as msgpack."""
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def unpack(data: bytes | memoryview, *, max_bytes: int = MAX_BATCH_FRAME_BYTES) -> Any:
    """Decode one msgpack value that fills `data` exactly.

    Raises:
        BadFrame: if the bytes are not msgpack, leave a rest, nest deeper than 16, repeat or mistype a map key,
            or exceed a length limit.
    """
    if len(data) > max_bytes:
        raise BadFrame("message is longer than its limit")
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
