"""The fields of our shapes, as tests compare them with botocore's models."""

from msgspec import NODEFAULT


def wire_fields(shape):
    """Return a shape's fields by their names on the wire, and whether each is needed."""
    required = len(shape.__struct_fields__) - len(shape.__struct_defaults__)
    return {
        wire: position < required or shape.__struct_defaults__[position - required] is NODEFAULT
        for position, wire in enumerate(shape.__struct_encode_fields__)
    }
