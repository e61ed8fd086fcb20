"""Audit record bytes: canonical JSON lines with a hash chain (docs/formats/audit-v1.md)."""

from typing import Any

import msgspec

from kmsfs.errors import AuditChainBroken

GENESIS = "0" * 64
_ENCODER = msgspec.json.Encoder(order="sorted")


def encode_unsealed(record: dict[str, Any]) -> bytes:
    """Return the canonical JSON of a record without its `mac`: what the chain hashes after one zero byte."""
    return _ENCODER.encode(record)


def encode_line(record: dict[str, Any], unsealed: bytes, mac: bytes) -> bytes:
    """Return the line to store, newline included; `mac` is 16 bytes, `unsealed` what `encode_unsealed` gave.

    The field is put at its sorted place in the bytes that are there already: encoding twice would cost more.
    """
    before = _ENCODER.encode({name: value for name, value in record.items() if name < "mac"})
    cut = len(before) - 1
    comma = b"," if cut > 1 else b""
    after = b"," if len(unsealed) > cut + 1 and cut == 1 else b""
    field = b'%s"mac":"%s"%s' % (comma, mac.hex().encode(), after)
    return unsealed[:cut] + field + unsealed[cut:] + b"\n"


def parse_line(line: bytes) -> tuple[dict[str, Any], bytes, bytes]:
    """Return (record without mac, its canonical bytes, mac).

    Raises:
        AuditChainBroken: if the line is not a canonical record.
    """
    try:
        record = msgspec.json.decode(line)
        mac = bytes.fromhex(record.pop("mac"))
        unsealed = encode_unsealed(record)
        if encode_line(record, unsealed, mac) != line:
            raise AuditChainBroken("an audit line is not canonical")
        if type(record["seq"]) is not int or type(record["prev"]) is not str:
            raise AuditChainBroken("an audit line lacks its chain fields")
    except (msgspec.DecodeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise AuditChainBroken("an audit line is not a record") from error
    return record, unsealed, mac
