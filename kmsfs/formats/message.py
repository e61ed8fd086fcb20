"""AWS Encryption SDK message v2, suite 0x0478, one encrypted data key, 4 KiB frames: byte layout only.

Source: aws-encryption-sdk-specification, data-format/message-header.md, message-body.md, message-body-aad.md.
Everything is big-endian.
"""

from dataclasses import dataclass

from kmsfs.errors import BadFrame, InvalidCiphertext
from kmsfs.formats.context import canonical, parse_canonical

MESSAGE_VERSION = b"\x02"
SUITE = b"\x04\x78"
FRAME_BYTES = 4096
MAX_FRAMES = 17
"""A secret of 64 KiB, in frames of 4 KiB and a last one."""
_FINAL = b"\xff\xff\xff\xff"
_FRAME_TEXT = b"AWSKMSEncryptionClient Frame"
_FINAL_TEXT = b"AWSKMSEncryptionClient Final Frame"


@dataclass(frozen=True, slots=True)
class MessageHeader:
    """The header of a message; `body` is what the header tag authenticates."""

    message_id: bytes
    context: dict[str, str]
    provider_id: str
    provider_info: str
    wrapped_key: bytes
    commitment: bytes

    @property
    def body(self) -> bytes:
        """The header's bytes before its tag."""
        context = canonical(self.context) if self.context else b""
        return b"".join(
            (
                MESSAGE_VERSION,
                SUITE,
                self.message_id,
                _sized(context),
                b"\x00\x01",
                _sized(self.provider_id.encode()),
                _sized(self.provider_info.encode()),
                _sized(self.wrapped_key),
                b"\x02",
                FRAME_BYTES.to_bytes(4, "big"),
                self.commitment,
            )
        )


@dataclass(frozen=True, slots=True)
class Message:
    """A parsed message: header, header tag, and (number, final, sealed bytes) per frame."""

    header: MessageHeader
    header_tag: bytes
    frames: list[tuple[int, bool, bytes]]


def frame_aad(message_id: bytes, number: int, plain_bytes: int, *, final: bool) -> bytes:
    """Associated data of a frame; `plain_bytes` is the length of its plaintext."""
    text = _FINAL_TEXT if final else _FRAME_TEXT
    return message_id + text + number.to_bytes(4, "big") + plain_bytes.to_bytes(8, "big")


def encode_frame(number: int, sealed: bytes, *, final: bool) -> bytes:
    """Return a frame's bytes; `sealed` is ciphertext ‖ tag."""
    sequence = number.to_bytes(4, "big")
    nonce = number.to_bytes(12, "big")
    if final:
        return _FINAL + sequence + nonce + (len(sealed) - 16).to_bytes(4, "big") + sealed
    return sequence + nonce + sealed


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.offset = 0

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes.

        Raises:
            InvalidCiphertext: if there are fewer.
        """
        piece = self.data[self.offset : self.offset + count]
        if len(piece) != count:
            raise InvalidCiphertext(evidence="message is too short")
        self.offset += count
        return piece

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "big")

    def sized(self) -> bytes:
        return self.take(self.number(2))


def parse_message(data: bytes) -> Message:
    """Read a message's shape; nothing is authenticated yet.

    Raises:
        InvalidCiphertext: for another version, suite, content type or frame length, more than one encrypted
            data key, more than seventeen frames, or bytes after the last frame.
    """
    reader = _Reader(data)
    if reader.take(3) != MESSAGE_VERSION + SUITE:
        raise InvalidCiphertext(evidence="message version or suite")
    message_id = reader.take(32)
    raw_context = reader.sized()
    try:
        context = parse_canonical(raw_context) if raw_context else {}
        if reader.number(2) != 1:
            raise InvalidCiphertext(evidence="number of encrypted data keys")
        provider_id, provider_info = reader.sized().decode(), reader.sized().decode()
    except (BadFrame, UnicodeDecodeError) as error:
        raise InvalidCiphertext(evidence="message header text") from error
    wrapped_key = reader.sized()
    if reader.take(5) != b"\x02" + FRAME_BYTES.to_bytes(4, "big"):
        raise InvalidCiphertext(evidence="content type or frame length")
    header = MessageHeader(message_id, context, provider_id, provider_info, wrapped_key, reader.take(32))
    if header.body != data[: reader.offset]:
        raise InvalidCiphertext(evidence="message header is not canonical")
    return Message(header, reader.take(16), _parse_frames(reader))


def _parse_frames(reader: _Reader) -> list[tuple[int, bool, bytes]]:
    frames: list[tuple[int, bool, bytes]] = []
    final = False
    while not final:
        number = reader.number(4)
        final = number == 0xFFFFFFFF
        if final:
            number = reader.number(4)
        if number != len(frames) + 1 or number > MAX_FRAMES or reader.number(12) != number:
            raise InvalidCiphertext(evidence="frame sequence")
        length = reader.number(4) if final else FRAME_BYTES
        if length > FRAME_BYTES:
            raise InvalidCiphertext(evidence="frame length")
        frames.append((number, final, reader.take(length + 16)))
    if reader.offset != len(reader.data):
        raise InvalidCiphertext(evidence="bytes after the final frame")
    return frames


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data
