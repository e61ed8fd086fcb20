"""Keyring, recovery code, store, anchor, audit journal, parameters' pure rules."""

import os
import time
import sqlite3

import pytest

from kmsd.audit.journal import Journal, verify_log
from kmsd.parameters.path import below, check_name, check_path
from kmsd.parameters.pattern import check_value
from kmsd.parameters.secure import open_message, seal_message
from kmsd.parameters.selector import parse_selector
from kmsd.parameters.tier import settle_tier
from kmsd.root.keyring import Argon2Parameters, Keyring, SealType, open_keyring
from kmsd.root.recovery import parse_recovery_code, recovery_code
from kmsd.store.anchor import Anchor
from kmsd.store.sqlite import SqliteStore
from kmsd.store.schema import Table
from kmsd.store.sealing import RowSealer
from kmsfs import errors
from kmsfs.secret import KeyMaterial


def test_recovery_code_round_trip_and_typos():
    key = KeyMaterial(os.urandom(32))
    code = recovery_code(key)
    assert parse_recovery_code(code.lower().replace("-", " ")).matches(key)
    for bad in ("", code[:-1], code[:-1] + ("A" if code[-1] != "A" else "B"), "KMSFS1-!!!!"):
        with pytest.raises(errors.RootKeyMissing):
            parse_recovery_code(bad)


def test_every_bit_of_the_keyring_counts():
    root = KeyMaterial(os.urandom(32))
    ring = Keyring(SealType.KEYFILE, os.urandom(16), Argon2Parameters(), 1, {1: KeyMaterial(os.urandom(32))}, {1: 1.0})
    data = ring.encode(root, os.urandom)
    assert open_keyring(data, root).domain_keys[1].matches(ring.domain_keys[1])
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(errors.KmsfsError):
            open_keyring(bytes(flipped), root)
    with pytest.raises(errors.RootKeyMissing):
        open_keyring(data, KeyMaterial(bytes(32)))


@pytest.fixture
def store(tmp_path):
    sealer = RowSealer({1: KeyMaterial(b"k" * 32)}, os.urandom)
    made = SqliteStore(tmp_path / "s.db", sealer, create=True)
    with made.transaction() as work:
        for number in range(4):
            work.put(Table.ALIAS, f"alias/{number}", {"name": f"alias/{number}"})
    yield made
    made.close()


def reopen(tmp_path):
    return SqliteStore(tmp_path / "s.db", RowSealer({1: KeyMaterial(b"k" * 32)}, os.urandom))


def test_store_survives_and_hides_names(store, tmp_path):
    store.close()
    again = reopen(tmp_path)
    assert sorted(row["name"] for row in again.scan(Table.ALIAS)) == [f"alias/{n}" for n in range(4)]
    assert again.get(Table.ALIAS, "alias/2") == {"name": "alias/2"}
    assert again.get(Table.ALIAS, "alias/9") is None
    raw = (tmp_path / "s.db").read_bytes()
    assert b"alias" not in raw
    again.close()


def is_refused_alone(folder):
    """Whether a damaged row is refused alone; otherwise the whole state must be: a tag is what the accumulator counts."""
    try:
        opened = reopen(folder)
        served = list(opened.scan(Table.ALIAS))
    except errors.CorruptStore:
        return False
    assert len(served) == 3 and len(opened.quarantined) == 1
    return True


