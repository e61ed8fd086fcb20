"""Token buckets per principal and class of operations: a caller that floods waits, the others do not."""

from enum import Enum

from kmsfs.api.keyspecs import is_asymmetric
from kmsfs.api.registry import OPERATIONS
from kmsfs.errors import Throttled, UsageError

CONNECTIONS_PER_UID = 128
_BURST_SECONDS = 2.0
"""A bucket holds what comes in this long."""
_PRINCIPALS_MAX = 4096
"""Buckets held before full ones are forgotten."""


class OperationClass(Enum):
    """Operations that share a bucket, as at AWS ("Request quotas", AWS KMS developer guide), with tokens a second by default."""

    CRYPTOGRAPHIC = ("cryptographic", 200_000.0)
    """With symmetric and HMAC keys."""
    ASYMMETRIC = ("asymmetric", 5_000.0)
    """With key pairs: hundreds of times the work."""
    PARAMETERS = ("parameters", 20_000.0)
    """Parameter Store and Secrets Manager."""
    MANAGEMENT = ("management", 10_000.0)
    """Everything else, what is no operation too."""

    def __init__(self, label: str, rate: float) -> None:
        self.label = label
        self.rate = rate

    __hash__ = object.__hash__


_PAIR_OPERATIONS = frozenset(
    {
        "Sign", "Verify", "DeriveSharedSecret", "Encapsulate", "Decapsulate", "GenerateDataKeyPair",
        "GenerateDataKeyPairWithoutPlaintext",
    }
)  # fmt: skip
_BATCHES = {"GenerateDataKeyBatch": "EncryptionContexts", "DecryptBatch": "Items"}


def _class_of(name: str) -> OperationClass:
    operation = OPERATIONS[name]
    if name in _PAIR_OPERATIONS:
        return OperationClass.ASYMMETRIC
    if operation.cryptographic or name in _BATCHES:
        return OperationClass.CRYPTOGRAPHIC
    return OperationClass.PARAMETERS if operation.service in ("ssm", "secretsmanager") else OperationClass.MANAGEMENT


_CLASSES = {name: _class_of(name) for name in OPERATIONS}


def parse_quotas(texts: list[str]) -> dict[OperationClass, float]:
    """Return the rates of `CLASS=RATE` texts, in operations a second.

    Raises:
        UsageError: if a class is unknown, or a rate is no positive number.
    """
    classes = {one.label: one for one in OperationClass}
    rates = {}
    for text in texts:
        label, _, number = text.partition("=")
        try:
            rate = float(number)
        except ValueError:
            rate = 0.0
        if label not in classes or not 0 < rate <= 1e9:
            raise UsageError(
                f"{text!r} is no quota", hint=f"CLASS=OPERATIONS-A-SECOND, the class one of {', '.join(classes)}"
            )
        rates[classes[label]] = rate
    return rates


class Buckets:
    """The buckets, refilled by time; and the number of each uid's open connections."""

    def __init__(self, rates: dict[OperationClass, float] | None = None) -> None:
        """Give each class its rate, the default where `rates` has none."""
        given = rates or {}
        self._rates = {one: given.get(one, one.rate) for one in OperationClass}
        self._levels: dict[tuple[str, OperationClass], tuple[float, float]] = {}
        self._connections: dict[int, int] = {}

    def spend(self, principal: str, operation: str, parameters: dict[str, object], now: float) -> None:
        """Take what one call costs a principal: a token, or one for each item of a batch.

        Raises:
            Throttled: if there are too few left; nothing was done then.
        """
        items = parameters.get(_BATCHES[operation]) if operation in _BATCHES else None
        cost = len(items) if isinstance(items, list) else 1
        self._take(principal, _CLASSES.get(operation, OperationClass.MANAGEMENT), float(cost), now)

    def spend_on_key(self, principal: str, key_spec: str, operation: str, now: float) -> None:
        """Take what the key adds to the cost: an RSA key is no symmetric one.

        Raises:
            Throttled: as `spend`.
        """
        if is_asymmetric(key_spec) and _CLASSES[operation] is OperationClass.CRYPTOGRAPHIC:
            self._take(principal, OperationClass.ASYMMETRIC, 1.0, now)

    def _take(self, principal: str, kind: OperationClass, cost: float, now: float) -> None:
        rate = self._rates[kind]
        burst = max(1.0, rate * _BURST_SECONDS)
        level, since = self._levels.get((principal, kind), (burst, now))
        level = min(burst, level + max(0.0, now - since) * rate)
        # A batch that is bigger than the bucket waits for a full one, not for ever.
        if level < min(cost, burst):
            self._levels[principal, kind] = (level, now)
            service = "SSM or Secrets Manager" if kind is OperationClass.PARAMETERS else "KMS"
            raise Throttled(
                f"You have exceeded the rate at which you may call {service}. Reduce the frequency of your calls.",
                hint=f"the quota of {kind.label} operations is {rate:g} a second for each principal",
            )
        self._levels[principal, kind] = (level - cost, now)
        if len(self._levels) > _PRINCIPALS_MAX:
            self._forget_full(now)

    def _forget_full(self, now: float) -> None:
        self._levels = {
            name: (level, since)
            for name, (level, since) in self._levels.items()
            if level + (now - since) * self._rates[name[1]] < self._rates[name[1]] * _BURST_SECONDS
        }

    def connect(self, uid: int) -> bool:
        """Count a connection; False if the uid has too many."""
        if self._connections.get(uid, 0) >= CONNECTIONS_PER_UID:
            return False
        self._connections[uid] = self._connections.get(uid, 0) + 1
        return True

    def disconnect(self, uid: int) -> None:
        """Forget a connection."""
        left = self._connections.get(uid, 1) - 1
        if left:
            self._connections[uid] = left
        else:
            self._connections.pop(uid, None)
