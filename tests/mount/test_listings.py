"""Remembered listings: used where a file is as it was, never believed where it is not, and no more than a cache."""

import os
import sqlite3
import time
from types import SimpleNamespace

import msgspec
import pytest

from kmsfs.backing.listings import ListingStore
from kmsfs.errors import CorruptFile
from kmsfs.formats import listing as shapes
from kmsfs.mount import listed
from kmsfs.mount.attributes import Requester
from kmsfs.mount.durability import Vfs
from kmsfs.mount.kernel import wire
from kmsfs.mount.kernel.directories import OpenDirectories
from kmsfs.mount.vfs import VfsOptions
from support.fakes import MemoryRecords, make_tools
from support.treecut import TreeProvider

WHO = Requester(0, 0)
FILES = 12
PAGE = 512


@pytest.fixture
def volume(tmp_path):
    """A volume that can be mounted again and again, without a kernel, with its listings."""
    provider = TreeProvider()
    (tmp_path / "cipher").mkdir()
    held = SimpleNamespace(
        records=MemoryRecords(), path=tmp_path / "state" / "listings.db", cipher=tmp_path / "cipher"
    )
    held.tools = make_tools(provider=provider, freshness=held.records)
    descriptor = os.open(tmp_path / "cipher", os.O_RDONLY | os.O_DIRECTORY)

    def mount():
        held.vfs = Vfs(held.tools, provider, descriptor, b"r" * 16, VfsOptions())
        held.vfs.listings = held.store = ListingStore(held.tools.keys.listing, held.path)
        return held.vfs

    def unmount(*, aged=True):
        if aged:
            time.sleep(0.03)
        assert held.vfs.finish()
        held.store.close()

    held.mount, held.unmount = mount, unmount
    mount()
    yield held
    held.store.close()
    os.close(descriptor)


def make(vfs, parent, name, data):
    node, _ = vfs.create(parent, name, 0o644, WHO)
    node.lookups += 1
    vfs.write(node, data, 0, cached=False)
    vfs.release(node)
    return node


def fill(volume, parent=None):
    vfs = volume.vfs
    for number in range(FILES):
        make(vfs, parent or vfs.nodes.root, b"f%d" % number, bytes(100 + number))


def listing(vfs, node=None):
    """What a READDIRPLUS of everything tells: name to (size, modification time, inode)."""
    node = node or vfs.nodes.root
    found = {}
    for entry in vfs.list_directory(node):
        child, stat = vfs.list_entry(node, entry.name, entry.disk_name, entry.listed)
        child.lookups += 1
        found[entry.name] = (stat.size, stat.mtime_ns, stat.ino)
    return found


@pytest.fixture
def headers_read(monkeypatch):
    """How many headers a listing opened."""
    seen = []
    peek = Vfs._peek

    def counted(self, node, facts):
        seen.append(node)
        return peek(self, node, facts)

    monkeypatch.setattr(Vfs, "_peek", counted)
    return seen


def disk_path(volume, name):
    root = volume.vfs.nodes.root
    return volume.cipher / volume.vfs.disk_name(root, name)[0]


def test_a_listing_after_a_remount_opens_no_file(volume, headers_read):
    fill(volume)
    before = listing(volume.vfs)
    volume.unmount()
    headers_read.clear()
    assert listing(volume.mount()) == before
    assert not headers_read


def test_what_was_opened_says_the_same_as_what_was_remembered(volume):
    fill(volume)
    volume.unmount()
    vfs = volume.mount()
    listing(vfs)
    for name, node in vfs.nodes.root.kids.items():
        remembered = node.attributes
        file = vfs.acquire(node)
        assert file.attributes == remembered, name
        vfs.give_back(node)


def test_a_file_that_changed_behind_the_mount_is_opened(volume, headers_read):
    fill(volume)
    path = disk_path(volume, b"f3")
    volume.unmount()
    with open(path, "r+b") as file:
        data = file.read()
        file.seek(0)
        file.write(data)
    headers_read.clear()
    vfs = volume.mount()
    assert listing(vfs)[b"f3"][0] == 103
    assert [vfs.nodes.root.kids[b"f3"]] == headers_read


