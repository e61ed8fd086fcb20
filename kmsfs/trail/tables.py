"""The audit log as a table, in SQLite's memory: for questions in SQL that can change nothing."""

import datetime
import json
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any

from kmsfs.errors import InvalidRequest
from kmsfs.trail.reading import principal_of

COLUMNS = (
    "seq", "time", "ts", "request", "principal", "uid", "gid", "pid", "access_key", "service", "operation", "key", "context",
    "params", "result", "error", "decided_by", "reason", "for_uid",
)  # fmt: skip
_READING = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE})


def time_of(record: dict[str, Any]) -> str:
    """Return when a call was made: ISO 8601 in UTC."""
    return datetime.datetime.fromtimestamp(record["ts"], datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def row_of(record: dict[str, Any], account: str) -> tuple[Any, ...]:
    """Return a record's row: its columns in the order of `COLUMNS`."""
    texts = {name: json.dumps(record[name], sort_keys=True) if name in record else None for name in ("ec", "params")}
    return (
        record["seq"], time_of(record), record["ts"], record.get("req"), principal_of(record, account), record.get("uid"),
        record.get("gid"), record.get("pid"), record.get("akid"), record.get("svc"), record["op"], record.get("key"),
        texts["ec"], texts["params"], record.get("res"), record.get("err"), record.get("by"), record.get("why"),
        record.get("ctx_uid"),
    )  # fmt: skip


class TrailTable:
    """`records`, with the columns of `COLUMNS`."""

    def __init__(self, records: Iterable[dict[str, Any]], account: str) -> None:
        self._connection = sqlite3.connect(":memory:")
        self._connection.execute(f"CREATE TABLE records ({', '.join(COLUMNS)})")
        marks = ", ".join("?" * len(COLUMNS))
        rows: Iterator[tuple[Any, ...]] = (row_of(record, account) for record in records)
        with self._connection:
            self._connection.executemany(f"INSERT INTO records VALUES ({marks})", rows)  # noqa: S608  (our own columns)
        self._connection.set_authorizer(_only_reading)

    def ask(self, query: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Return (names of columns, rows) of one SELECT.

        Raises:
            InvalidRequest: if it is none, or not SQL.
        """
        try:
            cursor = self._connection.execute(query)
            rows = cursor.fetchall()
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise InvalidRequest(
                f"the query cannot be answered: {error}", hint=f"one SELECT from `records`: {', '.join(COLUMNS)}"
            ) from error
        if cursor.description is None:
            raise InvalidRequest("the query asks nothing", hint="one SELECT from `records`")
        return [column[0] for column in cursor.description], rows


def _only_reading(action: int, _first: str | None, _second: str | None, _base: str | None, _trigger: str | None) -> int:
    return sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY
