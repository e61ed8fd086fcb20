"""The sealed store: what all of them share, whatever database keeps the rows."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Dialect, bindparam, delete, select
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.sql.expression import ClauseElement

from kmsd.store.schema import HEAD, ROW, Table
from kmsd.store.sealing import RowSealer
from kmsfs.aead.kdf import sha256
from kmsfs.errors import CorruptStore, StorageError

ZERO = bytes(16)
READ_AT_ONCE = 1000
_NEVER_LACKING = frozenset({Table.ACCOUNT})
"""Tables of which a lost row would let somebody do more: without one of theirs nothing is served."""
Changes = Mapping[Table, Mapping[str, dict[str, Any] | None]]
"""By table and natural key: a row's present value, None where it is gone; those of a table that are gone come first."""


@dataclass(frozen=True, slots=True)
class Statements:
    """Texts for a driver: what runs thousands of times a second is put together once."""

    find: str
    delete: str
    below: str
    put: str
    put_head: str
    following: str
    following_tail: tuple[int, ...]
    """What the dialect wants behind the parameters of `following`."""


def statements(dialect: Dialect, insert: Callable[..., Any], following_tail: tuple[int, ...] = ()) -> Statements:
    """Return the statements in a dialect; `insert` is its insert that can update instead."""

    def text(statement: ClauseElement) -> str:
        return str(statement.compile(dialect=dialect, compile_kwargs={"render_postcompile": True}))

    this_row = (ROW.c.tbl == bindparam("tbl"), ROW.c.id == bindparam("id"))
    row, head = insert(ROW), insert(HEAD)
    columns = (ROW.c.id, ROW.c.parent, ROW.c.ver, ROW.c.blob)
    return Statements(
        find=text(select(ROW.c.ver, ROW.c.blob, ROW.c.parent).where(*this_row)),
        delete=text(delete(ROW).where(*this_row)),
        below=text(select(*columns).where(ROW.c.tbl == bindparam("tbl"), ROW.c.parent == bindparam("parent"))),
        put=text(
            row.on_conflict_do_update(
                index_elements=["tbl", "id"], set_={name: row.excluded[name] for name in ("parent", "ver", "blob")}
            )
        ),
        put_head=text(head.on_conflict_do_update(index_elements=["only"], set_={"blob": head.excluded.blob})),
        following=text(
            select(*columns)
            .where(ROW.c.tbl == bindparam("tbl"), ROW.c.id > bindparam("last"))
            .order_by(ROW.c.id)
            .limit(bindparam("most"))
        ),
        following_tail=following_tail,
    )


class Transaction(ABC):
    """Puts and deletes that become durable together."""

    def __init__(self, sealer: RowSealer, accumulator: int, quarantined: AbstractSet[tuple[int, bytes]] = frozenset()) -> None:
        self._quarantined = quarantined
        self._sealer = sealer
        self.accumulator = accumulator

    @abstractmethod
    def put(self, table: Table, natural_key: str, value: dict[str, Any], *, parent: str = "") -> None:
        """Insert or replace a row.

        Raises:
            CorruptStore: if it would be written over a damaged one, of which something may still be saved.
        """

    @abstractmethod
    def delete(self, table: Table, natural_key: str) -> None:
        """Remove a row; nothing happens if it is not there."""

    def _place(self, table: Table, natural_key: str) -> bytes:
        """Return the id of a row that may be written."""
        row_id = self._sealer.row_id(table, natural_key)
        if (int(table), row_id) in self._quarantined:
            raise CorruptStore("a damaged record of the key daemon's state lies where this would be stored", hint="restore a backup of the state")
        return row_id

    def _sealed(self, table: Table, row_id: bytes, parent_id: bytes, version: int, value: dict[str, Any]) -> bytes:
        """Return a row's new blob, counted in the accumulator."""
        blob = self._sealer.seal(table, row_id, parent_id, version, value)
        self.accumulator ^= self._sealer.mark(table, row_id, version, blob)
        return blob

    def _drop_mark(self, table: Table, row_id: bytes, old: Any) -> int:
        """Count a row that there was, or None, no more; return its version, 0 if there was none."""
        if old is None:
            return 0
        self.accumulator ^= self._sealer.mark(table, row_id, old.ver, old.blob)
        return int(old.ver)