def test_every_bit_of_a_row_counts(store, tmp_path):
    store.close()
    database = sqlite3.connect(tmp_path / "s.db")
    table, row_id, parent, version, blob = database.execute("SELECT tbl, id, parent, ver, blob FROM row").fetchone()
    where = "WHERE tbl=? AND id=?"
    alone = 0
    for bit in range(len(blob) * 8):
        flipped = bytearray(blob)
        flipped[bit // 8] ^= 1 << bit % 8
        database.execute(f"UPDATE row SET blob=? {where}", (bytes(flipped), table, row_id))
        database.commit()
        alone += is_refused_alone(tmp_path)
        database.execute(f"UPDATE row SET blob=? {where}", (blob, table, row_id))
        database.commit()
    assert alone == (len(blob) - 16) * 8
    for column, value in (("ver", version + 1), ("parent", b"x" * 16)):
        database.execute(f"UPDATE row SET {column}=? {where}", (value, table, row_id))
        database.commit()
        # The accumulator counts versions; of a parent the row's own seal knows.
        assert is_refused_alone(tmp_path) is (column == "parent")
        database.execute(f"UPDATE row SET ver=?, parent=? {where}", (version, parent, table, row_id))
        database.commit()
    database.close()


def test_removed_swapped_and_reverted_rows_are_noticed(store, tmp_path):
    database = sqlite3.connect(tmp_path / "s.db")
    rows = database.execute("SELECT tbl, id, blob, ver FROM row").fetchall()
    with store.transaction() as work:
        work.put(Table.ALIAS, "alias/0", {"name": "alias/0", "new": True})
    store.close()
    changed = dict((row_id, blob) for _, row_id, blob, _ in rows)
    now = database.execute("SELECT id, blob, ver FROM row").fetchall()
    [(reverted_id, new_blob, _)] = [row for row in now if changed[row[0]] != row[1]]
    old_version = next(version for _, row_id, _, version in rows if row_id == reverted_id)
    database.execute("UPDATE row SET blob=?, ver=? WHERE id=?", (changed[reverted_id], old_version, reverted_id))
    database.commit()
    with pytest.raises(errors.CorruptStore):
        reopen(tmp_path)
    database.execute("UPDATE row SET blob=?, ver=? WHERE id=?", (new_blob, old_version + 1, reverted_id))
    database.commit()
    reopen(tmp_path).close()
    database.execute("DELETE FROM row WHERE id=?", (reverted_id,))
    database.commit()
    with pytest.raises(errors.CorruptStore):
        reopen(tmp_path)
    database.close()


def test_a_failed_transaction_changes_nothing(store):
    before = store.digest
    with pytest.raises(RuntimeError), store.transaction() as work:
        work.put(Table.ALIAS, "alias/x", {"name": "x"})
        raise RuntimeError
    assert store.digest == before and store.get(Table.ALIAS, "alias/x") is None


def test_anchor_notices_an_older_database(store, tmp_path):
    anchor = Anchor(tmp_path / "anchor", b"a" * 32)
    with pytest.raises(errors.CorruptStore):
        anchor.check(store)
    anchor.write(store)
    anchor.check(store)
    old = (tmp_path / "s.db").read_bytes(), (tmp_path / "s.db-wal").read_bytes()
    with store.transaction() as work:
        work.put(Table.ALIAS, "alias/new", {"name": "new"})
    anchor.write(store)
    store.close()
    (tmp_path / "s.db").write_bytes(old[0])
    (tmp_path / "s.db-wal").write_bytes(old[1])
    (tmp_path / "s.db-shm").unlink(missing_ok=True)
    rolled_back = reopen(tmp_path)
    with pytest.raises(errors.CorruptStore, match="older"):
        Anchor(tmp_path / "anchor", b"a" * 32).check(rolled_back)
    Anchor(tmp_path / "anchor", b"a" * 32).check(rolled_back, accept_rollback=True)
    rolled_back.close()
    data = bytearray((tmp_path / "anchor").read_bytes())
    data[9] ^= 1
    (tmp_path / "anchor").write_bytes(data)
    with pytest.raises(errors.CorruptStore, match="damaged"):
        Anchor(tmp_path / "anchor", b"a" * 32).check(reopen(tmp_path))


def make_log(folder, records=6):
    journal = Journal(folder, b"s" * 32, os.urandom, first_key=b"v" * 32)
    for number in range(records):
        journal.append({"op": "X", "n": number})
    journal.close()
    return folder / "audit.jsonl"


def test_audit_chain_verifies_and_resumes(tmp_path):
    log = make_log(tmp_path)
    again = Journal(tmp_path, b"s" * 32, os.urandom)
    again.append({"op": "Y"})
    again.flush()
    # Killed before any checkpoint: the chain is followed from the stored point.
    third = Journal(tmp_path, b"s" * 32, os.urandom)
    third.append({"op": "Z"})
    third.close()
    assert verify_log(log, b"v" * 32) == 8


@pytest.mark.parametrize("attack", ["drop", "swap", "edit", "insert"])
def test_audit_attacks_are_named(tmp_path, attack):
    log = make_log(tmp_path)
    lines = log.read_bytes().splitlines(keepends=True)
    if attack == "drop":
        del lines[2]
    elif attack == "swap":
        lines[1], lines[2] = lines[2], lines[1]
    elif attack == "edit":
        lines[2] = lines[2].replace(b'"n":2', b'"n":7')
    else:
        lines.insert(2, lines[3])
    log.write_bytes(b"".join(lines))
    with pytest.raises(errors.AuditChainBroken):
        verify_log(log, b"v" * 32)


def test_audit_torn_tail_is_dropped_and_cut_tail_is_noticed(tmp_path):
    log = make_log(tmp_path)
    with log.open("ab") as stream:
        stream.write(b'{"half":')
    Journal(tmp_path, b"s" * 32, os.urandom).close()
    assert verify_log(log, b"v" * 32) == 6
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:4]))
    with pytest.raises(errors.AuditChainBroken, match="cut off"):
        Journal(tmp_path, b"s" * 32, os.urandom)


