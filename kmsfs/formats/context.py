"""Canonical bytes of an encryption context: count u16, then entries sorted by UTF-8 key, u16 lengths.

The same serialisation as the AWS Encryption SDK (aws-encryption-sdk-specification, framework/structures.md).
Lengths make it injective: {"a": "bc"} and {"ab": "c"} have different bytes.
"""

from kmsfs.errors import BadFrame, ShapeError
from kmsfs.quantity import CONTEXT_MAX_BYTES, CONTEXT_MAX_PAIRS

_LENGTHS = [length.to_bytes(2, "big") for length in range(CONTEXT_MAX_BYTES + 1)]
"""Lengths as they are stored: this is done for every data key, several times."""


def canonical(context: dict[str, str]) -> bytes:
    """Return the bytes to authenticate; the empty context is two zero bytes.

    Raises:
        ShapeError: if there are more than 64 pairs or more than 8 KiB, or a text is not encodable.
    """
    if not context:
        return b"\0\0"
    if len(context) > CONTEXT_MAX_PAIRS:
        raise ShapeError(f"an encryption context has at most {CONTEXT_MAX_PAIRS} pairs")
    try:
        # Texts are in the order of their UTF-8: it was made so that both agree (RFC 3629, section 1).
        pairs = [(key.encode(), value.encode()) for key, value in sorted(context.items())]
    except UnicodeEncodeError as error:
        raise ShapeError("an encryption context holds text that is not Unicode") from error
    parts = [_LENGTHS[len(pairs)]]
    total = 2
    for key, value in pairs:
        total += 4 + len(key) + len(value)
        if total > CONTEXT_MAX_BYTES:
            raise ShapeError(f"an encryption context has at most {CONTEXT_MAX_BYTES} bytes")
        parts += (_LENGTHS[len(key)], key, _LENGTHS[len(value)], value)
    return b"".join(parts)


def check_limits(context: dict[str, str]) -> None:
    """Check a context as `canonical` does, without making its bytes where it is plainly small.

    Raises:
        ShapeError: as `canonical`.
    """
    text = "".join([*context, *context.values()])
    if len(context) > CONTEXT_MAX_PAIRS or not text.isascii() or 2 + 4 * len(context) + len(text) > CONTEXT_MAX_BYTES:
        canonical(context)


def parse_canonical(data: bytes) -> dict[str, str]:
    """Read canonical bytes back; `canonical(parse_canonical(x)) == x` for every accepted x.

    Raises:
        BadFrame: if the bytes are not canonical.
    """
    try:
        count, offset, context = int.from_bytes(data[:2], "big"), 2, {}
        for _ in range(count):
            fields = []
            for _ in range(2):
                length = int.from_bytes(data[offset : offset + 2], "big")
                fields.append(data[offset + 2 : offset + 2 + length].decode())
                offset += 2 + length
            context[fields[0]] = fields[1]
        if canonical(context) != data:
            raise BadFrame("encryption context bytes are not canonical")
    except (UnicodeDecodeError, ShapeError) as error:
        raise BadFrame("encryption context bytes are not canonical") from error
    return context
