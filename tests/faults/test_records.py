"""When freshness records may change: never before a barrier has covered what they say."""

import errno
import os
from types import SimpleNamespace

import pytest

from kmsfs.backing.posix import PosixFile
from kmsfs.errors import StorageError, VolumeBusy
from kmsfs.mount import durability
from kmsfs.mount.attributes import Requester
from kmsfs.mount.durability import Vfs
from kmsfs.mount.vfs import VfsOptions

from support.fakes import MemoryRecords, make_tools
from support.treecut import TreeProvider

WHO = Requester(0, 0)


@pytest.fixture
def volume(tmp_path, monkeypatch):
    """A vfs over a real directory, whose syncfs can be made to fail."""
    provider = TreeProvider()
    held = SimpleNamespace(records=MemoryRecords(), fails=False)
    held.tools = make_tools(provider=provider, freshness=held.records)
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)

    def barrier(_descriptor):
        if held.fails:
            held.fails = False
            raise StorageError("written back with an error")

    monkeypatch.setattr(durability, "sync_file_system", barrier)

    def mount():
        held.vfs = Vfs(held.tools, provider, descriptor, b"r" * 16, VfsOptions())
        return held.vfs

    held.mount = mount
    mount()
    yield held
    os.close(descriptor)


def make(volume, name, data=b"x"):
    vfs = volume.vfs
    node, _ = vfs.create(vfs.nodes.root, name, 0o644, WHO)
    node.lookups += 1
    vfs.write(node, data, 0, cached=False)
    file = node.file
    vfs.release(node)
    vfs.close_file(node)
    return node, file.attributes.file_id


def test_a_commit_is_recorded_by_the_barrier_that_covers_it(volume, monkeypatch):
    _, file_id = make(volume, b"a")
    assert volume.records.find(file_id) is None
    volume.fails = True
    with pytest.raises(StorageError):
        volume.vfs.tick()
    assert volume.records.find(file_id) is None
    # Its pages may be lost: the next barrier covers them only because they are written again before.
    rewritten = []
    monkeypatch.setattr(PosixFile, "rewrite", lambda file: rewritten.append(file.descriptor))
    volume.vfs.tick()
    assert len(rewritten) == 1 and volume.records.find(file_id) is not None


@pytest.mark.parametrize("ends", ["forget", "finish", "evicted", "failed"])
@pytest.mark.parametrize("stored", [True, False])
def test_what_the_kernel_knows_without_a_name_is_recorded_until_it_lets_go(volume, ends, stored):
    vfs = volume.vfs
    node, _ = vfs.create(vfs.nodes.root, b"a", 0o644, WHO)
    node.lookups += 1
    vfs.write(node, b"x" * 70_000, 0, cached=False)
    file_id = node.file.attributes.file_id
    vfs.release(node)
    if stored:
        vfs.tick()
        assert volume.records.find(file_id) is not None
    vfs.unlink(vfs.nodes.root, b"a")
    vfs.tick()
    assert node.file is not None and vfs.nodes.holds(node)
    vfs.open(node)
    assert bytes(vfs.read(node, 70_000, 0)) == b"x" * 70_000
    vfs.release(node)
    assert node.file is not None and node.file.file_keys is None and volume.records.find(file_id) is not None
    if ends == "forget":
        vfs.forget(node, 1)
        vfs.tick()
    elif ends == "evicted":
        vfs.resting_max = 1
        make(volume, b"b")
        vfs.open(vfs.lookup(vfs.nodes.root, b"b")[0])
        vfs.release(vfs.lookup(vfs.nodes.root, b"b")[0])
        make(volume, b"c")
        vfs.tick()
    elif ends == "failed":
        vfs.open(node)
        node.file.failed = True
        vfs.release(node)
        vfs.tick()
    else:
        assert vfs.finish()
    assert node.file is None and volume.records.find(file_id) is None
    assert vfs.nodes.holds(node) == (ends != "forget")


