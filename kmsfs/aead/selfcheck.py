"""Known answers computed at start-up: a broken or replaced library is found before it touches data."""

from kmsfs.aead.derived import kdf_of
from kmsfs.aead.gcm import GcmKey
from kmsfs.aead.siv import SivKey
from kmsfs.errors import AuthenticationFailed, InvariantBroken

# NIST GCM test case 14 (McGrew and Viega): zero key, zero nonce, 16 zero bytes.
_GCM_PIN = bytes(12) + bytes.fromhex("d0d1c8a799996bf0265b98b5d48ab919")
_GCM_CIPHER = bytes.fromhex("cea7403d4d606b6e074ec5d3baf39d18")
# The library's own KBKDF of a zero key and 40 zero bytes.
_DERIVED = bytes.fromhex(
    "0670c52a10a14a75831b5e459a51d04d9ee55126c98bca553a53dd955e01ef36"
    "39550e10620db903e743561de186d1858c51b647510a15468b945f24d25586b7"
)


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
    if kdf_of(bytes(32))(bytes(40)) != _DERIVED:
        raise InvariantBroken("KBKDF known answer is wrong")
