"""One call on its way through the pipeline: what handlers get."""

from typing import Any, Protocol

import msgspec

from kmsd.authz.principal import Caller
from kmsd.keys.registry import KmsKey
from kmsfs.api.operation import Operation, Shape
from kmsfs.formats.blob import Blob
from kmsfs.ids import REGION, scope_of


class Call(msgspec.Struct):
    """A typed, authorised call. `key` is the key acted on, `source` ReEncrypt's other key, `target` MoveVolume's."""

    operation: Operation
    request: Any
    caller: Caller
    call_id: str
    now: float
    via: str | None = None
    connection_id: int = 0
    context_uid: int | None = None
    key: KmsKey | None = None
    source: KmsKey | None = None
    target: KmsKey | None = None
    blob: Blob | None = None
    decided_by: str = ""
    notes: dict[str, Any] = {}
    region: str = REGION
    _scope: str = ""

    @property
    def scope(self) -> str:
        """The region and account whose keys, parameters and secrets the call speaks of."""
        if not self._scope:
            self._scope = scope_of(self.caller.account, self.region)
        return self._scope

    @property
    def the_target(self) -> KmsKey:
        """The key that something moves to."""
        if self.target is None:
            from kmsfs.errors import InvariantBroken

            raise InvariantBroken(f"{self.operation.name} reached its handler without a target")
        return self.target

    @property
    def the_key(self) -> KmsKey:
        """The key, for handlers of operations on one."""
        if self.key is None:
            from kmsfs.errors import InvariantBroken

            raise InvariantBroken(f"{self.operation.name} reached its handler without a key")
        return self.key


class Handler(Protocol):
    """Does the work of one operation; validates and authorises nothing."""

    def __call__(self, call: Call, /) -> Shape:
        """Return the response or raise a declared error."""
        ...


class InternalCalls(Protocol):
    """What a service may ask of the pipeline in its caller's name."""

    def internal(self, outer: Call, operation_name: str, parameters: dict[str, Any], via: str) -> Any:
        """Run another operation through the whole pipeline as the same caller, under the same call id."""
        ...
