"""A connection to a shared database: bounded in time, and opened anew after it was lost."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from kmsfs.errors import DatabaseUnreachable, StateMoved, UsageError
from kmsfs.quantity import DATABASE_ANSWER_SECONDS

_LOOK_SECONDS = 0.25
_IDLE_SECONDS = 15
_CONFLICTS = frozenset({"40001", "40P01", "55P03", "22012"})
"""serialization_failure, deadlock_detected, lock_not_available (PostgreSQL documentation, appendix A); division_by_zero, by which
a statement says that the head has moved."""
_HINT = "check the database and its URL; a running daemon goes on by itself once it answers"


class Deadline:
    """Cuts a connection whose answer takes too long: libpq itself waits for a commit as long as it takes."""

    def __init__(self) -> None:
        self._ends: float | None = None
        self._socket: int | None = None
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, name="kmsd-database-deadline", daemon=True).start()

    @contextlib.contextmanager
    def on(self, descriptor: int) -> Iterator[None]:
        """Bound what is done in the block over a socket; it is shut down when the time is over."""
        self._socket = descriptor
        self._ends = time.monotonic() + DATABASE_ANSWER_SECONDS
        try:
            yield
        finally:
            self._ends = None

    def close(self) -> None:
        """End the thread."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(_LOOK_SECONDS):
            ends, descriptor = self._ends, self._socket
            if ends is not None and descriptor is not None and time.monotonic() > ends:
                with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as cut:
                    cut.shutdown(socket.SHUT_RDWR)


class Link:
    """The connection that state is read and written through. Used from one thread."""

    def __init__(self, url: str) -> None:
        self._engine = engine_of(url)
        self._deadline = Deadline()
        self._connection: Connection | None = None
        self.number = 0
        """Grows with each connection: locks that an earlier one held are gone."""
        self.process = 0
        """The server's process of the connection."""

    @property
    def up(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._connection is not None

    def open(self) -> None:
        """Connect, if there is no connection.

        Raises:
            DatabaseUnreachable: if the database does not let us, or does not answer.
        """
        if self._connection is None:
            with self._errors():
                self._connection = self._engine.connect()
            self.number += 1
            self.process = int(self._connection.connection.driver_connection.info.backend_pid)  # type: ignore[union-attr]
            # Whatever the operator's defaults are: a commit that was answered is durable.
            self.run("SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') IN ('off', 'local')")

    def run(self, text: str, parameters: tuple[Any, ...] = ()) -> Any:
        """Run a statement and return its result.

        Raises:
            DatabaseUnreachable: if the connection is lost by then, or the database refuses.
            StateMoved: if another daemon's transaction was in the way.
        """
        connection = self.connection
        with self._errors(), self._deadline.on(connection.connection.driver_connection.fileno()):  # type: ignore[union-attr]
            return connection.exec_driver_sql(text, parameters)

    def batch(self, *statements: tuple[str, tuple[Any, ...]]) -> list[list[Any]]:
        """Run statements one after the other in one round trip (libpq's pipeline mode); return the rows of each.

        Nothing behind one that fails is run; a transaction that was begun stays open then.

        Raises:
            DatabaseUnreachable: if the connection is lost by then, or the database refuses.
            StateMoved: if another daemon's transaction was in the way.
        """
        driver: Any = self.connection.connection.driver_connection
        with self._errors(), self._deadline.on(driver.fileno()):
            with driver.pipeline():
                cursors = [driver.cursor(row_factory=_driver().rows.namedtuple_row) for _ in statements]
                for cursor, (text, parameters) in zip(cursors, statements, strict=True):
                    cursor.execute(text, parameters)
            return [cursor.fetchall() if cursor.description else [] for cursor in cursors]

    @property
    def connection(self) -> Connection:
        """The connection.

        Raises:
            DatabaseUnreachable: if there is none.
        """
        if self._connection is None:
            raise DatabaseUnreachable("the database of the key daemon's state cannot be reached", hint=_HINT)
        return self._connection

    def undo(self) -> None:
        """End a transaction that may be open; what it did not commit is not done."""
        if self._connection is not None:
            with contextlib.suppress(DatabaseUnreachable):
                self.run("ROLLBACK")

    def drop(self) -> None:
        """Close the connection; what waits on it in the database is undone there."""
        connection, self._connection = self._connection, None
        self.process = 0
        if connection is not None:
            with contextlib.suppress(SQLAlchemyError):
                connection.invalidate()
                connection.close()

    def close(self) -> None:
        """Close everything."""
        self.drop()
        self._deadline.close()
        self._engine.dispose()

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return database_errors(self.drop)


@contextlib.contextmanager
def database_errors(lost: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Let what goes wrong be an error of this project; `lost` is called where the connection is not to be used any more.

    Raises:
        StateMoved: if another daemon's transaction was in the way.
        DatabaseUnreachable: for everything else.
    """
    try:
        yield
    except (DBAPIError, _driver().Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        if getattr(cause, "sqlstate", None) in _CONFLICTS:
            raise StateMoved("another daemon was writing", evidence=str(cause)) from error
        lost()
        raise DatabaseUnreachable(
            f"the database of the key daemon's state cannot be used: {str(cause).strip() or type(cause).__name__}", hint=_HINT
        ) from error
    except SQLAlchemyError as error:
        lost()
        raise DatabaseUnreachable("the database of the key daemon's state cannot be used", hint=_HINT, evidence=str(error)) from error


def _driver() -> Any:
    """Return psycopg, which only who shares a database needs.

    Raises:
        UsageError: if it is not installed.
    """
    try:
        import psycopg.rows
    except ImportError as error:
        raise UsageError("a shared database needs psycopg", hint="pip install 'kmsfs[postgres]'") from error
    return psycopg


def engine_of(url: str) -> Engine:
    """Return an engine that connects as libpq understands a URL: several hosts, services and password files too.

    Raises:
        UsageError: if the driver is not installed.
    """
    _driver()
    return create_engine("postgresql+psycopg://", creator=lambda: connect(url), poolclass=NullPool, isolation_level="AUTOCOMMIT")


def connect(url: str) -> Any:
    """Return a driver's connection, in autocommit, with bounds to what it waits for.

    Raises:
        UsageError: if the driver is not installed.
        psycopg.Error: if there is no connection.
    """
    milliseconds = round(DATABASE_ANSWER_SECONDS * 1000)
    lock_wait = milliseconds * 2 // 3
    return _driver().connect(
        url, autocommit=True, connect_timeout=round(DATABASE_ANSWER_SECONDS), application_name="kmsd",
        tcp_user_timeout=milliseconds, keepalives_idle=5, keepalives_interval=2, keepalives_count=3,
        # A daemon that is gone, or stopped, must not hold its locks for long. One that works uses its connection every three seconds.
        options=f"-c lock_timeout={lock_wait} -c idle_in_transaction_session_timeout={milliseconds} -c idle_session_timeout={_IDLE_SECONDS * 1000}"
                " -c statement_timeout=0"
                " -c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3",
    )  # fmt: skip