def test_two_files_that_changed_places_are_noticed(volume):
    fill(volume)
    one, two = disk_path(volume, b"f1"), disk_path(volume, b"f2")
    volume.unmount()
    spare = volume.cipher / "spare"
    os.rename(one, spare)
    os.rename(two, one)
    os.rename(spare, two)
    vfs = volume.mount()
    root = vfs.nodes.root
    for entry in vfs.list_directory(root):
        if entry.name in (b"f1", b"f2"):
            node, _ = vfs.list_entry(root, entry.name, entry.disk_name, entry.listed)
            with pytest.raises(CorruptFile, match="is not where it was written"):
                vfs.open(node)


def test_changes_of_the_next_session_are_remembered_too(volume, headers_read):
    fill(volume)
    volume.unmount()
    vfs = volume.mount()
    node = vfs.lookup(vfs.nodes.root, b"f5")[0]
    node.lookups += 1
    vfs.open(node)
    vfs.write(node, b"longer" * 100, 0, cached=False)
    vfs.release(node)
    vfs.unlink(vfs.nodes.root, b"f6")
    vfs.rename(vfs.nodes.root, b"f7", vfs.nodes.root, b"g7")
    make(vfs, vfs.nodes.root, b"new", b"12345")
    volume.unmount()
    headers_read.clear()
    vfs = volume.mount()
    found = {name: size for name, (size, *_) in listing(vfs).items()}
    expected = {b"f%d" % n: 100 + n for n in range(FILES) if n not in (6, 7)}
    assert found == {**expected, b"f5": 600, b"g7": 107, b"new": 5}
    assert not headers_read
    assert len(volume.store.load(b"r" * 16)) == FILES


def test_what_changed_just_now_is_not_remembered(volume, headers_read, monkeypatch):
    fill(volume)
    monkeypatch.setattr(listed, "_RACY_NS", 60_000_000_000)
    volume.unmount(aged=False)
    assert not volume.path.exists() or not ListingStore(volume.tools.keys.listing, volume.path).load(b"r" * 16)


def test_a_file_system_that_counts_in_seconds_waits_longer():
    assert listed._racy(5_000_000_000, 6_500_000_000)
    assert not listed._racy(5_000_000_001, 6_500_000_000)
    assert not listed._racy(5_000_000_000, 7_500_000_000)


def test_a_file_with_two_names_is_not_remembered(volume):
    fill(volume)
    vfs = volume.vfs
    vfs.link(vfs.nodes.root.kids[b"f1"], vfs.nodes.root, b"second")
    volume.unmount()
    names = {file.name for file in ListingStore(volume.tools.keys.listing, volume.path).load(b"r" * 16).values()}
    assert names == {b"f%d" % n for n in range(FILES) if n != 1}
    # Nor believed, if the second name was made behind the mount.
    os.link(disk_path(volume, b"f2"), volume.cipher / "elsewhere")
    vfs = volume.mount()
    facts = os.stat(disk_path(volume, b"f2"))
    file = next(file for file in volume.store.load(b"r" * 16).values() if file.name == b"f2")
    same = msgspec.structs.replace(file, ctime_ns=facts.st_ctime_ns)
    assert not listed.still_as(same, facts)


@pytest.mark.parametrize("changed", [None, "st_ino", "st_ctime_ns", "st_size", "st_nlink"])
def test_every_fact_counts(volume, changed):
    fill(volume)
    volume.unmount()
    file = next(iter(ListingStore(volume.tools.keys.listing, volume.path).load(b"r" * 16).values()))
    facts = SimpleNamespace(st_ino=file.ino, st_ctime_ns=file.ctime_ns, st_size=file.disk_bytes, st_nlink=1)
    if changed is not None:
        setattr(facts, changed, getattr(facts, changed) + 1)
    assert listed.still_as(file, facts) is (changed is None)