def test_attributes_of_a_file_that_is_gone_and_could_not_be_kept_open_are_not_damaged(volume, monkeypatch):
    """On a full disk what is removed is closed at once; the kernel is to look again, and finds nothing."""
    vfs = volume.vfs
    node, _ = make(volume, b"a")
    vfs.set_xattr(node, b"user.a", b"x", 0, WHO)
    vfs.close_file(node)
    monkeypatch.setattr(vfs, "may_put_off", lambda: False)
    vfs.unlink(vfs.nodes.root, b"a")
    vfs.tick()
    assert node.file is None and vfs.nodes.holds(node)
    for ask in (
        lambda: vfs.get_xattr(node, b"user.a"),
        lambda: vfs.list_xattrs(node, WHO),
        lambda: vfs.set_xattr(node, b"user.b", b"x", 0, WHO),
        lambda: vfs.remove_xattr(node, b"user.a", WHO),
    ):
        with pytest.raises(OSError, match="looks again") as refused:
            ask()
        assert refused.value.errno == errno.ESTALE


@pytest.mark.parametrize("why", ["damaged", "locked", "taken over"])
def test_what_is_refused_again_and_again_holds_nothing_of_the_times_before(volume, why):
    """The same error each time: a raise adds to its traceback, which keeps every frame and what was in it."""
    vfs = volume.vfs
    node, _ = make(volume, b"a")
    error = VolumeBusy("refused")
    if why == "damaged":
        node.damage = error
    elif why == "locked":
        vfs.locked = error
    else:
        vfs.lease_holds, vfs.taken_over = lambda: False, lambda: error
    for _ in range(50):
        with pytest.raises(VolumeBusy):
            vfs.open(node)
    place, frames = error.__traceback__, 0
    while place is not None:
        place, frames = place.tb_next, frames + 1
    assert frames < 10


def test_own_changes_are_not_kept_where_nobody_tells_of_any(volume):
    """On NFS, and where the kernel keeps nothing: they would be kept for ever."""
    make(volume, b"a")
    volume.vfs.unlink(volume.vfs.nodes.root, b"a")
    volume.vfs.empty_trash()
    assert not volume.vfs.own_changes
    volume.vfs.watched = True
    make(volume, b"b")
    assert volume.vfs.own_changes


def test_an_open_file_is_asked_by_itself_after_a_failed_barrier(volume, monkeypatch):
    vfs = volume.vfs
    node, _ = vfs.create(vfs.nodes.root, b"a", 0o644, WHO)
    vfs.write(node, b"x" * 9000, 0, cached=False)
    volume.fails = True
    asked = []
    monkeypatch.setattr(PosixFile, "datasync", lambda file: asked.append(file))
    with pytest.raises(StorageError):
        vfs.tick()
    assert asked and volume.records.find(node.file.attributes.file_id) is not None
    vfs.write(node, b"y", 0, cached=False)

    def broken(_file):
        raise StorageError("lost")

    monkeypatch.setattr(PosixFile, "datasync", broken)
    known = volume.records.find(node.file.attributes.file_id)
    volume.fails = True
    with pytest.raises(StorageError):
        vfs.tick()
    assert node.file.failed
    vfs.names_changed = True
    vfs.tick()
    assert volume.records.find(node.file.attributes.file_id) == known


def test_a_file_that_was_not_stored_is_written_again_though_the_kernel_has_forgotten_it(volume, monkeypatch):
    """Otherwise it has no record, and after a clean end it reads as one that had been removed."""
    vfs = volume.vfs
    node, _ = vfs.create(vfs.nodes.root, b"a", 0o644, WHO)
    node.lookups += 1
    vfs.write(node, b"x" * 9000, 0, cached=False)
    with monkeypatch.context() as patched:
        patched.setattr(PosixFile, "sync", lambda _file: (_ for _ in ()).throw(StorageError("lost")))
        with pytest.raises(StorageError):
            vfs.fsync(node)
    file_id = node.file.attributes.file_id
    vfs.release(node)
    vfs.forget(node, 1)
    assert node.file is None and vfs.nodes.holds(node)
    wrote = []
    write = PosixFile.write
    monkeypatch.setattr(PosixFile, "write", lambda file, data, offset: wrote.append(len(data)) or write(file, data, offset))
    assert vfs.finish() and sum(wrote) > 9000
    assert volume.records.find(file_id) is not None


