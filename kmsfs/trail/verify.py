"""Verify an audit log by its chain and its signed digests, with nothing secret."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kmsfs.aead.kdf import sha256
from kmsfs.aead.signing import verify
from kmsfs.errors import AuditChainBroken, AuthenticationFailed, StorageError
from kmsfs.formats.audit import GENESIS, RETENTION, parse_line
from kmsfs.formats.digest import DIGESTS_NAME, Digest, parse_digest
from kmsfs.trail.reading import read_lines


@dataclass(slots=True)
class Verified:
    """What was found: all whole, or verifying had ended with an error."""

    records: int = 0
    """How many the log has, or had: the removed ones too."""
    removed: int = 0
    """How many of the first were removed, as the log says: they were old enough."""
    digests: int = 0
    signed_records: int = 0
    signed_until: float = 0.0
    """When the last digest was made, seconds since the epoch."""
    key: str = ""
    witnessed: int = 0
    """Digests that a witness confirms."""
    begun_anew: bool = False
    """Whether the log says that it was begun in the place of another one, which older digests are of."""
    _named: list[tuple[int, str]] = field(default_factory=list)
    """Digests that the log itself names: number and SHA-256."""
    _ended: list[tuple[int, int]] = field(default_factory=list)
    """Records that say before which number others are removed: their own number, and that one."""

    def document(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "records": self.records, "removed_records": self.removed, "digests": self.digests, "signed_records": self.signed_records,
            "unsigned_records": self.records - self.signed_records, "signed_until": self.signed_until, "key": self.key,
            "witnessed": self.witnessed,
        }  # fmt: skip


def verify_trail(log: Path, key: str | None, witnessed: Mapping[int, str] | None = None) -> Verified:
    """Follow a log's chain, and its digests under the public key `key` (hex); None takes the key that they name themselves.

    `witnessed` are digests that somebody else was told of when they were made: SHA-256 by number.

    Raises:
        AuditChainBroken: naming the first record or digest that is wrong or missing.
        StorageError: if a file cannot be read.
    """
    found = Verified()
    # In this order: the daemon goes on meanwhile, so the log has all that the digests sign, and the digests all that it names.
    digests = list(_digests(log.with_name(DIGESTS_NAME), key, found))
    ends, log_id = _follow(log, {digest.end for digest in digests}, found)
    lines = [_line_hash(line) for line in _lines(log.with_name(DIGESTS_NAME))]
    if found.removed and digests:
        # Which log it is, its first record said; whoever put another in its place had to chain its records to what was signed.
        log_id = digests[-1].log
    for digest in digests:
        if digest.log == log_id:
            _compare(digest, ends, found)
    if digests and digests[-1].log != log_id and not found.begun_anew:
        raise AuditChainBroken("record 0 was changed: the digests are of a log that began otherwise")
    # Who can write the folder alone could remove records, and say so at the log's end: what a digest covers, he cannot.
    said = max((before for number, before in found._ended if number < found.signed_records), default=0)
    if found.removed > said:
        raise AuditChainBroken(f"records {said} to {found.removed - 1} are missing, and no signed record says that they were removed")
    for number, hashed in found._named:
        if number >= len(lines) or lines[number] != hashed:
            raise AuditChainBroken(f"digest {number}, which the log names, is missing or was changed")
    for number, hashed in sorted((witnessed or {}).items()):
        if number >= len(lines) or lines[number] != hashed:
            raise AuditChainBroken(f"digest {number} is not the one that the witness was told of, or is missing")
        found.witnessed += 1
    return found


def _follow(log: Path, wanted: set[int], found: Verified) -> tuple[dict[int, str], str]:
    """Check each record's place in the chain; return the chain's hash before each `wanted` record, and the SHA-256 of record 0's line."""
    previous, log_id, next_number = "", "", -1
    ends: dict[int, str] = {}
    for line in read_lines(log):
        number = max(next_number, 0)
        try:
            record, unsealed, _mac = parse_line(line)
        except AuditChainBroken as error:
            raise AuditChainBroken(f"record {number} is damaged: {error.detail}") from error
        if next_number < 0 and record["seq"] > 0:
            # What was before may have been removed: a record that comes later has to say so.
            number, found.removed, previous = record["seq"], record["seq"], record["prev"]
        elif next_number < 0:
            log_id, found.begun_anew, previous = _line_hash(line), record["op"] == "AuditRestarted", GENESIS
        if record["seq"] != number or record["prev"] != previous:
            raise AuditChainBroken(f"record {number} was changed, or what was before it")
        if number in wanted:
            ends[number] = previous
        _note(record, found)
        previous, next_number = sha256(b"\0" + unsealed).hex(), number + 1
    found.records = max(next_number, 0)
    ends[found.records] = previous or GENESIS
    return ends, log_id


def _note(record: dict[str, Any], found: Verified) -> None:
    """Remember what a record says of digests, and of records that are removed."""
    try:
        params = record.get("params", {})
        if record["op"] == "AuditDigest":
            found._named.append((int(params["number"]), str(params["sha256"])))
        elif record["op"] == RETENTION:
            found._ended.append((record["seq"], int(params["before"])))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AuditChainBroken(f"record {record['seq']} is damaged: it lacks what it is to say") from error


def _compare(digest: Digest, ends: dict[int, str], found: Verified) -> None:
    if digest.end < found.removed:
        # Its records are gone, all of them; those of the next one are chained to them.
        found.signed_records, found.signed_until = digest.end, digest.made
        return
    if digest.end not in ends:
        raise AuditChainBroken(f"record {found.records} is missing: digest {digest.number} was made of {digest.end} records")
    if ends[digest.end] != digest.chain:
        raise AuditChainBroken(f"a record from {digest.first} to {digest.end - 1} is not the one that digest {digest.number} signed")
    if digest.first != found.signed_records:
        raise AuditChainBroken(f"digest {digest.number} begins at record {digest.first}, not at {found.signed_records}")
    found.signed_records, found.signed_until = digest.end, digest.made


def _digests(path: Path, key: str | None, found: Verified) -> Iterator[Digest]:
    previous = GENESIS
    for number, line in enumerate(_lines(path)):
        digest, message, signature = parse_digest(line)
        found.key = found.key or (key or digest.key)
        if digest.number != number or digest.previous != previous:
            raise AuditChainBroken(f"digest {number} is missing, or was changed")
        if digest.key != found.key:
            raise AuditChainBroken(f"digest {number} is by another key than {found.key}")
        try:
            verify(bytes.fromhex(digest.key), message, signature)
        except AuthenticationFailed as error:
            raise AuditChainBroken(f"digest {number} is not signed by its key") from error
        previous = _line_hash(line)
        found.digests = number + 1
        yield digest


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the digests' whole lines; one that is being written is not there yet."""
    try:
        with path.open("rb") as stream:
            for line in stream:
                if line.endswith(b"\n"):
                    yield line
    except FileNotFoundError:
        # None was made yet; a log that names one says so.
        return
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}", hint="it is its owner's: run this as root") from error


def _line_hash(line: bytes) -> str:
    return sha256(line).hex()
