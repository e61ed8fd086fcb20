"""Space that was freed is used again, in the same opening and in later ones."""

import os

import pytest

from kmsfs.backing.memory import MemoryFile
from kmsfs.envelope import content
from kmsfs.envelope.kf1file import Kf1File
from support.fakes import make_tools
from support.powercut import campaign


@pytest.mark.parametrize("reopen", [False, True])
def test_overwriting_again_and_again_does_not_grow_the_file(reopen):
    tools = make_tools()
    disk = MemoryFile()
    file = Kf1File.create(tools, disk, tools.provider.fresh())
    model = os.urandom(4_000_000)
    for round_number in range(12):
        content.write(file, model, 0)
        file.commit()
        file.make_durable()
        if reopen:
            file = Kf1File.open(tools, disk)
    assert len(disk.content) < 3.2 * len(model)
    assert bytes(content.read(file, len(model), 0)) == model


def test_truncating_and_rewriting_gives_space_back():
    tools = make_tools()
    disk = MemoryFile()
    file = Kf1File.create(tools, disk, tools.provider.fresh())
    for _ in range(6):
        content.write(file, bytes(3_000_000), 0)
        file.commit()
        file.make_durable()
        content.truncate(file, 0)
        file.commit()
        file.make_durable()
        file = Kf1File.open(tools, disk)
    assert len(disk.content) < 7_000_000


def test_reclaimed_blocks_break_no_promise(monkeypatch):
    monkeypatch.setattr(content, "_RECLAIM_BLOCKS", 0)
    assert campaign(900, first_seed=500_000) == 0


def test_reclaiming_before_a_commit_is_durable_would_break_promises(monkeypatch):
    monkeypatch.setattr(content, "_RECLAIM_BLOCKS", 0)
    original = content._reclaim

    def careless(file, keys):
        if not file.reclaimed and not file.dirty:
            # As if what an unsynced commit freed could be reused at once.
            file.synced_generation = file.clear.generation
        original(file, keys)

    monkeypatch.setattr(content, "_reclaim", careless)
    settle = Kf1File._settle

    def unsettled(self, choice, pair, durable_slot, *, known):
        choice.verified = False
        settle(self, choice, pair, durable_slot, known=known)

    monkeypatch.setattr(Kf1File, "_settle", unsettled)
    assert campaign(900, modes=("mixed",), first_seed=500_000) > 0