def test_what_a_failed_barrier_may_have_lost_is_written_again_though_the_kernel_has_forgotten_it(volume, monkeypatch):
    vfs = volume.vfs
    node, file_id = make(volume, b"a", b"x" * 9000)
    vfs.forget(node, 1)
    volume.fails = True
    with pytest.raises(StorageError):
        vfs.tick()
    wrote = []
    write = PosixFile.write
    monkeypatch.setattr(PosixFile, "write", lambda file, data, offset: wrote.append(len(data)) or write(file, data, offset))
    vfs.tick()
    assert sum(wrote) > 9000 and volume.records.find(file_id) is not None
    vfs.close_file(node)
    vfs.tick()
    assert not vfs.nodes.holds(node)


def test_a_session_that_could_not_write_again_did_not_end_cleanly(volume, monkeypatch):
    vfs = volume.vfs
    node, file_id = make(volume, b"a", b"x" * 9000)
    volume.fails = True
    with pytest.raises(StorageError):
        vfs.tick()
    with monkeypatch.context() as patched:
        patched.setattr(PosixFile, "rewrite", lambda _file: (_ for _ in ()).throw(StorageError("broken")))
        assert not vfs.finish()
        assert volume.records.find(file_id) is None and vfs.nodes.holds(node)
    assert vfs.finish() and volume.records.find(file_id) is not None
    # Who is removed is nobody's loss.
    make(volume, b"b")
    volume.fails = True
    with pytest.raises(StorageError):
        vfs.tick()
    vfs.unlink(vfs.nodes.root, b"b")
    with monkeypatch.context() as patched:
        patched.setattr(PosixFile, "rewrite", lambda _file: (_ for _ in ()).throw(StorageError("broken")))
        assert vfs.finish()


def test_the_kernel_s_forgetting_drops_a_node_once_a_barrier_has_covered_its_file(volume):
    vfs = volume.vfs
    node, file_id = make(volume, b"a")
    vfs.forget(node, 1)
    assert vfs.nodes.holds(node)
    vfs.tick()
    assert not vfs.nodes.holds(node) and volume.records.find(file_id) is not None
    again, _ = vfs.lookup(vfs.nodes.root, b"a")
    assert again is not node
    # Nor does one stay whose name goes before.
    node, _ = make(volume, b"b")
    vfs.forget(node, 1)
    vfs.unlink(vfs.nodes.root, b"b")
    assert not vfs.nodes.holds(node)
    assert not vfs.recent
    # Nor one that never had a name: the store may give its number to another.
    node, _ = vfs.create_nameless(vfs.nodes.root, 0o600, WHO)
    node.lookups += 1
    vfs.release(node)
    vfs.forget(node, 1)
    assert not vfs.nodes.holds(node) and vfs.nodes.of_inode(node.key) is None


def test_an_open_file_that_was_asked_by_itself_is_no_reason_for_an_unclean_end(volume):
    vfs = volume.vfs
    node, file_id = make(volume, b"a")
    vfs.open(node)
    volume.fails = True
    with pytest.raises(StorageError):
        vfs.tick()
    assert vfs.recent[node.key].doubtful and not node.file.failed and volume.records.find(file_id) is not None
    assert vfs.finish()


def broken(*_args):
    raise StorageError("broken", os_errno=errno.EIO)


