"""Failing system calls: a campaign in which the k-th one is refused, and what it found, each by itself."""

import errno
import logging
import os
import random
import stat
from dataclasses import replace

import pytest

from kmsfs.backing.posix import PosixFile
from kmsfs.envelope.kf1file import Kf1File
from kmsfs.errors import CorruptFile, KeyLease, StorageError
from kmsfs.formats.fileheader import MAP_OFFSET, SLOT_BYTES
from kmsfs.mount.durability import Vfs
from kmsfs.mount.vfs import VfsOptions
from support.fakes import MemoryRecords, make_tools, volume_keys
from support.faults import FaultRecorder, fault_campaign
from support.treecut import ROOT_DIR_ID, WHO, TreeProvider, patched

# 600 in CI; `KMSFS_HISTORIES=100000 pytest tests/faults/test_faults.py` is the campaign.
HISTORIES = int(os.environ.get("KMSFS_HISTORIES", "600"))


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(7200)
def test_whatever_fails_nothing_is_damaged_and_nothing_promised_is_lost(tmp_path):
    assert fault_campaign(HISTORIES, tmp_path) == []


class Disk:
    """A volume in a folder, its system calls recorded, mounted as one session after the other."""

    def __init__(self, folder):
        self.folder = folder
        self.keys, self.provider, self.records = volume_keys(), TreeProvider(), MemoryRecords()
        self.session, self.unclean = 0, set()
        self.recorder = FaultRecorder(folder, random.Random(1))
        self.root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)

    def mount(self):
        self.session += 1
        tools = make_tools(self.keys, self.provider, self.session, set(self.unclean), 12, self.records)
        self.vfs = Vfs(tools, self.provider, os.dup(self.root), ROOT_DIR_ID, VfsOptions())
        return self.vfs

    def look(self, name=b"f"):
        node, _ = self.vfs.lookup(self.vfs.nodes.root, name)
        node.lookups += 1
        return node

    def make(self, content, name=b"f"):
        node, _ = self.vfs.create(self.vfs.nodes.root, name, 0o600, WHO)
        node.lookups += 1
        self.vfs.write(node, content, 0, cached=False)
        self.vfs.release(node)
        return node

    def rewrite(self, content, name=b"f"):
        node = self.look(name)
        self.vfs.open(node, truncate=True)
        self.vfs.write(node, content, 0, cached=False)
        self.vfs.release(node)
        return node

    def read(self, name=b"f"):
        node = self.look(name)
        self.vfs.open(node)
        try:
            return bytes(self.vfs.read(node, 1 << 20, 0))
        finally:
            self.vfs.release(node)

    def forget(self, node):
        """The kernel forgets an inode, and the file does not rest open any more."""
        if node.file is not None:
            self.vfs.close_file(node)
        self.vfs.forget(node, node.lookups)

    def backing(self, node):
        return self.folder / next(iter(node.names.values()))

    def cut(self, node):
        """Let a power cut take everything of a file that no barrier has covered, and mount again."""
        path, inode = self.backing(node), self.recorder.ids[node.key[1]]
        durable = bytes(self.recorder.data[inode].durable)
        self.recorder.reports.clear()
        self.unclean.add(self.session)
        path.write_bytes(durable)
        self.mount()


    def note_syncs(self):
        """Return a list that takes (our inode number, whether names too) of every fsync from now on."""
        noted, sync = [], self.recorder.sync

        def note(inode, *, names):
            noted.append((inode, names))
            sync(inode, names=names)

        self.recorder.sync = note
        return noted


@pytest.fixture
def disk(tmp_path):
    made = Disk(tmp_path)
    with patched(made.recorder.wrap()):
        made.mount()
        yield made


def test_an_fsync_that_failed_and_then_works_has_stored_everything(disk):
    node = disk.make(b"old" * 3000)
    disk.vfs.tick()
    disk.rewrite(b"new" * 3000)
    disk.recorder.arm("sync", 1)
    with pytest.raises(StorageError):
        disk.vfs.fsync(node)
    disk.recorder.calm()
    assert disk.read() == b"new" * 3000
    disk.vfs.fsync(node)
    disk.cut(node)
    assert disk.read() == b"new" * 3000


def test_after_an_fsync_that_failed_the_durable_commit_is_not_written_over(disk):
    node = disk.make(b"old" * 3000)
    disk.vfs.tick()
    disk.rewrite(b"new" * 3000)
    disk.recorder.arm("sync", 1)
    with pytest.raises(StorageError):
        disk.vfs.fsync(node)
    disk.recorder.calm()
    disk.rewrite(b"third" * 3000)
    disk.vfs.settle(node)
    disk.cut(node)
    assert disk.read() == b"old" * 3000