def test_a_name_that_was_made_behind_the_mount_counts_when_remembering(volume):
    fill(volume)
    os.link(disk_path(volume, b"f2"), volume.cipher / "elsewhere")
    volume.unmount()
    names = {file.name for file in ListingStore(volume.tools.keys.listing, volume.path).load(b"r" * 16).values()}
    assert names == {b"f%d" % n for n in range(FILES) if n != 2}


def test_records_of_a_file_that_was_only_listed_go_with_its_last_name(volume):
    fill(volume)
    vfs = volume.vfs
    file_id = vfs.nodes.root.kids[b"f1"].file.attributes.file_id
    volume.unmount()
    assert volume.records.find(file_id) is not None
    vfs = volume.mount()
    listing(vfs)
    vfs.unlink(vfs.nodes.root, b"f1")
    volume.unmount()
    assert volume.records.find(file_id) is None


def test_a_removed_directory_is_forgotten(volume):
    vfs = volume.vfs
    node, _ = vfs.mkdir(vfs.nodes.root, b"d", 0o755, WHO)
    node.lookups += 1
    dir_id = node.dir_id
    fill(volume, node)
    volume.unmount()
    vfs = volume.mount()
    assert len(volume.store.load(dir_id)) == FILES
    directory = vfs.lookup(vfs.nodes.root, b"d")[0]
    directory.lookups += 1
    for name in listing(vfs, directory):
        vfs.unlink(directory, name)
    vfs.rmdir(vfs.nodes.root, b"d")
    volume.unmount()
    assert not ListingStore(volume.tools.keys.listing, volume.path).load(dir_id)
    with sqlite3.connect(volume.path) as database:
        assert database.execute("SELECT count(*) FROM listings").fetchone() == (0,)


@pytest.mark.parametrize("harm", ["rubbish", "row", "other volume", "other directory", "version", "shape"])
def test_harm_to_the_records_is_as_if_they_were_not_there(volume, harm, headers_read):
    fill(volume)
    before = listing(volume.vfs)
    volume.unmount()
    key = volume.tools.keys.listing
    if harm == "rubbish":
        volume.path.write_bytes(os.urandom(8192))
    elif harm == "other volume":
        volume.path.unlink()
        ListingStore(make_tools().keys.listing, volume.path).store(b"r" * 16, [])
    else:
        files = list(ListingStore(key, volume.path).load(b"r" * 16).values())
        sealed = {
            "row": os.urandom(200),
            "other directory": key.seal(shapes.pack_listing(files), (shapes.LISTING_AAD, b"s" * 16)),
            "version": key.seal(msgspec.msgpack.encode((2, files)), (shapes.LISTING_AAD, b"r" * 16)),
            "shape": key.seal(msgspec.msgpack.encode({"no": 1}), (shapes.LISTING_AAD, b"r" * 16)),
        }[harm]
        with sqlite3.connect(volume.path) as database:
            assert database.execute("UPDATE listings SET sealed = ?", (sealed,)).rowcount == 1
    headers_read.clear()
    assert listing(volume.mount()) == before
    assert len(headers_read) == FILES
    volume.unmount()
    headers_read.clear()
    assert listing(volume.mount()) == before
    assert not headers_read


def test_a_place_that_cannot_be_written_costs_nothing_but_the_memory(volume, caplog):
    volume.store.close()
    volume.path.parent.mkdir(exist_ok=True)
    volume.path.unlink(missing_ok=True)
    volume.path.mkdir()
    fill(volume)
    before = listing(volume.vfs)
    volume.unmount()
    assert listing(volume.mount()) == before
    assert "cannot be remembered" in caplog.text


# --- looking ahead --------------------------------------------------------------------------------------------


