"""Handler of WatchChanges."""

from kmsd.dispatch.call import Call
from kmsd.events.changes import SOURCES, ChangeLog, Following
from kmsd.parameters.path import check_path
from kmsfs.api.shapes import admin as shapes
from kmsfs.quantity import HEARTBEAT_SECONDS

FOLLOWED = "followed-changes"
"""Name of the call note with what the stream wants and what it missed."""


class ChangeService:
    """WatchChanges: the session that carries the call begins the stream with what was missed."""

    def __init__(self, changes: ChangeLog) -> None:
        self._changes = changes

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
            token=self._changes.token(), complete=missed is not None, missed=len(events), heartbeat_seconds=HEARTBEAT_SECONDS
        )
