"""Freshness records: what they refuse, what they keep, and which file of records counts."""

import os
import shutil
import sqlite3
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from kmsfs.backing import freshness
from kmsfs.backing.freshness import FreshnessStore, drop_files, head_of
from kmsfs.envelope.freshness import Commit, require_fresh
from kmsfs.envelope.recovery import SessionRules
from kmsfs.errors import CorruptFile, CorruptVolume, IntegrityReason, StorageError
from kmsfs.mount.freshness import open_records, records_path
from support.fakes import MemoryRecords, volume_keys

FILE = b"f" * 16
NOW, OLD = b"n" * 16, b"o" * 16


def refuses(records, commit, session=9, unclean=()):
    try:
        require_fresh(records, SessionRules(session, set(unclean)), commit)
    except CorruptFile as error:
        assert error.reason is IntegrityReason.ROLLED_BACK and "accept-restore" in error.hint
        return True
    return False


def test_older_other_and_removed_files_are_refused():
    records = MemoryRecords()
    records.durable(Commit(FILE, 7, 3, NOW))
    assert not refuses(records, Commit(FILE, 7, 3, NOW))
    assert not refuses(records, Commit(FILE, 8, 4, OLD))
    assert refuses(records, Commit(FILE, 6, 3, OLD))
    assert refuses(records, Commit(FILE, 7, 3, OLD))
    # A crash explains nothing here: what is recorded was durable.
    assert refuses(records, Commit(FILE, 6, 3, OLD), unclean={3})
    records.removed([FILE])
    assert refuses(records, Commit(FILE, 7, 3, NOW))


def test_a_file_that_no_record_knows():
    records = MemoryRecords()
    records.since = 5
    # Of a session before the records: taken as it is, and watched from then on.
    assert not refuses(records, Commit(FILE, 7, 4, NOW)) and records.find(FILE) == (7, NOW)
    # A crash may have come between a commit and its record.
    assert not refuses(records, Commit(b"g" * 16, 1, 6, NOW), unclean={6})
    assert refuses(records, Commit(b"g" * 16, 1, 6, NOW))
    # This very session records all it makes.
    assert refuses(records, Commit(b"h" * 16, 1, 9, NOW))


@pytest.fixture
def keys():
    return volume_keys()


def made(keys, path, session=1, base=b"\0" * 32):
    return FreshnessStore.make(keys.freshness, path, session, base)


def test_records_outlive_the_process(keys, tmp_path):
    path = tmp_path / "records.db"
    store = made(keys, path)
    store.durable(Commit(FILE, 7, 1, NOW))
    assert store.find(FILE) == (7, NOW) and len(store) == 0
    store.flush()
    assert len(store) == 1 and os.stat(path).st_mode & 0o777 == 0o600
    store.gone(FILE)
    assert store.find(FILE) == (7, NOW)
    taken = store.take_gone()
    assert taken == [FILE] and store.take_gone() == []
    store.removed(taken)
    assert store.find(FILE) is None
    store.durable(Commit(b"g" * 16, 1, 1, OLD))
    head = store.finish()
    assert head == head_of(path) and os.listdir(tmp_path) == ["records.db"]
    again = FreshnessStore(keys.freshness, path, read_only=True)
    assert again.find(FILE) is None and again.find(b"g" * 16) == (1, OLD) and (again.since, again.facts.session) == (1, 1)
    again.durable(Commit(FILE, 1, 1, NOW))
    assert again.find(FILE) is None
    again.close()
    assert head_of(path) == head


def test_a_new_file_and_its_name_are_durable(keys, tmp_path, monkeypatch):
    synced, real = [], os.fsync

    def fsync(descriptor):
        synced.append(os.fstat(descriptor).st_ino)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    made(keys, tmp_path / "new" / "r.db").close()
    assert synced == [(tmp_path / "new").stat().st_ino]


def test_many_rows_are_looked_up_on_disk(keys, tmp_path, monkeypatch):
    monkeypatch.setattr(freshness, "_HELD_ROWS", 10)
    store = made(keys, tmp_path / "r.db")
    ids = [bytes([number]) * 16 for number in range(25)]
    for start in (0, 8, 16):
        for number, file_id in enumerate(ids[start : start + 8]):
            store.durable(Commit(file_id, number + 1, 1, NOW))
        store.flush()
        assert (store._held is None) == (start > 0)
        for number, file_id in enumerate(ids[start : start + 8]):
            assert store.find(file_id) == (number + 1, NOW)
    store.removed(ids[:3])
    store.flush()
    assert [store.find(file_id) for file_id in (ids[0], ids[24])] == [None, None] and len(store) == 21
    store.finish()
    again = FreshnessStore(keys.freshness, tmp_path / "r.db", read_only=True)
    assert again._held is None and again.find(ids[3]) == (4, NOW) and again.find(ids[1]) is None
    again.close()


def test_a_failed_flush_is_tried_again(keys, tmp_path, monkeypatch):
    store = made(keys, tmp_path / "r.db")
    store.durable(Commit(FILE, 7, 1, NOW))
    writer = store._writer
    store._writer = sqlite3.connect(":memory:", check_same_thread=False)
    with pytest.raises(StorageError):
        store.flush()
    store._writer = writer
    store.flush()
    assert len(store) == 1
    store.close()


