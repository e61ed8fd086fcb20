"""New data keys for files that are there: a cut or a kill at any call leaves the whole content, under the old key or the new one."""

import os
import random

import pytest

from kmsfs.backing.posix import PosixFile
from kmsfs.check import rekey
from kmsfs.check.rewrap import Targets, Wrapping
from kmsfs.envelope import content
from kmsfs.envelope.filekeys import FileKeys
from kmsfs.envelope.kf1file import Kf1File
from kmsfs.envelope.slots import read_slots
from kmsfs.errors import CorruptFile, StorageError
from kmsfs.secret import DataKey

from support.fakes import FakeProvider, MemoryRecords, make_tools, volume_keys
from support.powercut import Cut, RecordingDisk

# 300 in CI; `KMSFS_HISTORIES=20000 pytest tests/faults/test_rekeying.py` is the campaign.
HISTORIES = int(os.environ.get("KMSFS_HISTORIES", "300"))


class KeysByWrapping(FakeProvider):
    """Opens what is wrapped, whichever file it is of: an old key and a new one of the same file are two."""

    def fresh(self, key_id=""):
        made = super().fresh(key_id)
        self.keys[made.wrapped] = self.keys[made.file_id]
        return made

    def open(self, file_id, wrapped):
        return FileKeys(DataKey(self.keys[wrapped]))

    def make(self, key_id="", context=None):
        made = self.fresh(key_id)
        return self.keys[made.wrapped], made.wrapped


def fill(file, rng):
    """Give a file content with holes in it; return the content."""
    expected = bytearray()
    for _ in range(rng.randrange(1, 8)):
        at, data = rng.randrange(rng.choice((1, 3000, 200_000, 6_000_000))), rng.randbytes(rng.choice((1, 900, 5000, 70_000)))
        expected.extend(bytes(max(0, at + len(data) - len(expected))))
        expected[at : at + len(data)] = data
        content.write(file, data, at)
    return bytes(expected)


def rekeyed(file, provider):
    """What a Rekeyer does with one file, the barriers being the file's own."""
    plain, wrapped = provider.make()
    content.write_under(file, FileKeys(DataKey(plain)), wrapped)
    for _ in range(2):
        file.attributes_dirty = True
        file.commit()
        file.make_durable()
    content.give_back_free(file)
    return wrapped


def everything(file):
    return b"".join(bytes(content.read(file, 1 << 20, at)) for at in range(0, file.size, 1 << 20))


def history(seed, mode, mutate=lambda disk: None):
    """A file, its rekeying cut at some call or not at all, and what is read afterwards; None if all is as it should be."""
    rng = random.Random(seed)
    disk, keys, provider, records = RecordingDisk(rng, mode), volume_keys(), KeysByWrapping(), MemoryRecords()
    file = Kf1File.create(make_tools(keys, provider, 1, (), 12, records), disk, provider.fresh())
    for _ in range(rng.randrange(1, 3)):
        expected = fill(file, rng)
        if file.size > len(expected):
            content.truncate(file, len(expected))
        content.punch(file, 0, 0)
        before = everything(file)
        file.commit()
        file.make_durable()
    old = file.clear.wrapped_key
    mutate(disk)
    session, unclean, new = 2, set(), None
    tools = make_tools(keys, provider, session, unclean, 12, records)
    try:
        disk.fuse = rng.randrange(12) if rng.random() < 0.9 else None
        new = rekeyed(Kf1File.open(tools, disk), provider)
    except Cut:
        unclean.add(session)
    disk.crash()
    session += 1
    try:
        opened = Kf1File.open(make_tools(keys, provider, session, unclean, 12, records), disk)
        found = everything(opened)
        if found != before:
            return f"{seed}: other content"
        if not unclean and [slot.clear.wrapped_key for slot in read_slots(keys, disk).valid] != [new, new]:
            return f"{seed}: a header names the old key"
        if not unclean and opened.clear.commitment == FileKeys(DataKey(provider.keys[old])).commitment():
            return f"{seed}: the old key is used"
        content.write(opened, b"goes on", 10)
        opened.commit()
        opened.make_durable()
    except (CorruptFile, StorageError) as error:
        return f"{seed}: {error}"
    return None


@pytest.mark.parametrize("mode", ["power", "kill"])
def test_a_cut_at_any_call_leaves_the_content(mode):
    assert [bad for seed in range(HISTORIES) if (bad := history(seed, mode))] == []


def test_each_barrier_is_needed():
    """Without them the same histories find what is torn."""
    assert any(history(seed, "power", lambda disk: setattr(disk, "broken_barriers", True)) for seed in range(400))