@pytest.mark.parametrize("name", ["a", "/a", "/a/b.c-d_e", "/" + "/".join("x" * 15)])
def test_good_parameter_names(name):
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "a/b", "/a/", "//a", "/a b", "/ä", "aws", "/AWSome", "ssm-x", "/ssm/x", "x" * 1012])
def test_bad_parameter_names(name):
    with pytest.raises(errors.InvalidName):
        check_name(name)


def test_sixteen_levels_are_too_many():
    with pytest.raises(errors.HierarchyLevelLimit):
        check_name("/" + "/".join("x" * 16))


def test_paths():
    assert check_path("/") == "" and check_path("/a/") == "/a"
    assert below("/a/b", "/a", recursive=False) and not below("/a/b/c", "/a", recursive=False)
    assert below("/a/b/c", "/a", recursive=True) and not below("/ab", "/a", recursive=True)
    assert below("x", "", recursive=False)
    with pytest.raises(errors.InvalidName):
        check_path("a")


def test_selectors():
    assert parse_selector("/a:3", "local:" + "1" * 12).version == 3
    assert parse_selector("arn:kmsfs:ssm:local:111111111111:parameter/a/b:2", "local:" + "1" * 12).name == "/a/b"
    assert parse_selector("arn:kmsfs:ssm:local:111111111111:parameter/a", "local:" + "1" * 12).name == "a"
    assert parse_selector("/a:prod", "local:" + "1" * 12).label == "prod"
    for bad in ("/a:", "/a:1x", "/a:awsx", "/a:SSM", "/a:b c", "/a:٣"):
        with pytest.raises(errors.ParameterVersionNotFound):
            parse_selector(bad, "local:" + "1" * 12)
    with pytest.raises(errors.ParameterNotFound):
        parse_selector("arn:aws:s3:::x", "local:" + "1" * 12)


def test_tiers():
    assert settle_tier(None, None, 10) == "Standard"
    assert settle_tier("Intelligent-Tiering", None, 5000) == "Advanced"
    assert settle_tier("Advanced", "Standard", 5000) == "Advanced"
    for asked, present, size in (("Standard", None, 4097), ("Standard", "Advanced", 1), ("Advanced", None, 8193)):
        with pytest.raises(errors.InvalidRequest):
            settle_tier(asked, present, size)


