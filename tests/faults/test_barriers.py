"""The barriers of extras records and of rewrapping, seen as the calls that make them."""

import os

from kmsfs.backing import extras as extras_store
from kmsfs.backing.posix import PosixFile
from kmsfs.check import rewrap
from kmsfs.envelope.extras import EXTRAS_DIR, Extras
from kmsfs.envelope.kf1file import Kf1File

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
