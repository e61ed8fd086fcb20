"""The barriers of extras records and of rewrapping, seen as the calls that make them."""

import errno
import os

import pytest

from kmsfs.backing import extras as extras_store
from kmsfs.backing.posix import PosixFile
from kmsfs.check import rewrap
from kmsfs.envelope.extras import EXTRAS_DIR, Extras
from kmsfs.envelope.kf1file import Kf1File
from kmsfs.errors import StorageError

from support.fakes import FakeProvider, make_tools


def test_a_synced_record_is_durable_with_its_name_and_its_folder(tmp_path, monkeypatch):
    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    store = extras_store.ExtrasStore(make_tools(), root)
    owner = b"o" * 16
    store.replace(owner, Extras(1), durable=False)
    synced, real = [], os.fsync

    def fsync(descriptor):
        synced.append(os.fstat(descriptor).st_ino)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    store.sync(owner)
    (record,) = (tmp_path / EXTRAS_DIR).iterdir()
    assert synced == [path.stat().st_ino for path in (record, tmp_path / EXTRAS_DIR, tmp_path)]
    store.sync(owner)
    assert len(synced) == 3
    store.close()
    os.close(root)


def test_a_record_whose_fsync_failed_is_written_again_before_the_next(tmp_path, monkeypatch):
    """Its pages count as clean then: fsync alone would store nothing, and say that it had."""
    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    store = extras_store.ExtrasStore(make_tools(), root)
    owner, real, fails = b"o" * 16, os.fsync, [True]
    store.replace(owner, Extras(1), durable=False)

    def fsync(descriptor):
        if fails.pop() if fails else False:
            raise OSError(errno.EIO, "injected")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    (record,) = (tmp_path / EXTRAS_DIR).iterdir()
    before, content = record.stat().st_ino, record.read_bytes()
    with pytest.raises(StorageError):
        store.sync(owner)
    store.sync(owner)
    assert record.stat().st_ino != before and record.read_bytes() == content and not store.unsynced()
    # The same after a barrier over everything: who covers it next, covers what was written again.
    store.replace(owner, Extras(2), durable=False)
    store.barrier_failed(store.unsynced())
    before = record.stat().st_ino
    store.covered(store.unsynced())
    assert store.unsynced()
    store.write_lost_again()
    assert record.stat().st_ino != before
    store.covered(store.unsynced())
    assert not store.unsynced()
    store.close()
    os.close(root)


def test_rewrapping_has_a_barrier_after_each_of_its_two_commits(tmp_path, monkeypatch):
    provider = FakeProvider()
    tools = make_tools(provider=provider)
    backing = PosixFile(os.open(tmp_path / "nfile", os.O_RDWR | os.O_CREAT, 0o600))
    file = Kf1File.create(tools, backing, provider.fresh())
    file.attributes_dirty = True
    file.commit()
    backing.close()
    happened, commit = [], Kf1File.commit

    def recorded(self):
        happened.append("commit")
        commit(self)

    monkeypatch.setattr(Kf1File, "commit", recorded)
    monkeypatch.setattr(rewrap, "sync_file_system", lambda _descriptor: happened.append("barrier"))
    rewrapper = rewrap.Rewrapper(
        tools, rewrap.Targets(rewrap.Wrapping("key", 1)), lambda wrapped, _context, _key: wrapped, lambda _bytes: None
    )
    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    report = rewrapper.run(root)
    os.close(root)
    assert report.rewrapped == 1 and not report.failed
    assert happened == ["commit", "barrier", "commit", "barrier"]