def test_allowed_patterns():
    check_value(r"^[a-z]+\d{2}$", "abc12")
    with pytest.raises(errors.ParameterPatternMismatch):
        check_value(r"^\d+$", "x")
    for none in ("(", r"(.*)\1", "(?=a)a", "(?:a{1000}){1000}", "a{1001}", "[[:foo:]]", "\ud800"):
        with pytest.raises(errors.InvalidAllowedPattern):
            check_value(none, "a" * 40)


@pytest.mark.parametrize(
    "pattern",
    [r"(a+)+$b", r"(a*)*b", r"(a|aa)+$b", r"(x+x+)+y", "a*a*a*a*b", "^(([a-z])+.)+[A-Z]([a-z])+$", "(a?){1000}b", "((a?){30}){30}b"],
)  # fmt: skip
def test_a_hostile_pattern_takes_no_longer_than_its_value(pattern):
    # A matcher that backtracks takes hours, days or for ever for each of these.
    began = time.process_time()
    with pytest.raises(errors.ParameterPatternMismatch):
        check_value(pattern, "a" * 8192)
    assert time.process_time() - began < 2.0


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 8192])
def test_messages_round_trip_and_notice_every_flipped_byte(size):
    plain, key = os.urandom(size), os.urandom(32)
    data = seal_message(plain, {"PARAMETER_ARN": "arn:x"}, "key", key, b"w" * 132, os.urandom)
    assert open_message(data, {"PARAMETER_ARN": "arn:x"}, lambda _blob: key) == plain
    with pytest.raises(errors.InvalidCiphertext):
        open_message(data, {"PARAMETER_ARN": "arn:y"}, lambda _blob: key)
    with pytest.raises(errors.InvalidCiphertext):
        open_message(data, {"PARAMETER_ARN": "arn:x"}, lambda _blob: os.urandom(32))
    for position in [*range(0, min(len(data), 400)), *range(400, len(data), 97)]:
        broken = bytearray(data)
        broken[position] ^= 1
        with pytest.raises(errors.InvalidCiphertext):
            open_message(bytes(broken), {"PARAMETER_ARN": "arn:x"}, lambda _blob: key)
    for cut in (data[:-1], data + b"\0", data[: len(data) // 2]):
        with pytest.raises(errors.InvalidCiphertext):
            open_message(cut, {"PARAMETER_ARN": "arn:x"}, lambda _blob: key)


def test_key_usage_is_written_in_portions_kept_on_failure_and_forgotten_with_its_key():
    import contextlib
    from types import SimpleNamespace

    from kmsd.keys.usage import KeyUsage

    class Store:
        def __init__(self):
            self.rows, self.full, self.writes = {}, False, []

        def scan(self, _table):
            return list(self.rows.values())

        @contextlib.contextmanager
        def transaction(self):
            if self.full:
                raise errors.StorageError("full")
            before = len(self.rows)
            yield SimpleNamespace(put=lambda _table, key, row: self.rows.__setitem__(key, row), delete=lambda _table, key: self.rows.pop(key))
            self.writes.append(len(self.rows) - before)

    store = Store()
    usage = KeyUsage(store, 5.0)
    for number in range(1500):
        usage.note(f"k{number}", "Sign", 6.0 + number, "call")
    usage.note("other", "DescribeKey", 7.0, "call")
    store.full = True
    with pytest.raises(errors.StorageError):
        usage.write()
    store.full = False
    usage.write(), usage.write(), usage.write()
    assert store.writes == [1001, 500] and "other" not in store.rows
    usage.forget(SimpleNamespace(key_id="k0"), "disabled")
    usage.forget(SimpleNamespace(key_id="k1"), "deleted")
    again = KeyUsage(store, 99.0)
    assert again.since == 5.0 and again.of(SimpleNamespace(key_id="k0")).at == 6.0 and usage.of(SimpleNamespace(key_id="k1")) is None
