"""Header slots: seal them, open them, read both."""

from collections.abc import Callable
from dataclasses import dataclass

from kmsfs.aead.siv import SIV_BYTES, SivKey
from kmsfs.envelope.blockfile import BlockFile
from kmsfs.envelope.volumekeys import VolumeKeys
from kmsfs.errors import AuthenticationFailed, CorruptFile, IntegrityReason, UnsupportedFormat
from kmsfs.formats.fileheader import (
    ATTR_BOX_BYTES,
    ATTR_OFFSET,
    FORMAT_VERSION,
    MAGIC,
    MAP_OFFSET,
    SLOT_BYTES,
    Attributes,
    Clear,
    file_id_of,
    parse_attributes,
    parse_clear,
    session_of,
)
from kmsfs.suites import FileSuite

_ZERO_SLOT = bytes(SLOT_BYTES)
_PLAIN_START = MAGIC + bytes([FORMAT_VERSION, FileSuite.AES_256_GCM_HKDF_SHA512])


@dataclass(slots=True)
class Slot:
    """One valid header: its place, clear fields, attributes, still sealed map box, and the tag that authenticates it."""

    number: int
    clear: Clear
    attributes: Attributes
    map_box: bytes
    tag: bytes


@dataclass(slots=True)
class SlotPair:
    """What a file's two slots hold: valid ones newest first, and whether one is non-zero and invalid."""

    valid: list[Slot]
    damaged: CorruptFile | None
    file_bytes: int


def seal_slot(key: SivKey, clear: Clear, attributes: Attributes, map_box: bytes) -> bytes:
    """Return a slot's 4,096 bytes; `map_box` is the map's ciphertext, its pin is in `clear`."""
    head = clear.pack()
    return head + key.seal(attributes.pack(), (head,)) + map_box


def header_tag(slot: bytes) -> bytes:
    """Return the synthetic IV of a slot's attribute box (RFC 5297): it authenticates the clear fields and attributes."""
    return slot[ATTR_OFFSET : ATTR_OFFSET + SIV_BYTES]


def open_slot(keys: VolumeKeys, number: int, data: bytes) -> Slot:
    """Open one slot.

    Raises:
        CorruptFile: if it is no header of this volume or was changed.
        UnsupportedFormat: if it is of a newer format.
    """
    clear = parse_clear(data)
    if clear.volume_id != keys.volume_id:
        raise CorruptFile("file belongs to another volume", IntegrityReason.IDENTITY)
    try:
        plain = keys.attr.open(data[ATTR_OFFSET : ATTR_OFFSET + ATTR_BOX_BYTES], (data[:ATTR_OFFSET],))
    except AuthenticationFailed as error:
        raise CorruptFile("file header does not authenticate", IntegrityReason.HEADER_MAC) from error
    attributes = parse_attributes(plain)
    attributes.file_id = clear.file_id
    return Slot(number, clear, attributes, data[MAP_OFFSET:], header_tag(data))


def peek_attributes(keys: VolumeKeys, file: BlockFile, trusts: Callable[[int], bool]) -> Attributes | None:
    """Return the attributes of a file that has one good header, of a session that `trusts` trusts; None: ask `read_slots`.

    What a listing does for every file: one read and one opening, without what is only needed to open the file.

    Raises:
        StorageError: if the store cannot be read.
    """
    raw = file.read(2 * SLOT_BYTES, 0)
    if len(raw) != SLOT_BYTES or raw[: len(_PLAIN_START)] != _PLAIN_START or not trusts(session_of(raw)):
        return None
    try:
        plain = keys.attr.open(raw[ATTR_OFFSET : ATTR_OFFSET + ATTR_BOX_BYTES], (raw[:ATTR_OFFSET],))
        attributes = parse_attributes(plain)
    except (AuthenticationFailed, CorruptFile, UnsupportedFormat):
        return None
    attributes.file_id = file_id_of(raw)
    return attributes


def read_slots(keys: VolumeKeys, file: BlockFile) -> SlotPair:
    """Read both slots of a file.

    Raises:
        UnsupportedFormat: if no slot is of a known format and one is of a newer one.
        StorageError: if the store cannot be read.
    """
    raw = file.read(2 * SLOT_BYTES, 0)
    valid: list[Slot] = []
    damaged: CorruptFile | None = None
    newer: UnsupportedFormat | None = None
    for number in (0, 1):
        piece = raw[number * SLOT_BYTES : (number + 1) * SLOT_BYTES]
        if not piece or piece == _ZERO_SLOT[: len(piece)]:
            continue
        try:
            valid.append(open_slot(keys, number, piece))
        except CorruptFile as error:
            damaged = error
        except UnsupportedFormat as error:
            newer = error
    if newer is not None and not valid:
        raise newer
    if newer is not None:
        damaged = CorruptFile("one header is of an unknown format", IntegrityReason.OTHER_SLOT)
    valid.sort(key=lambda slot: -slot.clear.generation)
    if len(valid) == 2 and valid[0].clear.file_id != valid[1].clear.file_id:
        damaged = CorruptFile("the two headers name different files", IntegrityReason.IDENTITY)
    return SlotPair(valid, damaged, len(raw))
