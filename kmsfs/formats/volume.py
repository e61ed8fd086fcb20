"""Volume configuration `kmsfs.volume`: canonical JSON with a MAC over it (docs/formats/file-v1.md)."""

import base64
import json
import re
from dataclasses import dataclass
from typing import Any

from kmsfs.errors import CorruptVolume, UnsupportedFormat

CONFIG_NAME = "kmsfs.volume"
CONFIG_FORMAT = 1
_FIELDS = frozenset(
    {
        "bind",
        "chunk_log2",
        "features",
        "format",
        "key_arn",
        "mac",
        "mode",
        "root_id",
        "volume_id",
        "wrapped_key",
    }
)
_HEX16 = re.compile(r"[0-9a-f]{32}\Z")


@dataclass(frozen=True, slots=True)
class VolumeConfig:
    """What a volume is: identity, its KMS key, its wrapped volume key and options."""

    volume_id: bytes
    key_arn: str
    wrapped_key: bytes
    root_id: bytes
    chunk_log2: int
    bind: str

    def _fields(self) -> dict[str, Any]:
        return {
            "bind": self.bind,
            "chunk_log2": self.chunk_log2,
            "features": [],
            "format": CONFIG_FORMAT,
            "key_arn": self.key_arn,
            "mode": "per-file",
            "root_id": self.root_id.hex(),
            "volume_id": self.volume_id.hex(),
            "wrapped_key": base64.b64encode(self.wrapped_key).decode(),
        }

    def signed_bytes(self) -> bytes:
        """The canonical JSON that the MAC covers: sorted keys, no spaces."""
        return json.dumps(self._fields(), sort_keys=True, separators=(",", ":")).encode()

    def encode(self, mac: bytes) -> bytes:
        """Return the file's bytes; `mac` is HMAC-SHA256 over `signed_bytes` under the config key."""
        fields = self._fields() | {"mac": mac.hex()}
        return json.dumps(fields, sort_keys=True, indent=1).encode() + b"\n"


def parse_config(data: bytes) -> tuple[VolumeConfig, bytes]:
    """Return (configuration, MAC); the MAC is not checked yet.

    Raises:
        CorruptVolume: if it is not a volume configuration.
        UnsupportedFormat: if it is one of a newer format or with an unknown feature or option.
    """
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptVolume(f"{CONFIG_NAME} is not JSON", hint="restore it from a backup") from error
    if not isinstance(fields, dict) or "format" not in fields:
        raise CorruptVolume(f"{CONFIG_NAME} is not a volume configuration", hint="restore it from a backup")
    if fields["format"] != CONFIG_FORMAT or fields.get("features") or fields.get("mode") != "per-file":
        raise UnsupportedFormat(
            f"{CONFIG_NAME} has an unknown format or feature", hint="a newer kmsfs may read it"
        )
    return _typed(fields)


def _typed(fields: dict[str, Any]) -> tuple[VolumeConfig, bytes]:
    try:
        texts = {
            name: fields[name] for name in ("bind", "key_arn", "mac", "root_id", "volume_id", "wrapped_key")
        }
        good = (
            fields.keys() == _FIELDS
            and all(type(text) is str for text in texts.values())
            and texts["bind"] in ("enforce", "warn", "off")
            and type(fields["chunk_log2"]) is int
            and 12 <= fields["chunk_log2"] <= 20
            and bool(_HEX16.match(texts["volume_id"]) and _HEX16.match(texts["root_id"]))
        )
        if not good:
            raise CorruptVolume(f"{CONFIG_NAME} has an impossible field", hint="restore it from a backup")
        config = VolumeConfig(
            bytes.fromhex(texts["volume_id"]),
            texts["key_arn"],
            base64.b64decode(texts["wrapped_key"], validate=True),
            bytes.fromhex(texts["root_id"]),
            fields["chunk_log2"],
            texts["bind"],
        )
        return config, bytes.fromhex(texts["mac"])
    except (KeyError, ValueError) as error:
        raise CorruptVolume(
            f"{CONFIG_NAME} has an impossible field", hint="restore it from a backup"
        ) from error
