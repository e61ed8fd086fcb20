"""The pipeline of every call: find, decode, authorise, state, act, audit, encode."""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from kmsd.audit.journal import Journal
from kmsd.audit.record import context_of, request_fields
from kmsd.authz.principal import Caller
from kmsd.dispatch.authorise import Authoriser
from kmsd.dispatch.call import Call, Handler
from kmsd.store.database import SealedStore
from kmsfs.api.operation import Operation, Shape
from kmsfs.api.registry import OPERATIONS, find
from kmsfs.api.validation import decode
from kmsfs.errors import AccessDenied, DryRunSucceeded, InvariantBroken, KmsfsError, StateMoved
from kmsfs.formats.frame import Request
from kmsfs.ids import REGION

_LOG = logging.getLogger("kmsd")
ALWAYS_ANSWERED = frozenset({"DisableKey", "GetStatus"})
"""What stays available when the audit log cannot be written: stopping a key, and seeing what is wrong."""


class Pipeline:
    """Runs calls. `clock` gives seconds since the epoch, `new_call_id` a fresh id per outside call."""

    def __init__(
        self, journal: Journal, store: SealedStore, clock: Callable[[], float], new_call_id: Callable[[], str], management: str
    ) -> None:
        """Records name callers of accounts other than `management` in full: of the others the uid says who they are."""
        self.journal = journal
        self._store = store
        self._clock = clock
        self._new_call_id = new_call_id
        self._management = management
        self._handlers: Mapping[str, Handler] = {}
        self._authoriser: Authoriser | None = None
        self._used_keys: set[str] = set()
        self.sync_wanted = False
        self.trace: Callable[[Call, KmsfsError | None, float], None] | None = None
        """Told of each call that has ended, where somebody asked for traces."""
        self.note_call: Callable[[str, str, float], None] = _uncounted
        """Told of each call: operation, error code or nothing, seconds."""
        self.charge: Callable[[str, str, str, float], None] = _for_nothing
        """Lets a principal pay for a key's use: principal, key spec, operation, time; raises Throttled."""
        self.note_use: Callable[[str, str, float, str], None] = _nowhere
        """Told of each successful use of a key: key id, operation, time, call id."""

    def bind(self, authoriser: Authoriser, handlers: Mapping[str, Handler]) -> None:
        """Give every operation its handler.

        Raises:
            InvariantBroken: if an operation has none, or a handler has no operation.
        """
        if handlers.keys() != OPERATIONS.keys():
            raise InvariantBroken(f"handlers and operations differ: {handlers.keys() ^ OPERATIONS.keys()}")
        self._authoriser = authoriser
        self._handlers = handlers

    def run(
        self, caller: Caller, frame: Request, connection_id: int, region: str = REGION, call_id: str = ""
    ) -> tuple[Any, Call]:
        """Run one frame's operation in a region, under an id of its own if none is given; return (plain response, call).

        Raises:
            KmsfsError: the operation's own failure, already recorded for the audit log.
        """
        call = Call(
            _UNKNOWN, None, caller, call_id or self._new_call_id(), self._clock(), connection_id=connection_id,
            context_uid=frame.context_uid, region=region,
        )  # fmt: skip
        try:
            call.operation = find(frame.operation)
        except KmsfsError as error:
            self._record(call, error, {"operation": frame.operation})
            raise
        if call.operation.mutates:
            response = self._run_knowing_all(call, frame.parameters)
        else:
            try:
                response = self._run(call, frame.parameters)
            except StateMoved:
                # It changes something after all, or looked for what has just gone.
                response = self._run_knowing_all(call, frame.parameters)
        return msgspec.to_builtins(response, builtin_types=(bytes,)), call

    def _run_knowing_all(self, call: Call, parameters: dict[str, Any]) -> Shape:
        """Run a call on what is so now, while no other daemon writes."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._store.exclusive())
            except KmsfsError as error:
                self._record(call, error)
                raise
            try:
                return self._run(call, parameters)
            except StateMoved as error:
                self._record(call, error)
                raise

    def internal(self, outer: Call, operation_name: str, parameters: dict[str, Any], via: str) -> Any:
        """Run another operation in the same caller's name, through a service, under the same call id."""
        call = Call(
            OPERATIONS[operation_name], None, outer.caller, outer.call_id, outer.now, via=via,
            connection_id=outer.connection_id, context_uid=outer.context_uid, region=outer.region,
        )  # fmt: skip
        return self._run(call, parameters)

    def record_items(self, call: Call, operation_name: str, contexts: Sequence[dict[str, str]]) -> None:
        """Record items of a batch that all went well, each as the operation it stands for."""
        base = self._base(call, None)
        base["op"] = operation_name
        if call.key is not None:
            self.note_use(call.key.key_id, operation_name, call.now, call.call_id)
        for context in contexts:
            self.journal.append({**base, "ec": context} if context else dict(base))

    def record_item(
        self, call: Call, operation_name: str, context: dict[str, str], error: str | None
    ) -> None:
        """Record one item of a batch as the operation it stands for."""
        record = self._base(call, error)
        record["op"] = operation_name
        if error is None and call.key is not None:
            self.note_use(call.key.key_id, operation_name, call.now, call.call_id)
        if context:
            record["ec"] = context
        self.journal.append(record)

    def _run(self, call: Call, parameters: dict[str, Any]) -> Shape:
        try:
            if call.operation.name not in ALWAYS_ANSWERED:
                self._store.require_current(for_a_lease=call.operation.streams)
                if call.operation.mutates:
                    self.journal.flush()
            call.request = decode(call.operation, parameters)
            if self._authoriser is None:
                raise InvariantBroken("the pipeline is not bound")
            self._authoriser.authorise(call)
            if call.key is not None and call.operation.cryptographic:
                self.charge(call.caller.principal, call.key.spec, call.operation.wire_name, call.now)
            if getattr(call.request, "dry_run", False):
                raise DryRunSucceeded("The request would have succeeded, but the DryRun option is set.")
            response = self._handlers[call.operation.wire_name](call)
        except StateMoved:
            # Nothing happened: the call is made again, and what becomes of that is recorded.
            raise
        except KmsfsError as error:
            self._record(call, error)
            raise
        except Exception as error:
            _LOG.exception("call %s of %s failed", call.call_id, call.operation.name)
            broken = InvariantBroken("internal error", evidence=repr(error))
            self._record(call, broken)
            raise broken from error
        self._record(call, None)
        return response

    def _record(self, call: Call, error: KmsfsError | None, extra: dict[str, Any] | None = None) -> None:
        record = self._base(call, error.code if error is not None else None)
        context = context_of(call.operation, call.request)
        if context:
            record["ec"] = context
        fields = extra or request_fields(call.operation, call.request)
        if fields:
            record["params"] = msgspec.to_builtins(fields)
        if error is not None and error.evidence:
            record["why"] = error.evidence
        self.journal.append(record)
        self.note_call(call.operation.name, error.code if error is not None else "", self._clock() - call.now)
        if self.trace is not None:
            self.trace(call, error, self._clock() - call.now)
        if error is None and call.operation.cryptographic:
            for key in (call.key, call.source):
                if key is not None:
                    self.note_use(key.key_id, call.operation.name, call.now, call.call_id)
        if call.operation.mutates or isinstance(error, AccessDenied):
            self.sync_wanted = True
        if call.key is not None and call.key.key_id not in self._used_keys:
            self._used_keys.add(call.key.key_id)
            self.sync_wanted = True

    def _base(self, call: Call, error: str | None) -> dict[str, Any]:
        caller = call.caller
        record: dict[str, Any] = {
            "ts": round(call.now, 3), "req": call.call_id, "uid": caller.uid, "gid": caller.gid, "pid": caller.pid,
            "op": call.operation.name, "res": "ok" if error is None else "error",
        }  # fmt: skip
        if error is not None:
            record["err"] = error
        if call.key is not None:
            record["key"] = call.key.arn
        if call.source is not None:
            record["source"] = call.source.arn
        if call.decided_by:
            record["by"] = call.decided_by
        if call.via is not None:
            record["svc"] = call.via
        if caller.access_key_id:
            record["akid"] = caller.access_key_id
        if caller.access_key_id or caller.unit or caller.account != self._management:
            record["who"] = caller.principal
        if call.context_uid is not None:
            record["ctx_uid"] = call.context_uid
        return record


_UNKNOWN = Operation("Unknown", "kmsfs", "kmsfs:Unknown", Shape, Shape, "A name that is no operation.")


def _for_nothing(_principal: str, _key_spec: str, _operation: str, _now: float) -> None:
    """Before the daemon is put together nobody pays."""


def _nowhere(_key_id: str, _operation: str, _now: float, _call_id: str) -> None:
    """Before the daemon is put together nobody keeps uses."""


def _uncounted(_operation: str, _code: str, _seconds: float) -> None:
    """Before the daemon is put together nobody counts calls."""
