"""What others do to entries of the cipher directory right after the mount has done something to them."""

import errno
import os
import stat
import subprocess
import time

import pytest

from kmsfs.mount.attributes import Requester
from kmsfs.mount.durability import Vfs
from kmsfs.mount.kernel.session import Lifetimes
from kmsfs.mount.vfs import GONE, MADE, MOVED_IN, MOVED_OUT, WRITTEN, VfsOptions
from kmsfs.mount.watch import CipherWatcher

from support.fakes import make_tools
from support.treecut import TreeProvider
from support.waiting import soon

pytestmark = pytest.mark.fuse
WHO = Requester(0, 0)


def only_entry(mount):
    [entry] = [path for path in mount.cipher.iterdir() if path.name[0] == "n"]
    return entry


def test_what_is_put_back_right_after_the_mount_took_it_away_is_there(make_mount):
    mount = make_mount().start()
    (mount.plain / "folder").mkdir()
    cases = [(gone, way) for gone in ("unlink", "rename") for way in ("write", "rename", "link")]
    kept = {}
    for gone, way in cases:
        path = mount.plain / f"{gone}-{way}"
        path.write_text("one")
        subprocess.run(["sync", "-f", path], check=True)
        [entry] = {entry for entry in mount.cipher.iterdir() if entry.name[0] == "n" and entry.is_file()} - kept.keys()
        kept[entry] = mount.cipher.parent / path.name
        kept[entry].write_bytes(entry.read_bytes())
    time.sleep(2.5)
    for (gone, way), (entry, copy) in zip(cases, kept.items(), strict=True):
        path = mount.plain / f"{gone}-{way}"
        if gone == "unlink":
            path.unlink()
        else:
            path.rename(mount.plain / "folder" / path.name)
        # The kernel keeps for a minute that it is absent.
        assert not path.exists()
        if way == "write":
            entry.write_bytes(copy.read_bytes())
        elif way == "rename":
            copy.rename(entry)
        else:
            os.link(copy, entry)
    for gone, way in cases:
        soon(True, (mount.plain / f"{gone}-{way}").exists)


def test_what_is_taken_away_right_after_the_mount_made_it_is_gone(make_mount):
    mount = make_mount().start()
    for way in ("unlink", "rename"):
        (mount.plain / "a").write_text("one")
        entry = only_entry(mount)
        assert (mount.plain / "a").stat().st_size == 3
        if way == "unlink":
            entry.unlink()
        else:
            entry.rename(mount.cipher.parent / "away")
        soon(False, (mount.plain / "a").exists)


class Notifier:
    """Where the kernel would be told."""

    def __init__(self):
        self.told = []

    def expire_entry(self, parent_id, name):
        self.told.append((parent_id, name))

    def drop_inode(self, node_id):
        self.told.append(node_id)


@pytest.fixture
def watched(tmp_path):
    """A file system without a mount, its watcher, and what that told the kernel."""
    provider = TreeProvider()
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    vfs = Vfs(make_tools(provider=provider), provider, descriptor, b"r" * 16, VfsOptions())
    notifier = Notifier()
    watcher = CipherWatcher(vfs, notifier, Lifetimes())
    yield vfs, watcher, notifier.told
    watcher.close()
    os.close(descriptor)


def everything_done_to(vfs, watcher, folder_name):
    root = vfs.nodes.root
    folder, _ = vfs.mkdir(root, folder_name, 0o755, WHO)
    folder.lookups += 1
    watcher.add(folder)
    node, _ = vfs.create(folder, b"a", 0o644, WHO)
    node.lookups += 1
    vfs.write(node, b"x" * 70_000, 0, cached=False)
    vfs.release(node)
    vfs.link(node, folder, b"b")
    vfs.symlink(folder, b"link", b"target", WHO)
    vfs.mknod(folder, b"pipe", stat.S_IFIFO | 0o644, 0, WHO)
    vfs.rename(folder, b"pipe", root, b"pipe")
    vfs.rename(folder, b"link", root, b"pipe", 2)
    vfs.rename(folder, b"a", folder, b"c")
    vfs.close_file(node)
    vfs.empty_trash()
    vfs.rename(root, b"pipe", folder, b"c")
    late, _ = vfs.create(folder, b"late", 0o644, WHO)
    vfs.unlink(folder, b"late")
    # Its name went before it is closed, which nobody is to hear of.
    vfs.release(late)
    vfs.empty_trash()
    for name in (b"b", b"c", b"link"):
        vfs.unlink(folder, name)
    vfs.rmdir(root, folder_name)


def test_what_the_mount_does_itself_is_not_taken_for_anothers(watched):
    """Else nothing that it changes would stay in the kernel's caches."""
    vfs, watcher, told = watched
    for number in range(3):
        with vfs.lock:
            everything_done_to(vfs, watcher, b"folder%d" % number)
        # Events are read some times a second.
        time.sleep(0.4)
    with vfs.lock:
        with pytest.raises(OSError, match="full"):
            refuse_to_make(vfs)
    time.sleep(0.8)
    assert told == [] and vfs.changes_behind == 0


def refuse_to_make(vfs):
    """A file that is made and taken back, as where a user's quota does not allow it."""
    own = vfs.own

    def refuse(*_args, **_kwargs):
        vfs.own = own
        raise OSError(errno.EDQUOT, "full")

    vfs.own = refuse
    vfs.mkdir(vfs.nodes.root, b"refused", 0o755, WHO)


DONE = {"made": MADE, "gone": GONE, "moved in": MOVED_IN, "moved out": MOVED_OUT, "written": WRITTEN}


@pytest.mark.parametrize("theirs", DONE)
def test_what_was_done_is_told_apart(watched, tmp_path, theirs):
    """Any two kinds of doing but the same; what is done to one entry says nothing of another."""
    vfs, _, told = watched
    root = vfs.nodes.root
    paths = {name.encode(): tmp_path / vfs.disk_name(root, name.encode())[0] for name in (*DONE, "untouched")}
    for path in paths.values():
        if theirs in ("gone", "moved out", "written"):
            path.write_bytes(b"x")
    time.sleep(0.6)
    told.clear()
    acts = {
        "made": lambda path: path.symlink_to("x"), "gone": lambda path: path.unlink(), "moved in": lambda path: away(path).rename(path),
        "moved out": lambda path: path.rename(away(path)), "written": lambda path: path.open("ab").close(),
    }  # fmt: skip

    def away(path):
        return tmp_path / f"s{path.name}"

    for name, path in paths.items():
        if theirs == "moved in":
            away(path).write_bytes(b"x")
        with vfs.lock:
            if name != b"untouched":
                vfs.own_changes[path.name, DONE[name.decode()]] = time.monotonic()
        acts[theirs](path)
    soon(True, lambda: (root.node_id, b"untouched") in told)
    assert {name for name in paths if (root.node_id, name) in told} == paths.keys() - {theirs.encode()}