class SealedStore(ABC):
    """One realm's state. Used from one thread; a transaction is durable when it returns, or at `sync` while `deferring`."""

    def __init__(self, sealer: RowSealer, texts: Statements) -> None:
        self.deferring = False
        """Whether transactions wait for a `sync`; nothing may be said of them before."""
        self.dirty = False
        """Whether there are transactions that wait for a `sync`."""
        self.quarantined: set[tuple[int, bytes]] = set()
        """Tables and ids of rows that were met and do not open. They stay as they are: nothing is written over them."""
        self.on_changes: Callable[[Changes], None] = lambda _changes: None
        """Told of what other daemons have written, before anything is decided on it."""
        self.commit_number = 0
        self._sealer = sealer
        self._texts = texts
        self._accumulator = 0

    @property
    def digest(self) -> bytes:
        """SHA-256 over the accumulator: what the anchor remembers."""
        return sha256(self._accumulator.to_bytes(32, "big"))

    @property
    def needs_key(self) -> bool:
        """Whether the key that seals rows will soon have sealed as many as it may (security.md, section 14)."""
        return self._sealer.nearly_spent

    # --- what a database does ---------------------------------------------------------------------------------

    @abstractmethod
    def close(self) -> None:
        """Close the database; later calls fail."""

    @abstractmethod
    def sync(self) -> None:
        """Make every transaction so far durable.

        Raises:
            StorageError: if that fails. What is held in memory may then be ahead of the database: from then on every sync and
                transaction fails, until it is opened anew.
        """

    @abstractmethod
    def probe(self) -> None:
        """Read the head record and open it: the database answers and the keys work.

        Raises:
            StorageError, DatabaseUnreachable: if the database cannot be read.
            CorruptStore: if its head does not open, or is not the one that it should be.
        """

    @abstractmethod
    def transaction(self) -> AbstractContextManager[Transaction]:
        """Run puts and deletes as one step, or none of them.

        Raises:
            StorageError, DatabaseUnreachable: if the database cannot be written; nothing has changed then, unless it is `sync` that failed.
            StateMoved: if somebody else has written since this daemon last looked, and the caller is to decide anew.
        """

    @abstractmethod
    def _rows(self, text: str, parameters: tuple[Any, ...]) -> list[Any]:
        """Run a query on its own."""

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Know everything that was written, and let nobody else write, until the end of the block.

        Raises:
            StorageError, DatabaseUnreachable: if the database cannot be used.
        """
        yield

    def require_current(self, *, for_a_lease: bool = False) -> None:  # noqa: B027
        """Refuse to answer from memory what may not be so any more; who is given a lease relies on it for longer.

        Raises:
            DatabaseUnreachable: if it is too long since this daemon could look at what others have written.
        """

    def lately_current(self) -> bool:
        """Whether what is in memory was all that there is a moment ago: only then others may count on it for a lease."""
        return True

    def seconds_since(self, _host: str) -> float | None:
        """Return for how long another host's daemon has not been heard of, in seconds; None where that is not known."""
        return None

    def loaded(self) -> None:  # noqa: B027
        """End the view of one moment in which everything was read at the start."""

    def tidy(self) -> None:  # noqa: B027
        """Remove what nobody needs any more."""

    @property
    def host(self) -> str:
        """What this daemon's host is called among those that share the database; empty where none do."""
        return ""

    # --- reading ----------------------------------------------------------------------------------------------

    def get(self, table: Table, natural_key: str) -> dict[str, Any] | None:
        """Return a row's value, or None.

        Raises:
            CorruptStore: if the row does not open.
        """
        row_id = self._sealer.row_id(table, natural_key)
        for row in self._rows(self._texts.find, (int(table), row_id)):
            return self._sealer.open(table, row_id, row.parent, row.ver, row.blob)
        return None

    def scan(self, table: Table, *, parent: str = "") -> Iterator[dict[str, Any]]:
        """Yield the values of a table, or of the rows below a parent, in no order.

        A row that does not open is left out, and from then on `quarantined`: the accumulator says that nothing else was done to it
        than damage, as its tag is the one that was written.

        Raises:
            CorruptStore: if a row does not open whose loss would let somebody do more.
        """
        if parent:
            yield from self._values(table, self._rows(self._texts.below, (int(table), self._sealer.parent_id(table, parent))))
            return
        # In portions, each begun behind the last row: a table may be larger than what memory has, and may change meanwhile.
        last = b""
        while True:
            portion = self._rows(self._texts.following, (int(table), last, READ_AT_ONCE, *self._texts.following_tail))
            yield from self._values(table, portion)
            if len(portion) < READ_AT_ONCE:
                return
            last = portion[-1].id

    def _values(self, table: Table, rows: list[Any]) -> Iterator[dict[str, Any]]:
        for row in rows:
            try:
                value = self._sealer.open(table, row.id, row.parent, row.ver, row.blob)
            except CorruptStore:
                if table in _NEVER_LACKING:
                    raise
                self.quarantined.add((int(table), row.id))
                continue
            yield value

    def is_quarantined(self, table: Table, natural_key: str) -> bool:
        """Tell whether a row is there and was found damaged."""
        return bool(self.quarantined) and (int(table), self._sealer.row_id(table, natural_key)) in self.quarantined

    def require_whole(self, table: Table, natural_key: str, what: str) -> None:
        """Refuse what would take a damaged row for one that is not there.

        Raises:
            CorruptStore: if it is one.
        """
        if self.is_quarantined(table, natural_key):
            raise CorruptStore(f"the key daemon's record of {what} is damaged", hint="restore a backup of the state; everything else is served")

    # --- the head record ----------------------------------------------------------------------------------------

    def _seal_head(self, commit: int, accumulator: int) -> bytes:
        return seal_head(self._sealer, commit, accumulator)

    def _open_head(self, row: Any) -> dict[str, Any]:
        if row is None:
            raise CorruptStore("the state database has no head record", hint="restore a backup of the state")
        return self._sealer.open(Table.HEAD, ZERO, ZERO, 0, row.blob)

    def _verify(self, connection: Connection) -> None:
        """Compare all rows with the accumulator, and take what the head says."""
        row: Any = connection.execute(select(HEAD.c.blob)).first()
        head = self._open_head(row)
        accumulator = 0
        for portion in connection.execute(select(ROW.c.tbl, ROW.c.id, ROW.c.ver, ROW.c.blob)).partitions(READ_AT_ONCE):
            accumulator ^= self._sealer.marks(portion)
        if accumulator != int.from_bytes(head["acc"], "big"):
            raise CorruptStore(
                "rows of the key daemon's state were removed, added or put back to older versions",
                hint="restore a backup of the whole state",
            )
        self.commit_number, self._accumulator = head["commit"], accumulator
        self._sealer.take_count(row.blob, head["seals"])


def seal_head(sealer: RowSealer, commit: int, accumulator: int) -> bytes:
    """Return the head record of a state."""
    value = {"commit": commit, "acc": accumulator.to_bytes(32, "big"), "seals": sealer.usage.used + 1}
    return sealer.seal(Table.HEAD, ZERO, ZERO, 0, value)


@contextmanager
def storage_errors() -> Iterator[None]:
    """Let what goes wrong in a database be the errors of this project."""
    try:
        yield
    except DBAPIError as error:
        text = str(error.orig)
        if "malformed" in text or "not a database" in text:
            raise CorruptStore(
                "the state database is damaged", hint="restore a backup of the state"
            ) from error
        raise StorageError(
            f"the state database cannot be used: {text}", hint="check the disk's space and rights"
        ) from error
    except SQLAlchemyError as error:
        raise StorageError("the state database cannot be used", evidence=str(error)) from error