def test_what_is_in_memory_is_not_stored_once_another_host_may_write(disk):
    node = disk.make(b"old" * 300)
    disk.vfs.fsync(node)
    disk.vfs.tick()
    before = disk.backing(node).read_bytes()
    node = disk.look()
    disk.vfs.open(node)
    disk.vfs.options = replace(disk.vfs.options, put_off=True)
    disk.vfs.write(node, b"new" * 300, 0, cached=False)
    ours = False
    disk.vfs.tools.rules.may_store = lambda: ours
    for store in (disk.vfs.tick, lambda: disk.vfs.fsync(node), disk.vfs.finish):
        with pytest.raises(KeyLease, match="another host"):
            store()
    disk.vfs.drop_keys()
    disk.vfs.release(node)
    disk.vfs.settle(node)
    assert disk.backing(node).read_bytes() == before
    # It was not taken: what was kept in memory is stored.
    ours = True
    disk.vfs.tick()
    assert disk.backing(node).read_bytes() != before and disk.read() == b"new" * 300


def test_an_attribute_that_could_not_be_removed_is_there_and_goes_with_its_file(disk, monkeypatch):
    node = disk.make(b"x" * 300)
    disk.vfs.set_xattr(node, b"user.a", b"1", 0, WHO)
    real = Kf1File.commit

    def full(_file):
        raise StorageError("No space left on device", os_errno=errno.ENOSPC)

    monkeypatch.setattr(Kf1File, "commit", full)
    with pytest.raises(StorageError):
        disk.vfs.remove_xattr(node, b"user.a", WHO)
    monkeypatch.setattr(Kf1File, "commit", real)
    assert disk.vfs.get_xattr(node, b"user.a") == b"1"
    disk.vfs.tick()
    disk.vfs.unlink(disk.vfs.nodes.root, b"f")
    disk.vfs.forget(node, node.lookups)
    assert disk.vfs.extras.names() == []


@pytest.mark.parametrize("remembered", [True, False])
@pytest.mark.parametrize("damaged", [True, False])
@pytest.mark.parametrize("linked", [True, False])
def test_a_removed_file_leaves_a_doubt_only_where_its_header_cannot_be_read(disk, remembered, damaged, linked):
    """Also where nothing is remembered of closed files, as on NFS and after `volume restart`."""
    made = disk.make(b"x" * 3000)
    if linked:
        disk.vfs.link(made, disk.vfs.nodes.root, b"second")
    disk.forget(made)
    disk.vfs.tick()
    disk.mount().keep_attributes = remembered
    node = disk.look()
    if not remembered and damaged:
        disk.backing(node).write_bytes(bytes(disk.backing(node).stat().st_size))
    disk.vfs.unlink(disk.vfs.nodes.root, b"f")
    disk.vfs.forget(node, 1)
    disk.vfs.tick()
    lost = damaged and not remembered
    assert disk.records.doubtful is lost
    assert (set(disk.records.changed.values()) | set(disk.records.stored.values()) == {None}) is not (lost or linked)


@pytest.mark.parametrize("closed", [True, False])
def test_what_a_failed_syncfs_lost_is_stored_by_the_next_one(disk, closed):
    node = disk.make(b"old" * 3000)
    disk.vfs.tick()
    disk.rewrite(b"new" * 3000)
    if closed:
        disk.vfs.close_file(node)
    disk.recorder.arm("sync", 1)
    with pytest.raises(StorageError):
        disk.vfs.tick()
    disk.recorder.calm()
    assert disk.read() == b"new" * 3000
    if closed:
        disk.vfs.close_file(node)
    disk.vfs.tick()
    disk.cut(node)
    assert disk.read() == b"new" * 3000


def test_of_a_closed_file_too_that_nobody_opens_again(disk):
    node = disk.make(b"old" * 3000)
    disk.vfs.tick()
    disk.rewrite(b"new" * 3000)
    disk.vfs.close_file(node)
    disk.recorder.arm("sync", 1)
    with pytest.raises(StorageError):
        disk.vfs.tick()
    disk.recorder.calm()
    disk.vfs.tick()
    disk.cut(node)
    assert disk.read() == b"new" * 3000


def test_a_header_that_was_half_written_over_the_last_commit_is_no_commit(disk, monkeypatch):
    """Neither is durable then, whatever a barrier says: the next commit goes to the same place again."""
    node = disk.make(b"first" * 1000)
    disk.vfs.open(node)
    disk.vfs.write(node, b"second", 0, cached=False)
    write, torn = PosixFile.write, []

    def half(self, data, offset):
        if offset < SLOT_BYTES * 2 and not torn:
            torn.append(offset)
            write(self, data[:1000], offset)
            raise StorageError("full", os_errno=errno.ENOSPC)
        write(self, data, offset)

    monkeypatch.setattr(PosixFile, "write", half)
    disk.vfs.tick()
    assert torn == [0] and node.file.provisional and node.file.durable_slot is None
    disk.vfs.fsync(node)
    assert node.file.durable_slot == 0 and disk.records.find(node.file.clear.file_id)[0] == node.file.committed_generation
    disk.vfs.release(node)
    disk.cut(node)
    assert disk.read() == b"second" + (b"first" * 1000)[6:]