def made_open(vfs, name):
    node, _ = vfs.create(vfs.nodes.root, name, 0o644, WHO)
    node.lookups += 1
    vfs.write(node, b"x" * 9000, 0, cached=False)
    return node


@pytest.mark.parametrize("full", [False, True])
def test_a_rename_during_a_barrier_that_fails_is_not_lost_with_the_file(volume, monkeypatch, full):
    vfs = volume.vfs
    vfs.options.put_off = True
    node = made_open(vfs, b"a")
    vfs.release(node)
    with monkeypatch.context() as patched:

        def barrier(_descriptor):
            vfs.rename(vfs.nodes.root, b"a", vfs.nodes.root, b"b")
            patched.setattr(PosixFile, "datasync", broken)
            if full:
                patched.setattr(PosixFile, "write", broken)
            broken()

        patched.setattr(durability, "sync_file_system", barrier)
        with pytest.raises(StorageError):
            vfs.tick()
        assert node.file is None
    if full:
        # There was no room for its new place either: whoever mounts next looks.
        assert not vfs.finish() and vfs.unstored()
        return
    vfs.open(vfs.lookup(vfs.nodes.root, b"b")[0])
    assert vfs.finish()


def test_what_the_disk_failed_to_store_is_neither_moved_nor_given_attributes_while_it_is_open(volume, monkeypatch):
    vfs = volume.vfs
    node = made_open(vfs, b"a")
    vfs.set_xattr(node, b"user.a", b"1", 0, WHO)
    with monkeypatch.context() as patched:
        patched.setattr(PosixFile, "sync", broken)
        with pytest.raises(StorageError):
            vfs.fsync(node)
    with pytest.raises(StorageError, match="close and open it again"):
        vfs.rename(vfs.nodes.root, b"a", vfs.nodes.root, b"b")
    with pytest.raises(StorageError, match="close and open it again"):
        vfs.set_xattr(node, b"user.a", b"2", 0, WHO)
    vfs.release(node)
    vfs.rename(vfs.nodes.root, b"a", vfs.nodes.root, b"b")
    vfs.set_xattr(node, b"user.b", b"2", 0, WHO)
    assert vfs.get_xattr(node, b"user.a") == b"1" and vfs.finish()


def test_a_record_that_cannot_be_removed_holds_no_file_up(volume, monkeypatch):
    vfs = volume.vfs
    node = made_open(vfs, b"a")
    vfs.set_xattr(node, b"user.a", b"1", 0, WHO)
    file_id = node.file.attributes.file_id
    vfs.release(node)
    vfs.tick()
    vfs.unlink(vfs.nodes.root, b"a")
    with monkeypatch.context() as patched:
        patched.setattr(type(vfs.extras), "remove", lambda _store, _owner: (_ for _ in ()).throw(OSError(errno.EIO, "injected")))
        vfs.forget(node, node.lookups)
    assert node.file is None and not vfs.nodes.holds(node)
    assert vfs.finish() and volume.records.find(file_id) is None


def test_a_directory_stays_where_it_is_though_it_bears_the_name_of_a_place_before(volume, monkeypatch):
    """A rename that was cut off before its end leaves both places in the directory's id; the next one may fail too."""
    vfs = volume.vfs
    root = vfs.nodes.root
    for name in (b"a", b"full"):
        vfs.mkdir(root, name, 0o700, WHO)
    full = vfs.lookup(root, b"full")[0]
    vfs.create(full, b"x", 0o600, WHO)
    with monkeypatch.context() as patched:
        patched.setattr(Vfs, "_rehome", broken)
        with pytest.raises(StorageError):
            vfs.rename(root, b"a", root, b"b")
    with pytest.raises(OSError, match="not empty"):
        vfs.rename(root, b"b", root, b"full")
    vfs.release(vfs.lookup(full, b"x")[0])
    assert vfs.finish()
    vfs = volume.mount()
    assert vfs.list_directory(vfs.lookup(vfs.nodes.root, b"b")[0]) == []


