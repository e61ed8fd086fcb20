"""The promises of names and directories under power cuts and kills, with each barrier taken out in turn."""

import logging
import os

import pytest

from kmsfs.backing.posix import PosixFile
from kmsfs.envelope.kf1file import Kf1File
from kmsfs.mount.durability import Vfs
from support import treecut
from support.treecut import tree_campaign

# 600 in CI; `KMSFS_HISTORIES=100000 pytest tests/faults/test_treecut.py` is the campaign.
HISTORIES = int(os.environ.get("KMSFS_HISTORIES", "600"))
ENOUGH = 1200
"""Histories in which a missing barrier must show."""


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(7200)
def test_every_tree_keeps_its_promises(tmp_path):
    assert tree_campaign(HISTORIES, tmp_path) == []


def broken(tmp_path, modes=("power",)):
    """Run until something is violated."""
    for start in range(0, ENOUGH, 100):
        found = tree_campaign(100, tmp_path, modes, first_seed=start)
        if found:
            return found
    return []


def test_without_the_fsync_of_a_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(Vfs, "sync_directory", lambda _self, _node: None)
    assert broken(tmp_path)


def test_without_the_fsync_of_new_directories_above_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(Vfs, "sync_fresh_directories", lambda _self, _node: None)
    assert broken(tmp_path)


def test_without_the_ids_of_new_directories_at_fsyncdir(tmp_path, monkeypatch):
    monkeypatch.setattr(Vfs, "_sync_every_fresh_directory", lambda _self: None)
    assert broken(tmp_path)


def test_without_the_syncfs_of_the_tick(tmp_path, monkeypatch):
    original = treecut.Recorder.wrap

    def wrap(self):
        replacements = original(self)
        replacements[(treecut.durability, "sync_file_system")] = lambda _fd: None
        return replacements

    monkeypatch.setattr(treecut.Recorder, "wrap", wrap)
    assert broken(tmp_path)


def test_without_the_barrier_before_a_replacing_rename(tmp_path, monkeypatch):
    def settle(self, node):
        file = self.acquire(node)
        file.commit()
        self.give_back(node)

    monkeypatch.setattr(Vfs, "_settle_before_replace", settle)
    assert broken(tmp_path)


def test_without_the_commit_before_a_replacing_rename(tmp_path, monkeypatch):
    monkeypatch.setattr(Vfs, "_settle_before_replace", lambda _self, _node: None)
    assert broken(tmp_path, modes=("kill", "power"))


def test_with_fdatasync_where_fsync_must_cover_the_name(tmp_path, monkeypatch):
    monkeypatch.setattr(PosixFile, "sync", PosixFile.datasync)
    assert broken(tmp_path)


def test_without_the_barrier_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(Kf1File, "make_durable", lambda self, *, full=False: self.mark_durable(self.clear.generation))
    assert broken(tmp_path)


def test_without_the_first_header_before_the_first_chunk(tmp_path, monkeypatch):
    """Killed while a new file is written: it is short or empty, never damaged."""
    original = Kf1File.commit

    def lazy(self):
        if self.last_slot is None and self.attributes.size == 0 and self.inline is not None:
            return
        original(self)

    monkeypatch.setattr(Kf1File, "commit", lazy)
    assert broken(tmp_path, modes=("kill",))