def told(piece):
    """(name, size) of each struct fuse_direntplus."""
    found, at = [], 0
    while at < len(piece):
        size = wire.ENTRY_OUT.unpack_from(piece, at)[7]
        _, offset, length, _ = wire.DIRENT.unpack_from(piece, at + wire.ENTRY_OUT.size)
        start = at + wire.ENTRY_OUT.size + wire.DIRENT.size
        found.append((bytes(piece[start : start + length]), size, offset))
        at += wire.direntplus_bytes(piece[start : start + length])
    return found


@pytest.fixture
def opened(volume):
    fill(volume)
    volume.unmount()
    vfs = volume.mount()

    def known(node):
        node.lookups += 1

    directories = OpenDirectories(vfs, known)
    return SimpleNamespace(vfs=vfs, directories=directories, handle=directories.open(vfs.nodes.root), volume=volume)


def read_all(opened, between=lambda: None):
    offset, found = 0, []
    while piece := opened.directories.read_plus(opened.handle, offset, PAGE, 60):
        assert len(piece) <= PAGE
        page = told(piece)
        found += [(name, size) for name, size, _ in page]
        offset = page[-1][2]
        between()
    return found


def look_ahead(opened):
    while opened.directories.look_ahead(60):
        pass


def test_looking_ahead_tells_the_same(opened):
    plain = read_all(opened)
    assert read_all(opened, lambda: look_ahead(opened)) == plain
    assert {name: size for name, size in plain[2:]} == {b"f%d" % n: 100 + n for n in range(FILES)}


def test_what_changed_since_it_was_looked_at_is_looked_at_again(opened):
    vfs, directories = opened.vfs, opened.directories
    page = told(directories.read_plus(opened.handle, 0, PAGE, 60))
    page = told(directories.read_plus(opened.handle, page[-1][2], PAGE, 60))
    look_ahead(opened)
    waiting = [entry for entry, _ in directories._ahead.told]
    assert waiting
    waiting[0].lookups = 1
    waiting[0].attributes.size = 7
    vfs.changes_behind += 1
    again = told(directories.read_plus(opened.handle, page[-1][2], PAGE, 60))
    assert again[0][1] == 7


@pytest.mark.parametrize("why", ["too late", "another place"])
def test_what_was_looked_at_for_another_time_or_place_is_not_told(opened, monkeypatch, why):
    plain = read_all(opened)
    directories = opened.directories
    page = told(directories.read_plus(opened.handle, 0, PAGE, 60))
    page = told(directories.read_plus(opened.handle, page[-1][2], PAGE, 60))
    look_ahead(opened)
    node = directories._ahead.told[0][0]
    at = page[-1][2]
    if why == "too late":
        directories._ahead.until_ns = time.monotonic_ns() - 1
        node.lookups = 1
        node.attributes.size = 7
        assert told(directories.read_plus(opened.handle, at, PAGE, 60))[0][1] == 7
    else:
        assert told(directories.read_plus(opened.handle, at - 1, PAGE, 60))[0][:2] == plain[at - 1]


def test_nodes_that_were_looked_at_and_never_told_are_dropped(opened):
    vfs, directories = opened.vfs, opened.directories
    page = told(directories.read_plus(opened.handle, 0, PAGE, 60))
    page = told(directories.read_plus(opened.handle, page[-1][2], PAGE, 60))
    count = len(vfs.nodes)
    look_ahead(opened)
    assert len(vfs.nodes) > count
    directories.release(opened.handle)
    assert len(vfs.nodes) == count


def test_a_node_that_was_dropped_meanwhile_is_not_told(opened):
    vfs, directories = opened.vfs, opened.directories
    page = told(directories.read_plus(opened.handle, 0, PAGE, 60))
    page = told(directories.read_plus(opened.handle, page[-1][2], PAGE, 60))
    look_ahead(opened)
    node = directories._ahead.told[0][0]
    vfs.nodes.drop_if_unused(node)
    piece = directories.read_plus(opened.handle, page[-1][2], PAGE, 60)
    assert vfs.nodes.get(wire.ENTRY_OUT.unpack_from(piece)[0]) is not node
