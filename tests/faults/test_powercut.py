"""The promise of KF1 under power cuts and kills, and proof that the simulator can see it broken."""

import os

import pytest

from kmsfs.envelope import kf1file
from kmsfs.envelope.allocator import Allocator
from kmsfs.envelope import recovery
from support.powercut import campaign

# 2,000 in CI; `KMSFS_HISTORIES=50000 pytest tests/faults/test_powercut.py` is the campaign.
HISTORIES = int(os.environ.get("KMSFS_HISTORIES", "2000"))


@pytest.mark.timeout(3600)
def test_every_history_ends_at_a_promised_commit():
    assert campaign(HISTORIES) == 0


def test_without_barriers_promises_break():
    def no_barrier(file, disk):
        disk.broken_barriers = True

    assert campaign(150, no_barrier, modes=("power",)) > 0


def test_without_the_slot_rule_promises_break(monkeypatch):
    original = kf1file.Kf1File.mark_durable

    def forgets_slot(self, generation):
        original(self, generation)
        # The next header then overwrites the last durable one.
        if self.durable_slot is not None:
            self.durable_slot = 1 - self.durable_slot

    monkeypatch.setattr(kf1file.Kf1File, "mark_durable", forgets_slot)
    assert campaign(300, modes=("power",)) > 0


def test_blocks_reused_at_once_break_promises(monkeypatch):
    def release(self, start, blocks, generation):
        self.live -= blocks
        self._fresh.difference_update(range(start, start + blocks))
        self._give(start, blocks)

    monkeypatch.setattr(Allocator, "release", release)
    assert campaign(300) > 0


def test_without_verification_promises_break(monkeypatch):
    monkeypatch.setattr(recovery, "verify", lambda *_args: 0)
    assert campaign(400, modes=("power",)) > 0


def test_without_the_barrier_after_recovery_promises_break(monkeypatch):
    """What recovery accepted must be durable before blocks it does not name are reused."""
    from kmsfs.envelope.kf1file import Kf1File

    original = Kf1File._settle

    def settle(self, choice, pair, durable_slot, *, known):
        choice.verified = False
        original(self, choice, pair, durable_slot, known=known)

    monkeypatch.setattr(Kf1File, "_settle", settle)
    assert campaign(1500, modes=("mixed",)) > 0
