"""RSA keys made ahead of their use, in a thread: making one takes up to seconds, in which the daemon's own would serve nobody."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from kmsfs.aead.asymmetric import generate_private

_FIELDS = {
    "CreateKey": ("KeySpec", "CustomerMasterKeySpec"), "GenerateDataKeyPair": ("KeyPairSpec",),
    "GenerateDataKeyPairWithoutPlaintext": ("KeyPairSpec",), "GetParametersForImport": ("WrappingKeySpec",),
}  # fmt: skip
"""Operations that may need a new private key, and where they name its spec."""
_SLOW = frozenset({"RSA_2048", "RSA_3072", "RSA_4096"})
_HELD_MAX = 16


class SpareKeys:
    """Private keys that were made and are nobody's yet. Calls that fail take none, so they cannot make more and more be made."""

    def __init__(self, generate: Callable[[str], bytes] = generate_private) -> None:
        self._generate = generate
        self._held: dict[str, deque[bytes]] = {spec: deque(maxlen=_HELD_MAX) for spec in _SLOW}
        self._making = threading.Lock()

    def take(self, spec: str) -> bytes:
        """Return a new private key of a spec as PKCS #8 DER: one that was made ahead, or made now. Secret.

        Raises:
            UnsupportedOperation: if this machine's cryptographic library lacks the algorithm.
        """
        held = self._held.get(spec)
        try:
            return held.popleft() if held is not None else self._generate(spec)
        except IndexError:
            return self._generate(spec)

    def lacking(self, operation: str, parameters: dict[str, Any]) -> str | None:
        """Return the spec of which a call may need a key that is slow to make and that there is none of."""
        for field in _FIELDS.get(operation, ()):
            spec = parameters.get(field)
            if isinstance(spec, str) and spec in _SLOW and parameters.get("Origin", "AWS_KMS") == "AWS_KMS":
                return None if self._held[spec] else spec
        return None

    def make(self, spec: str) -> None:
        """Make a key of a spec, unless somebody else just did. In any thread; one at a time."""
        with self._making:
            if not self._held[spec]:
                self._held[spec].append(self._generate(spec))
