"""Verify an audit log by its chain and its signed digests, with nothing secret."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kmsfs.aead.kdf import sha256
from kmsfs.aead.signing import verify
from kmsfs.errors import AuditChainBroken, AuthenticationFailed, StorageError
from kmsfs.formats.audit import GENESIS, parse_line
from kmsfs.formats.digest import Digest, parse_digest

DIGESTS_NAME = "digests.jsonl"


@dataclass(slots=True)
class Verified:
    """What was found: all whole, or verifying had ended with an error."""

    records: int = 0
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

    def document(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "records": self.records, "digests": self.digests, "signed_records": self.signed_records,
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
    ends, first_line = _follow(log, found)
    lines = [_line_hash(line) for line in _lines(log.with_name(DIGESTS_NAME))]
    for digest in digests:
        if digest.log == first_line:
            _compare(digest, ends, found)
    if digests and digests[-1].log != first_line and not found.begun_anew:
        raise AuditChainBroken("record 0 was changed: the digests are of a log that began otherwise")
    for number, hashed in found._named:
        if number >= len(lines) or lines[number] != hashed:
            raise AuditChainBroken(f"digest {number}, which the log names, is missing or was changed")
    for number, hashed in sorted((witnessed or {}).items()):
        if number >= len(lines) or lines[number] != hashed:
            raise AuditChainBroken(f"digest {number} is not the one that the witness was told of, or is missing")
        found.witnessed += 1
    return found


def _follow(log: Path, found: Verified) -> tuple[dict[int, str], str]:
    """Check each record's place in the chain; return the chain's hash before each record that a digest may end at."""
    previous, first_line = GENESIS, ""
    ends: dict[int, str] = {}
    for number, line in enumerate(_lines(log)):
        try:
            record, unsealed, _mac = parse_line(line)
        except AuditChainBroken as error:
            raise AuditChainBroken(f"record {number} is damaged: {error.detail}") from error
        if record["seq"] != number or record["prev"] != previous:
            raise AuditChainBroken(f"record {number} was changed, or what was before it")
        if not number:
            first_line, found.begun_anew = _line_hash(line), record["op"] == "AuditRestarted"
        ends[number] = previous
        if record["op"] == "AuditDigest":
            params = record.get("params", {})
            found._named.append((params["number"], params["sha256"]))
        previous = sha256(b"\0" + unsealed).hex()
        found.records = number + 1
    ends[found.records] = previous
    return ends, first_line


def _compare(digest: Digest, ends: dict[int, str], found: Verified) -> None:
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
    """Yield whole lines; one that is being written is not there yet."""
    try:
        with path.open("rb") as stream:
            for line in stream:
                if line.endswith(b"\n"):
                    yield line
    except FileNotFoundError:
        if path.name != DIGESTS_NAME:
            raise StorageError(f"there is no audit log {path}", os_errno=2) from None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}", hint="it is its owner's: run this as root") from error


def _line_hash(line: bytes) -> str:
    return sha256(line).hex()