@pytest.mark.parametrize("stored", [False, True])
def test_a_new_files_name_is_synced_though_the_kernel_forgot_it_meanwhile(disk, stored):
    node = disk.make(b"new" * 3000)
    if stored:
        # Its content is durable then, its name not.
        disk.make(b"other", b"g")
        disk.vfs._settle_before_replace(node)
    # Something happened to its name behind the mount: nothing waits for that any more.
    disk.vfs.nodes.unlink(disk.vfs.nodes.root, b"f")
    disk.forget(node)
    synced = disk.note_syncs()
    again = disk.look()
    assert again is not node
    disk.vfs.open(again)
    disk.vfs.fsync(again)
    assert [names for _, names in synced] == [True]
    disk.vfs.release(again)


def test_what_cannot_be_given_to_its_maker_is_not_made(tmp_path, monkeypatch):
    """chown(2) fails by a quota: an empty backing file would be a damaged file for ever."""
    disk = Disk(tmp_path)
    disk.mount()

    def refused(*_args, **_more):
        raise OSError(errno.EDQUOT, "quota")

    monkeypatch.setattr(Vfs, "own", refused)
    root = disk.vfs.nodes.root
    for make in (
        lambda: disk.vfs.create(root, b"a", 0o600, WHO), lambda: disk.vfs.symlink(root, b"b", b"target", WHO),
        lambda: disk.vfs.mknod(root, b"c", stat.S_IFIFO | 0o600, 0, WHO), lambda: disk.vfs.mkdir(root, b"d", 0o700, WHO),
    ):  # fmt: skip
        with pytest.raises(OSError, match="quota"):
            make()
    assert disk.vfs.list_directory(root) == [] and not root.kids


def test_a_directory_that_cannot_be_removed_keeps_its_id(disk):
    root = disk.vfs.nodes.root
    for number in range(1, 5):
        disk.vfs.mkdir(root, b"d", 0o700, WHO)[0].lookups += 1
        disk.recorder.calls["any"] = 0
        disk.recorder.arm("any", number)
        try:
            disk.vfs.rmdir(root, b"d")
        except OSError:
            disk.recorder.calm()
            disk.vfs.finish()
            disk.mount()
            root = disk.vfs.nodes.root
            assert disk.vfs.list_directory(disk.look(b"d")) == []
            disk.vfs.rmdir(root, b"d")
        disk.recorder.calm()


def test_an_id_that_was_put_back_or_made_anew_is_durable_before_what_is_below(disk):
    root = disk.vfs.nodes.root
    node, _ = disk.vfs.mkdir(root, b"d", 0o700, WHO)
    node.lookups += 1
    disk.vfs.tick()
    assert not disk.vfs.fresh_directories
    disk.recorder.arm("any", 3)
    with pytest.raises(OSError, match="into rmdir"):
        disk.vfs.rmdir(root, b"d")
    disk.recorder.calm()
    assert disk.vfs.fresh_directories == {node.key}
    # A crash between mkdir and the id.
    os.unlink(".kd", dir_fd=disk.vfs.nodes.descriptor(node))
    disk.unclean.add(disk.session)
    disk.mount()
    node = disk.look(b"d")
    assert disk.vfs.list_directory(node) == [] and disk.vfs.fresh_directories == {node.key}


def test_the_first_record_that_is_synced_comes_after_the_ids_of_new_directories(disk):
    """It makes the root's entries durable, a rename into a new directory among them."""
    root = disk.vfs.nodes.root
    node = disk.make(b"content")
    made, _ = disk.vfs.mkdir(root, b"d", 0o700, WHO)
    made.lookups += 1
    other = disk.make(b"other", b"g")
    disk.vfs.rename(root, b"f", made, b"f")
    disk.vfs.set_xattr(other, b"user.a", b"value", 0, WHO)
    synced = disk.note_syncs()
    disk.vfs.open(other)
    disk.vfs.fsync(other)
    ids, order = disk.recorder.ids, [inode for inode, _ in synced]
    assert order.index(ids[made.key[1]]) < order.index(ids[root.key[1]]) and node.file is not None
    # Once in a session.
    disk.vfs.set_xattr(other, b"user.a", b"later", 0, WHO)
    synced.clear()
    disk.vfs.fsync(other)
    assert ids[root.key[1]] not in [inode for inode, _ in synced]
    disk.vfs.release(other)