def test_what_the_volume_tool_does(tmp_path, monkeypatch):
    provider = KeysByWrapping()
    tools = make_tools(provider=provider)
    happened = []
    contents = {}
    for name in ("nempty", "nsmall", "nbig"):
        backing = PosixFile(os.open(tmp_path / name, os.O_RDWR | os.O_CREAT, 0o600))
        file = Kf1File.create(tools, backing, provider.fresh())
        contents[name] = os.urandom({"nempty": 0, "nsmall": 10, "nbig": 3_000_000}[name])
        content.write(file, contents[name], 0)
        file.attributes_dirty = True
        file.commit()
        backing.close()
    (tmp_path / "nnever").touch()
    os.link(tmp_path / "nbig", tmp_path / "nlink")
    commit, write_under = Kf1File.commit, rekey.write_under

    def written(*arguments):
        happened.append("content")
        write_under(*arguments)

    def committed(self):
        happened.append("commit")
        commit(self)

    monkeypatch.setattr(rekey, "write_under", written)
    monkeypatch.setattr(Kf1File, "commit", committed)
    monkeypatch.setattr(rekey, "sync_file_system", lambda _descriptor: happened.append("barrier"))
    asked = []

    def make(key_id, context):
        asked.append((key_id, context["kmsfs:file"]))
        return provider.make()

    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    before = {name: (tmp_path / name).stat().st_blocks for name in contents}
    report = rekey.Rekeyer(tools, Targets(Wrapping("key", 1)), make, lambda _bytes: None).run(root)
    assert (report.files, report.rekeyed, report.content_bytes, report.failed) == (4, 3, 3_000_010, [])
    assert happened == ["content"] * 3 + ["commit"] * 3 + ["barrier"] + ["commit"] * 3 + ["barrier"]
    assert len(set(asked)) == 3 and {key for key, _ in asked} == {"key"}
    for name, data in contents.items():
        backing = PosixFile(os.open(tmp_path / name, os.O_RDWR))
        assert everything(Kf1File.open(tools, backing)) == data
        backing.close()
        # What the old content took is given back.
        assert (tmp_path / name).stat().st_blocks < before[name] * 1.1 + 64
    os.close(root)


def test_a_file_that_cannot_be_read_or_stored_is_as_it_was(tmp_path, monkeypatch):
    provider = KeysByWrapping()
    tools = make_tools(provider=provider)
    for name in ("ngood", "ndamaged"):
        backing = PosixFile(os.open(tmp_path / name, os.O_RDWR | os.O_CREAT, 0o600))
        file = Kf1File.create(tools, backing, provider.fresh())
        content.write(file, os.urandom(3_000_000), 0)
        file.commit()
        backing.close()
    with (tmp_path / "ndamaged").open("r+b") as raw:
        raw.seek(2_000_000)
        raw.write(b"damage")
    before = (tmp_path / "ndamaged").read_bytes()
    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    report = rekey.Rekeyer(tools, Targets(Wrapping("key", 1)), lambda _key, _context: provider.make(), lambda _bytes: None).run(root)
    assert [name for name, _ in report.failed] == ["ndamaged"] and "authenticate" in report.failed[0][1] and report.rekeyed == 1
    assert (tmp_path / "ndamaged").read_bytes() == before
    before, real = (tmp_path / "ngood").read_bytes(), PosixFile.write
    room = [1_500_000]

    def write(self, data, offset):
        room[0] -= len(data)
        if room[0] < 0:
            raise StorageError("No space left on device", os_errno=28)
        real(self, data, offset)

    monkeypatch.setattr(PosixFile, "write", write)
    report = rekey.Rekeyer(tools, Targets(Wrapping("key", 1)), lambda _key, _context: provider.make(), lambda _bytes: None).run(root)
    assert len(report.failed) == 2 and report.rekeyed == 0
    monkeypatch.setattr(PosixFile, "write", real)
    backing = PosixFile(os.open(tmp_path / "ngood", os.O_RDWR))
    assert backing.size() == len(before) and len(everything(Kf1File.open(tools, backing))) == 3_000_000
    backing.close()
    os.close(root)


def test_a_header_whose_content_is_torn_gives_way_to_the_one_under_the_old_key():
    """A disk that lies about barriers: recovery opens either header with the key that it names."""
    disk, keys, provider = RecordingDisk(random.Random(1), "kill"), volume_keys(), KeysByWrapping()
    file = Kf1File.create(make_tools(keys, provider, 1), disk, provider.fresh())
    content.write(file, b"a" * 50_000, 0)
    file.commit()
    file.make_durable()
    file = Kf1File.open(make_tools(keys, provider, 2), disk)
    plain, wrapped = provider.make()
    content.write_under(file, FileKeys(DataKey(plain)), wrapped)
    file.commit()
    disk.cache[-1] ^= 1
    opened = Kf1File.open(make_tools(keys, provider, 3, {2}), disk)
    assert everything(opened) == b"a" * 50_000 and opened.clear.wrapped_key != wrapped
