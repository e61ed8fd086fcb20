"""What operations ask of the store and of the key service, counted exactly (docs/performance.md keeps the ledger)."""

import pytest

from kmsfs.backing.memory import MemoryFile
from kmsfs.backing.tracking import TrackingFile
from kmsfs.envelope import content
from kmsfs.envelope.caching import POOL_KEYS, CachingProvider, NoGuard
from kmsfs.envelope.kf1file import Kf1File
from kmsfs.envelope.slots import peek_attributes, read_slots
from kmsfs.errors import KeyLease
from support.fakes import make_tools


@pytest.fixture
def fresh():
    tools = make_tools()
    disk = TrackingFile(MemoryFile())
    return tools, disk, Kf1File.create(tools, disk, tools.provider.fresh())


def spent(disk, act):
    disk.calls.clear()
    disk.bytes_written = 0
    act()
    return dict(disk.calls), disk.bytes_written


def test_a_small_file_is_one_write_of_one_block(fresh):
    _, disk, file = fresh
    content.write(file, b"x" * 2960, 0)
    assert spent(disk, file.commit) == ({"write": 1}, 4096)


def test_fsync_is_one_barrier(fresh):
    _, disk, file = fresh
    content.write(file, b"x", 0)
    file.commit()
    assert spent(disk, file.make_durable) == ({"barrier": 1}, 0)
    assert spent(disk, file.commit) == ({}, 0)


def test_a_stream_of_a_mebibyte_is_one_write(fresh):
    _, disk, file = fresh
    content.write(file, bytes(1 << 20), 0)
    assert spent(disk, lambda: content.write(file, bytes(1 << 20), 1 << 20)) == ({"write": 1}, 1 << 20)
    assert spent(disk, lambda: content.read(file, 1 << 20, 0)) == ({"read": 1}, 0)


def test_a_small_overwrite_with_fsync(fresh):
    _, disk, file = fresh
    content.write(file, bytes(1_000_000), 0)
    file.commit()
    file.make_durable()

    def overwrite():
        content.write(file, b"y" * 4096, 16384 * 10)
        file.commit()
        file.make_durable()

    assert spent(disk, overwrite) == ({"read": 1, "write": 2, "barrier": 1}, 16384 + 4096)


def test_a_small_overwrite_in_a_bigger_file(fresh):
    _, disk, file = fresh
    content.write(file, bytes(5_000_000), 0)
    file.commit()
    file.make_durable()

    def overwrite():
        content.write(file, b"y" * 4096, 16384 * 10)
        file.commit()

    assert spent(disk, overwrite) == ({"read": 1, "write": 3}, 16384 + 4096 + 4096)


def test_appending_one_byte(fresh):
    _, disk, file = fresh
    content.write(file, bytes(100_000), 0)
    file.commit()
    assert spent(disk, lambda: content.write(file, b"z", 100_000)) == ({"read": 1, "write": 1}, 1697)


def test_opening_for_stat_reads_once_and_asks_nobody(fresh):
    tools, disk, file = fresh
    content.write(file, b"x", 0)
    file.commit()
    tools.provider.opened = 0
    assert spent(disk, lambda: Kf1File.open(tools, disk)) == ({"read": 1}, 0)
    assert tools.provider.opened == 0
    again = Kf1File.open(tools, disk)
    content.read(again, 1, 0)
    content.read(again, 1, 0)
    assert tools.provider.opened == 1


def test_peeking_says_what_both_headers_say_or_leaves_it_to_them(fresh):
    tools, disk, file = fresh
    content.write(file, b"x" * 100, 0)
    file.commit()
    peek = lambda trusted=True: peek_attributes(tools.keys, disk, lambda _session: trusted)
    found = []
    assert spent(disk, lambda: found.append(peek())) == ({"read": 1}, 0)
    assert found[0] == read_slots(tools.keys, disk).valid[0].attributes and found[0].size == 100
    assert peek(trusted=False) is None
    good = disk.read(4096, 0)
    for at in range(0, 1104, 7):
        disk.write(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :], 0)
        assert peek() is None, at
    disk.write(good, 0)
    for wrong in (good[:4095], good + b"\0", good + good):
        short = MemoryFile()
        short.write(wrong, 0)
        assert peek_attributes(tools.keys, short, lambda _session: True) is None


class CountingSource:
    def __init__(self):
        self.batches = []
        self.decrypts = 0

    def generate(self, contexts, key_id):
        self.batches.append(len(contexts))
        return [(bytes(32), b"w" * 132) for _ in contexts]

    def decrypt(self, wrapped, context):
        self.decrypts += 1
        return bytes(32)


def make_provider():
    source, now, lease = CountingSource(), [0.0], [True]
    numbers = iter(range(1 << 20))
    rng = lambda count: next(numbers).to_bytes(count, "big")
    return source, now, lease, CachingProvider(b"v" * 16, source, lambda: now[0], rng, lambda: lease[0], NoGuard())


def test_a_thousand_files_cost_few_calls():
    source, _, _, provider = make_provider()
    ids = {provider.fresh().file_id for _ in range(1000)}
    assert len(ids) == 1000
    assert source.batches[:5] == [1, 4, 16, 64, POOL_KEYS] and len(source.batches) <= 12


def test_cached_keys_have_limits():
    source, now, lease, provider = make_provider()
    provider.open(b"f" * 16, b"w")
    provider.open(b"f" * 16, b"w")
    assert source.decrypts == 1
    now[0] = 301
    provider.open(b"f" * 16, b"w")
    assert source.decrypts == 2
    for now[0] in (500, 700, 900, 1100, 1202):
        provider.open(b"f" * 16, b"w")
    assert source.decrypts == 3
    provider.open(b"f" * 16, b"w")
    held = next(iter(provider._opened.values())).key
    lease[0] = False
    with pytest.raises(KeyLease):
        provider.open(b"f" * 16, b"w")
    assert held.reveal() == b""
    with pytest.raises(KeyLease):
        provider.fresh()