def test_a_directory_whose_id_is_rubbish_can_be_removed(tmp_path):
    disk = Disk(tmp_path)
    root = disk.mount().nodes.root
    disk.vfs.mkdir(root, b"d", 0o700, WHO)
    (damaged,) = [disk.folder / entry.disk_name for entry in disk.vfs.list_directory(root)]
    (damaged / ".kd").unlink()
    (damaged / ".kd").write_bytes(b"rubbish")
    disk.mount()
    disk.vfs.rmdir(disk.vfs.nodes.root, b"d")
    assert not damaged.exists()


@pytest.mark.parametrize("links", [0, 8])
@pytest.mark.parametrize("kind", ["read", "any"])
def test_a_rename_that_fails_leaves_the_file_readable(disk, kind, links):
    """Whichever call is refused, under the name that it has then; after an unmount too, when nothing is forgiven."""
    root = disk.vfs.nodes.root
    for number in range(1, 12):
        names = [b"f%d" % number, *(b"l%d-%d" % (number, link) for link in range(links))]
        node = disk.make(b"content" * 1000, names[0])
        for name in names[1:]:
            disk.vfs.link(node, root, name)
        disk.vfs.close_file(node)
        node.attributes = None
        disk.recorder.calls = dict.fromkeys(disk.recorder.calls, 0)
        disk.recorder.arm(kind, number)
        try:
            disk.vfs.rename(root, names[-1], root, b"moved%d" % number)
        except (OSError, StorageError):
            assert disk.recorder.fired
        disk.recorder.calm()
        assert disk.vfs.finish()
        disk.mount()
        root = disk.vfs.nodes.root
        for entry in disk.vfs.list_directory(root):
            assert disk.read(entry.name) == b"content" * 1000
        assert len(disk.vfs.list_directory(root)) == number * (links + 1)


def test_a_record_that_a_power_cut_left_as_zeros_is_given_up(disk):
    node = disk.make(b"content")
    disk.vfs.set_xattr(node, b"user.a", b"value", 0, WHO)
    disk.vfs.tick()
    (record,) = (disk.folder / ".kx").iterdir()
    record.write_bytes(bytes(200))
    disk.unclean.add(disk.session)
    disk.mount()
    assert disk.read() == b"content" and disk.vfs.list_xattrs(disk.look(), WHO) == b""
    # On a volume that ended cleanly it is damage.
    disk.unclean.clear()
    disk.mount()
    with pytest.raises(CorruptFile):
        disk.vfs.list_xattrs(disk.look(), WHO)


def test_an_attribute_that_was_removed_does_not_come_back(disk):
    node = disk.make(b"content")
    disk.vfs.set_xattr(node, b"user.a", b"value", 0, WHO)
    disk.vfs.tick()
    disk.vfs.remove_xattr(node, b"user.a", WHO)
    synced = disk.note_syncs()
    disk.vfs.open(node)
    disk.vfs.fsync(node)
    disk.vfs.release(node)
    folder = disk.recorder.ids[os.stat(disk.folder / ".kx").st_ino]
    assert folder in [inode for inode, _ in synced] and not disk.vfs.extras.unsynced()


def test_records_never_go_back(disk):
    node = disk.make(b"one" * 3000)
    disk.vfs.close_file(node)
    disk.rewrite(b"two" * 3000)
    disk.vfs.tick()
    assert disk.records.find(node.file.clear.file_id)[0] == node.file.committed_generation


def test_healing_takes_away_a_header_that_was_refused(disk):
    """A power cut tore the newest header's map: the one before counts. A later session must not find the torn one."""
    node = disk.make(b"one" * 3000)
    disk.vfs.finish()
    path = disk.backing(node)
    disk.mount()
    node = disk.look()
    disk.vfs.open(node)
    disk.vfs.write(node, b"two", 0, cached=False)
    node.file.commit()
    slot = node.file.last_slot
    disk.unclean.add(disk.session)
    data = bytearray(path.read_bytes())
    at = slot * SLOT_BYTES + MAP_OFFSET
    data[at : at + 16] = bytes(16)
    path.write_bytes(data)
    disk.mount()
    assert disk.vfs.heal() == 0
    disk.vfs.finish()
    disk.unclean.clear()
    disk.mount()
    assert disk.read() == b"one" * 3000


def test_a_file_that_the_disk_failed_to_store_is_usable_again_once_it_is_closed(disk):
    disk.make(b"old" * 3000)
    disk.recorder.arm("sync", 1)
    with pytest.raises(StorageError):
        disk.vfs.tick()
    disk.recorder.calm()
    assert disk.read() == b"old" * 3000
    disk.rewrite(b"new")
    assert disk.read() == b"new"
