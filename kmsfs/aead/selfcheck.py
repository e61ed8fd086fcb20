"""Known answers computed at start-up: a broken or replaced library is found before it touches data."""

from kmsfs.aead.gcm import GcmKey
from kmsfs.aead.kdf import kbkdf
from kmsfs.aead.siv import SivKey
from kmsfs.errors import AuthenticationFailed, InvariantBroken

# NIST GCM test case 14 (McGrew and Viega): zero key, zero nonce, 16 zero bytes.
_GCM_PIN = bytes(12) + bytes.fromhex("d0d1c8a799996bf0265b98b5d48ab919")
_GCM_CIPHER = bytes.fromhex("cea7403d4d606b6e074ec5d3baf39d18")


def run_self_check() -> None:
    """Check AES-GCM, AES-SIV and KBKDF against known answers and that a wrong tag is refused.

    Raises:
        InvariantBroken: if any answer is wrong. Nothing must be sealed or opened then.
    """
    gcm = GcmKey(bytes(32))
    if gcm.open_detached(_GCM_PIN, _GCM_CIPHER, b"") != bytes(16):
        raise InvariantBroken("AES-256-GCM known answer is wrong")
    try:
        gcm.open_detached(_GCM_PIN[:-1] + b"\x18", _GCM_CIPHER, b"")
    except AuthenticationFailed:
        pass
    else:
        raise InvariantBroken("AES-256-GCM accepts a wrong tag")
    siv = SivKey(bytes(range(64)))
    if siv.open(siv.seal(b"kmsfs", [b"a", b"b"]), [b"a", b"b"]) != b"kmsfs":
        raise InvariantBroken("AES-SIV does not invert")
    expected = bytes.fromhex("84fd7469913639ae873637ff73113cff")
    if kbkdf(bytes(32), b"kmsfs/kms/v1", bytes(40), 16) != expected:
        raise InvariantBroken("KBKDF known answer is wrong")
