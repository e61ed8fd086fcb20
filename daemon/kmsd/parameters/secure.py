"""SecureStrings by tier, purely: the steps under a KMS key are callables that the service passes in.

Standard: KMS Encrypt with {"PARAMETER_ARN": arn}. Advanced: an AWS Encryption SDK message under its own data key.
Source: KMS developer guide, "How AWS Systems Manager Parameter Store uses AWS KMS".
"""

from collections.abc import Callable

from kmsfs.aead.framed import MessageKeys
from kmsfs.aead.nonces import Rng
from kmsfs.errors import AuthenticationFailed, InvalidCiphertext
from kmsfs.formats.message import FRAME_BYTES, Message, MessageHeader, encode_frame, frame_aad, parse_message

PROVIDER_ID = "kmsfs"
CONTEXT_KEY = "PARAMETER_ARN"

Unwrap = Callable[[bytes], bytes]


def seal_message(
    plain: bytes, context: dict[str, str], key_arn: str, data_key: bytes, wrapped_key: bytes, rng: Rng
) -> bytes:
    """Return the Encryption SDK message of an advanced SecureString, or of another secret value."""
    message_id = rng(32)
    keys = MessageKeys(data_key, message_id)
    header = MessageHeader(message_id, context, PROVIDER_ID, key_arn, wrapped_key, keys.commitment)
    parts = [header.body, keys.seal_frame(0, b"", header.body)]
    number = 1
    while len(plain) > FRAME_BYTES:
        piece, plain = plain[:FRAME_BYTES], plain[FRAME_BYTES:]
        aad = frame_aad(message_id, number, FRAME_BYTES, final=False)
        parts.append(encode_frame(number, keys.seal_frame(number, piece, aad), final=False))
        number += 1
    aad = frame_aad(message_id, number, len(plain), final=True)
    parts.append(encode_frame(number, keys.seal_frame(number, plain, aad), final=True))
    return b"".join(parts)


def open_message(data: bytes, context: dict[str, str], unwrap: Unwrap) -> bytes:
    """Return the plaintext of a message whose encryption context must be exactly this one.

    Raises:
        InvalidCiphertext: if the message is damaged, of another thing, or its commitment does not match.
    """
    message = parse_message(data)
    if message.header.context != context:
        raise InvalidCiphertext(evidence="message belongs to something else")
    keys = MessageKeys(unwrap(message.header.wrapped_key), message.header.message_id)
    if not keys.commits_to(message.header.commitment):
        raise InvalidCiphertext(evidence="message commitment")
    try:
        return _open_frames(message, keys)
    except AuthenticationFailed as error:
        raise InvalidCiphertext(evidence=error.detail) from error


def _open_frames(message: Message, keys: MessageKeys) -> bytes:
    keys.open_frame(0, message.header_tag, message.header.body)
    plain = []
    for number, final, sealed in message.frames:
        aad = frame_aad(message.header.message_id, number, len(sealed) - 16, final=final)
        plain.append(keys.open_frame(number, sealed, aad))
    return b"".join(plain)