def test_one_flush_waits_for_the_other(keys, tmp_path, monkeypatch):
    """They share one connection: together they would commit each other's halves."""
    store = FreshnessStore.make(keys.freshness, tmp_path / "r.db", 1, b"")
    store.durable(Commit(b"a" * 16, 1, 1, b"t" * 16))
    inside, most, entered, ends = 0, 0, threading.Event(), threading.Event()
    flush = store._flush

    def slow():
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        entered.set()
        ends.wait(10)
        flush()
        inside -= 1

    monkeypatch.setattr(store, "_flush", slow)
    threads = [threading.Thread(target=store.flush) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert entered.wait(10)
    time.sleep(0.2)
    ends.set()
    for thread in threads:
        thread.join(10)
    assert most == 1 and store.find(b"a" * 16) == (1, b"t" * 16)
    store.close()


def test_edited_rows_and_other_volumes_are_refused(keys, tmp_path):
    path = tmp_path / "r.db"
    store = made(keys, path)
    for number, file_id in enumerate((FILE, b"g" * 16)):
        store.durable(Commit(file_id, 7 + number, 1, NOW))
    store.finish()
    with pytest.raises(CorruptVolume):
        FreshnessStore(volume_keys().freshness, path, read_only=False)
    shutil.copy(path, tmp_path / "swapped.db")
    with sqlite3.connect(tmp_path / "swapped.db") as edited:
        rows = dict(edited.execute("SELECT file_id, sealed FROM files"))
        edited.execute("UPDATE files SET sealed = ? WHERE file_id = ?", (rows[b"g" * 16], FILE))
    store = FreshnessStore(keys.freshness, tmp_path / "swapped.db", read_only=False)
    with pytest.raises(CorruptVolume):
        store.find(FILE)
    store.close()
    (tmp_path / "rubbish.db").write_bytes(os.urandom(8192))
    with pytest.raises(CorruptVolume):
        FreshnessStore(keys.freshness, tmp_path / "rubbish.db", read_only=False)


# --- which file of records counts -------------------------------------------------------------------------------


def lease(number, head=b"", unclean=(), may_begin=False):
    return SimpleNamespace(number=number, head=head, unclean=set(unclean), may_begin=may_begin)


@pytest.fixture
def path(keys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return records_path(keys.volume_id)


def test_from_session_to_session(keys, path):
    store = open_records(keys, lease(1, may_begin=True), Path("nowhere"), read_only=False)
    store.durable(Commit(FILE, 7, 1, NOW))
    head = store.finish()
    older = path.read_bytes()
    store = open_records(keys, lease(2, head), Path("nowhere"), read_only=False)
    assert store.find(FILE) == (7, NOW) and store.since == 1
    store.durable(Commit(FILE, 8, 2, NOW))
    newer = store.finish()
    # Of the past, missing, or damaged: refused, unless kmsd lets new ones begin.
    for content in (older, None, b"rubbish" * 999):
        drop_files(path)
        if content is not None:
            path.write_bytes(content)
        for read_only in (True, False):
            with pytest.raises(CorruptVolume) as caught:
                open_records(keys, lease(3, newer), Path("nowhere"), read_only=read_only)
            assert "accept-restore" in caught.value.hint
    assert open_records(keys, lease(3, newer, may_begin=True), Path("nowhere"), read_only=True) is None
    store = open_records(keys, lease(3, newer, may_begin=True), Path("nowhere"), read_only=False)
    assert store.find(FILE) is None and store.since == 3
    store.close()


def test_after_a_crash_the_records_of_that_session_count(keys, path):
    store = open_records(keys, lease(1, may_begin=True), Path("nowhere"), read_only=False)
    head = store.finish()
    store = open_records(keys, lease(2, head), Path("nowhere"), read_only=False)
    store.durable(Commit(FILE, 7, 2, NOW))
    store.flush()
    store.close()
    after = path.read_bytes()
    store = open_records(keys, lease(3, head, {2}), Path("nowhere"), read_only=False)
    assert store.find(FILE) == (7, NOW)
    # The beginning of a session is beyond a power cut: only the file itself comes through, not SQLite's log.
    whole = path.read_bytes()
    store.close()
    drop_files(path)
    path.write_bytes(whole)
    assert open_records(keys, lease(4, head, {3}), Path("nowhere"), read_only=True) is not None
    # A session that ended cleanly, or that began from other records, does not count.
    drop_files(path)
    path.write_bytes(after)
    for refused in (lease(4, head, {3}), lease(4, b"x" * 32, {2})):
        with pytest.raises(CorruptVolume):
            open_records(keys, refused, Path("nowhere"), read_only=False)


def test_a_log_that_was_left_beside_ended_records_is_dropped(keys, path):
    store = open_records(keys, lease(1, may_begin=True), Path("nowhere"), read_only=False)
    store.durable(Commit(FILE, 7, 1, NOW))
    store.flush()
    log = path.with_name(path.name + "-wal").read_bytes()
    assert log
    head = store.finish()
    path.with_name(path.name + "-wal").write_bytes(log)
    store = open_records(keys, lease(2, head), Path("nowhere"), read_only=False)
    assert store.find(FILE) == (7, NOW) and store.facts.session == 2
    store.close()


def test_where_they_lie(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert str(records_path(b"\1" * 16)) == f"/var/lib/kmsfs/freshness/{'01' * 16}.db"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert records_path(b"\1" * 16).parent == tmp_path / ".local" / "state" / "kmsfs" / "freshness"
