"""What a header has no room for: extended attributes, and the homes of files with many hard links.

One sealed record an inode, in the folder `.kx` of the cipher directory, under a name made from the file's or
directory's id. A file's header holds the number of the record that belongs to it, so an older or missing record is
noticed (docs/formats/file-v1.md, "Extras").
"""

from dataclasses import dataclass, field

from kmsfs.aead.nonces import Rng
from kmsfs.envelope.volumekeys import VolumeKeys
from kmsfs.errors import AuthenticationFailed, BadFrame, CorruptFile, IntegrityReason, UnsupportedFormat
from kmsfs.formats.packing import pack, unpack

EXTRAS_DIR = ".kx"
RECORD_VERSION = 1
RECORD_MAX_BYTES = 1 << 20
"""Sealed size of a record: the bound of one AES-GCM message (security.md, section 14)."""
HOME_BYTES = 16
_PREFIX = bytes([RECORD_VERSION])


@dataclass(slots=True)
class Extras:
    """One record. `number` grows with every change; `homes` are home tags of 16 bytes."""

    number: int = 0
    attributes: dict[bytes, bytes] = field(default_factory=dict)
    homes: list[bytes] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether nothing is in it."""
        return not self.attributes and not self.homes


def seal_extras(keys: VolumeKeys, owner: bytes, extras: Extras, rng: Rng) -> bytes:
    """Return the bytes of a record; it may be longer than `RECORD_MAX_BYTES`, which the caller refuses."""
    plain = pack(
        {
            "n": extras.number,
            "x": [[name, value] for name, value in sorted(extras.attributes.items())],
            "h": b"".join(extras.homes),
        }
    )
    return _PREFIX + keys.extras.seal(rng, plain, _aad(keys, owner))


def open_extras(keys: VolumeKeys, owner: bytes, data: bytes) -> Extras:
    """Read a record.

    Raises:
        CorruptFile: if it is not this owner's, or was changed.
        UnsupportedFormat: if it is of a newer format.
    """
    if data[:1] != _PREFIX:
        if not data or not data[0]:
            # No version is 0: a power cut leaves zeros where nothing was stored yet.
            raise CorruptFile("an extended attribute record is empty", IntegrityReason.LENGTH)
        raise UnsupportedFormat(f"extended attribute record version {data[0]}")
    try:
        value = unpack(keys.extras.open(memoryview(data)[1:], _aad(keys, owner)), max_bytes=RECORD_MAX_BYTES)
        homes = value["h"]
        found = Extras(
            value["n"],
            {bytes(name): bytes(content) for name, content in value["x"]},
            [homes[at : at + HOME_BYTES] for at in range(0, len(homes), HOME_BYTES)],
        )
    except (AuthenticationFailed, BadFrame, KeyError, TypeError, ValueError) as error:
        raise CorruptFile(
            "an extended attribute record does not authenticate", IntegrityReason.HEADER_MAC
        ) from error
    return found


def _aad(keys: VolumeKeys, owner: bytes) -> bytes:
    return b"kmsfs/extras" + keys.volume_id + owner
