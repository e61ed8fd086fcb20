"""Handlers of WatchChanges and RaiseAlarm."""

from kmsd.authz.principal import Caller
from kmsd.dispatch.call import Call
from kmsd.events.changes import ALARMS, SOURCES, Change, ChangeLog, Following
from kmsd.parameters.path import check_path
from kmsfs.api.shapes import admin as shapes
from kmsfs.api.shapes.keys import Empty
from kmsfs.clock import passed
from kmsfs.errors import AccessDenied
from kmsfs.quantity import HEARTBEAT_SECONDS

FOLLOWED = "followed-changes"
"""Name of the call note with what the stream wants and what it missed."""


class ChangeService:
    """WatchChanges, where the session that carries the call begins the stream with what was missed, and RaiseAlarm."""

    def __init__(self, changes: ChangeLog, management: str, keepers: frozenset[int]) -> None:
        """Of alarms know root, the daemon's user and its administrators, who are the uids `keepers`, and the root of the account `management`."""
        self._changes = changes
        self._management = management
        self._keepers = keepers

    def watch_changes(self, call: Call) -> shapes.WatchChangesResponse:
        """WatchChanges."""
        request: shapes.WatchChangesRequest = call.request
        path = check_path(request.path) if request.path is not None else None
        following = Following(call.caller, call.scope, frozenset(request.sources or SOURCES), path)
        missed = self._changes.after(request.after) if request.after is not None else []
        events = [
            self._changes.event(happened)
            for happened in missed or ()
            if following.wants(happened.change, call.now)
        ]
        call.notes[FOLLOWED] = (following, events)
        return shapes.WatchChangesResponse(
            token=self._changes.token(), complete=missed is not None, missed=len(events), heartbeat_seconds=HEARTBEAT_SECONDS, sent_at=passed()
        )

    def raise_alarm(self, call: Call) -> Empty:
        """RaiseAlarm.

        Raises:
            AccessDenied: if the caller is none of those who may know of alarms.
        """
        request: shapes.RaiseAlarmRequest = call.request
        if not self._keeps(call.caller, call.now):
            raise AccessDenied("Only root, the daemon's user and its administrators raise alarms.")
        detail = {"group": request.group, "count": request.count, "record": request.record}
        self._changes.publish(Change(ALARMS, request.about, call.scope, "", request.alarm_name, self._keeps, detail))
        return Empty()

    def _keeps(self, caller: Caller, _now: float) -> bool:
        local = not caller.access_key_id and not caller.unit
        return (caller.root and caller.account == self._management) or (local and caller.uid in self._keepers)