def test_a_directory_that_went_before_a_rename_failed_is_forgotten(volume, monkeypatch):
    """The store may give its number to a file."""
    vfs = volume.vfs
    root = vfs.nodes.root
    vfs.mkdir(root, b"a", 0o700, WHO)
    target, _ = vfs.mkdir(root, b"b", 0o700, WHO)
    rename = os.rename
    with monkeypatch.context() as patched:

        def only_ids(source, *args, **kwargs):
            if not source.startswith(".kd"):
                raise OSError(errno.EIO, "injected")
            rename(source, *args, **kwargs)

        patched.setattr(os, "rename", only_ids)
        with pytest.raises(OSError, match="injected"):
            vfs.rename(root, b"a", root, b"b")
    assert vfs.nodes.of_inode(target.key) is None and target.key not in vfs.fresh_directories and b"b" not in root.kids
    vfs.rename(root, b"a", root, b"b")
    assert [entry.name for entry in vfs.list_directory(root)] == [b"b"]
    monkeypatch.setattr(type(vfs.extras), "remove", lambda _store, _owner: (_ for _ in ()).throw(OSError(errno.EIO, "injected")))
    gone = vfs.lookup(root, b"b")[0]
    vfs.rmdir(root, b"b")
    assert vfs.nodes.of_inode(gone.key) is None


def test_on_a_full_disk_one_file_is_tried_and_not_all(volume, monkeypatch):
    vfs = volume.vfs
    vfs.options.put_off = True
    nodes = []
    for number in range(50):
        node, _ = vfs.create(vfs.nodes.root, b"f%d" % number, 0o644, WHO)
        node.lookups += 1
        vfs.write(node, b"x", 0, cached=False)
        nodes.append(node)
    tries = []

    def full(_file, _data, _offset):
        tries.append(1)
        raise StorageError("no space", os_errno=errno.ENOSPC)

    with monkeypatch.context() as patched:
        patched.setattr(PosixFile, "write", full)
        patched.setattr(Vfs, "nothing_free", lambda _self: True)
        vfs._commit_open_files()
        assert len(tries) == 1
        # Some room, such as under a quota: each file has its own chance.
        patched.setattr(Vfs, "nothing_free", lambda _self: False)
        vfs._commit_open_files()
        assert len(tries) == 51
    vfs.tick()
    assert all(not node.file.dirty for node in nodes) and vfs.finish()


def test_a_removal_counts_only_after_a_barrier(volume):
    _, file_id = make(volume, b"a")
    volume.vfs.tick()
    assert volume.records.find(file_id) is not None
    volume.vfs.unlink(volume.vfs.nodes.root, b"a")
    assert volume.records.find(file_id) is not None
    volume.fails = True
    with pytest.raises(StorageError):
        volume.vfs.tick()
    assert volume.records.find(file_id) is not None
    volume.vfs.tick()
    assert volume.records.find(file_id) is None


@pytest.mark.parametrize("way", ["unlink", "replace"])
def test_a_listed_file_with_another_name_keeps_its_record(volume, way):
    node, file_id = make(volume, b"a")
    root = volume.vfs.nodes.root
    volume.vfs.link(node, root, b"b")
    make(volume, b"c")
    volume.vfs.tick()
    volume.vfs.finish()
    vfs = volume.mount()
    root = vfs.nodes.root
    for entry in vfs.list_directory(root):
        vfs.list_entry(root, entry.name, entry.disk_name, entry.listed)
    assert root.kids[b"a"].file is None and root.kids[b"a"].attributes is not None
    # The other name is not known to this mount.
    root.kids[b"b"].names.pop((root.node_id, b"b"))
    root.kids.pop(b"b")
    if way == "unlink":
        vfs.unlink(root, b"a")
    else:
        vfs.rename(root, b"c", root, b"a")
    vfs.tick()
    assert volume.records.find(file_id) is not None
