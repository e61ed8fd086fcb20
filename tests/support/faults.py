"""A campaign of failing system calls: the k-th call of a tree's life is refused, and the life goes on.

Whatever fails, with EIO, ENOSPC or EDQUOT, by a short write, by an fsync or syncfs that fails once: nothing readable may
become unreadable, no file may show what it never had, nothing that was promised may be lost, and rm works.
A failed barrier leaves pages that the kernel takes for clean and no later barrier stores (fsync(2), NOTES; ext4 and xfs
keep the new content in memory until it is evicted); each file reports that once (errseq).
"""

import contextlib
import errno
import os
import random
import shutil
from pathlib import Path

from kmsfs.errors import KmsfsError, StorageError
from kmsfs.mount.attributes import Changes

from support.powercut import Cut, Violation
from support.treecut import DIRECTORY, UNREADABLE, WHO, Group, Item, Recorder, TreeHistory, patched

SYNCS = ("fsync", "syncfs")
ALLOCATES = ("open", "mkdir", "symlink", "rename", "link", "pwrite")
ATTRIBUTE = b"user.a"


class FaultRecorder(Recorder):
    """Refuses one call, or for a while all that need room."""

    def __init__(self, root, rng):
        super().__init__(root, rng)
        self.calls = dict.fromkeys(("any", "sync", "allocate", "read"), 0)
        self.kind = "none"
        self.fired = None
        self.cut_short = False
        self.reports = set()
        """Files whose next fsync tells of a write-back that failed."""

    def arm(self, kind, number, lasting=0):
        self.kind, self.at, self.left = kind, number, lasting
        self.error = {"room": self.rng.choice((errno.ENOSPC, errno.EDQUOT)), "short": errno.ENOSPC}.get(kind, errno.EIO)

    def calm(self):
        self.kind = "none"

    def _due(self, group):
        self.calls[group] += 1
        return self.at <= self.calls[group] <= self.at + self.left

    def burn(self, call, inode=None):
        if call == "fsync" and inode in self.reports:
            self.reports.discard(inode)
            self._refuse(call, inode)
        due = (
            (self.kind == "any" and self._due("any"))
            or (self.kind == "sync" and call in SYNCS and self._due("sync"))
            or (self.kind == "room" and call in ALLOCATES and self._due("allocate"))
        )
        if due:
            self._refuse(call, inode)

    def _refuse(self, call, inode):
        self.fired = call
        if call == "fsync" and inode in self.data:
            self.data[inode].failed_barrier()
        elif call == "syncfs":
            self._fail_write_back()
        number = errno.EIO if call in SYNCS else self.error
        if call == "syncfs":
            raise StorageError("the backing store cannot sync (injected)", os_errno=number)
        raise OSError(number, f"{os.strerror(number)} (injected into {call})")

    def _fail_write_back(self):
        """One file could not be written back; the others were."""
        dirty = [inode for inode, data in self.data.items() if data.versions]
        victim = self.rng.choice(dirty) if dirty else None
        for inode in dirty:
            if inode == victim:
                self.data[inode].failed_barrier()
                self.reports.add(inode)
            else:
                self.data[inode].barrier()

    def shorten(self, data):
        if self.kind == "short" and len(data) > 1 and self._due("any"):
            self.fired, self.cut_short = "pwrite", True
            # What is left meets a full disk.
            self.kind, self.at, self.left = "room", self.calls["allocate"] + 1, 0
            return data[: self.rng.randrange(1, len(data))]
        return data

    def wrap(self):
        real = {"pread": os.pread, "preadv": os.preadv}

        def do_read(name):
            def read(fd, *args):
                if self.kind == "read" and os.fstat(fd).st_ino in self.ids and self._due("read"):
                    self.fired = "read"
                    raise OSError(errno.EIO, "Input/output error (injected)")
                return real[name](fd, *args)

            return read

        return {**super().wrap(), (os, "pread"): do_read("pread"), (os, "preadv"): do_read("preadv")}


class FaultHistory(TreeHistory):
    """Lives of one tree in each of which something fails; each ends by an unmount, a kill or a power cut."""

    def make_recorder(self):
        made = FaultRecorder(self.root, self.rng)
        kind = self.rng.choice(("any", "any", "sync", "sync", "room", "short", "read"))
        number = self.rng.randrange(1, 6 if kind == "sync" else 60)
        made.arm(kind, number, self.rng.randrange(0, 30) if kind == "room" else 0)
        return made

    def mount(self):
        super().mount()
        self.vfs.resting_max = self.rng.choice((4, 8, 4096))

    def step(self):
        if self.rng.random() < 0.35 and self.files():
            self.rng.choice((self.append, self.overwrite, self.cut_off, self.rmdir, self.set_attribute))()
        else:
            super().step()

    def judge(self):
        """Extended attributes as contents: one that was promised is there, and none is there that never was."""
        live = {}
        with contextlib.suppress(KmsfsError, OSError):
            for path, (there, inode) in self.read_tree((), self.vfs.nodes.root).items():
                if there not in (DIRECTORY, UNREADABLE):
                    live[path] = self.attribute_of(path, self.groups.get(inode))
        super().judge()
        for path, item in self.tree.items():
            item.group.attributes = [live.get(path)]

    def attribute_of(self, path, group):
        try:
            found = self.vfs.get_xattr(self.node(path), ATTRIBUTE)
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
            found = None
        except KmsfsError as error:
            raise Violation(f"the attribute of {path} is unreadable: {error!r}") from error
        if group is not None and found not in (group.attributes if group.whole else [None, *group.attributes]):
            raise Violation(f"{path} has an attribute that it never had, or lacks one that was promised")
        return found

    def set_attribute(self):
        path = self.rng.choice(self.files())
        group, node = self.tree[path].group, self.node(path)
        value = self.rng.choice((None, self.rng.randbytes(10), self.rng.randbytes(6000)))
        if value is None and group.attributes[-1] is None:
            return
        group.attributes.append(value)
        if value is None:
            self.vfs.remove_xattr(node, ATTRIBUTE, WHO)
        else:
            self.vfs.set_xattr(node, ATTRIBUTE, value, 0, WHO)
        group.attributes.append(value)

    def unlink(self):
        before = dict(self.tree)
        try:
            super().unlink()
        finally:
            self.gone(before)

    def move(self, old, new):
        if new in self.tree:
            self.tree[new].group.attributes.insert(0, None)
        super().move(old, new)

    def gone(self, before):
        """A file that a power cut brings back may have lost its record, which was removed in another directory."""
        for path, item in before.items():
            if path not in self.tree:
                item.group.attributes.insert(0, None)

    def life(self):
        self.mount()
        self.judge()
        for item in self.tree.values():
            item.promised = False
        self.heal()
        recorder = self.recorder = self.make_recorder()
        self.groups = {recorder.ids[real]: group for real, group in self.groups.items()}
        with patched(recorder.wrap()):
            for item in self.tree.values():
                item.promised = True
            for _ in range(self.rng.randrange(1, 40)):
                self.try_step()
            recorder.calm()
            recorder.reports.clear()
            self.rooms_and_readers()
            if self.rng.random() < 0.3:
                for _ in range(self.rng.randrange(1, 10)):
                    self.try_step()
            clean = self.rng.random() < 0.4 and self.end()
        self.leave()
        if not clean:
            self.records.crash(self.rng)
        self.lives += 1
        after = Path(self.folder) / str(self.lives)
        self.power = not clean and self.rng.random() < 0.5
        self.torn = recorder.cut_short
        self.old_inodes, self.with_header = recorder.make_anew(after, power=self.power)
        shutil.rmtree(self.root)
        self.root = after

    def try_step(self):
        try:
            self.step()
        except Cut:
            raise
        except (KmsfsError, OSError) as error:
            if self.recorder.fired is None:
                raise Violation(f"fails while it is used: {error!r}") from error
            self.go_on(error)

    def go_on(self, error):
        """After a failed operation: what is there must be readable and right; the model follows it."""
        kind, self.recorder.kind = self.recorder.kind, "none"
        try:
            live = self.read_tree((), self.vfs.nodes.root)
        except (KmsfsError, OSError) as second:
            raise Violation(f"the tree is unreadable after {error!r}: {second!r}") from second
        self.recorder.kind = kind
        for path, item in list(self.tree.items()):
            if path not in live:
                if item.promised:
                    raise Violation(f"{path} is gone after {error!r}")
                del self.tree[path]
        for path, (there, _) in live.items():
            if there is UNREADABLE:
                raise Violation(f"{path} is unreadable after {error!r}")
            if there is DIRECTORY:
                self.tree.setdefault(path, Item("d", None))
                continue
            number = self.recorder.ids[self.real_inode(path)]
            group = self.groups.setdefault(number, Group(b""))
            item = self.tree.setdefault(path, Item("f", b""))
            if item.group is not group:
                # A replacement that failed half-way: after a power cut it may be the one that it was.
                before = Item("f", None)
                before.group, before.others = item.group, item.others
                item.group, item.others = group, [before]
            if there not in group.right():
                raise Violation(f"{path} has a content that its file never had, after {error!r}")
            group.contents.append(there)
            group.attributes.append(self.attribute_of(path, group))

    def rooms_and_readers(self):
        """Nothing fails any more: every file can be read, changed and removed."""
        self.go_on(None)
        for path in self.files():
            if self.rng.random() < 0.2:
                parent = self.node(path[:-1])
                self.tree.pop(path).group.attributes.insert(0, None)
                try:
                    self.vfs.unlink(parent, path[-1])
                except (KmsfsError, OSError) as error:
                    raise Violation(f"{path} cannot be removed: {error!r}") from error

    def end(self):
        """Unmount; return whether everything is stored, so that the session counts as clean."""
        try:
            stored = self.vfs.finish()
        except KmsfsError:
            return False
        if stored:
            self.unclean.discard(self.session)
            for path, (there, _) in self.read_tree((), self.vfs.nodes.root).items():
                item = self.tree[path] = Item("d", None) if there is DIRECTORY else self.tree[path]
                item.promise()
                if there is not DIRECTORY:
                    item.group.contents = [there]
                    item.group.attributes = [self.attribute_of(path, item.group)]
                    item.group.whole = True
        return stored

    # --- steps that may fail half-way ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def held(self, node):
        try:
            yield
        finally:
            self.vfs.release(node)

    def write(self):
        path, data = self.fresh_path(), self.content()
        parent = self.node(path[:-1])
        node, _ = self.vfs.create(parent, path[-1], 0o644, WHO)
        self.tree[path] = item = Item("f", b"")
        self.groups[self.recorder.ids[node.key[1]]] = item.group
        item.during(data)
        with self.held(node):
            self.put(node, data)
        item.settled(data)

    def rewrite(self):
        if not self.files():
            return
        path = self.rng.choice(self.files())
        item, data = self.tree[path], self.content()
        item.during(data)
        node = self.node(path)
        self.vfs.open(node, truncate=True)
        with self.held(node):
            self.put(node, data)
        item.settled(data)

    def append(self):
        path = self.rng.choice(self.files())
        group, more = self.tree[path].group, self.content()
        old = group.contents[-1]
        group.contents += [old + more[:end] for end in range(4096, len(more), 4096)] + [old + more]
        node = self.node(path)
        self.vfs.open(node)
        with self.held(node):
            for start in range(0, len(more), 4096):
                self.vfs.write(node, more[start : start + 4096], len(old) + start, cached=False)
        group.contents.append(old + more)

    def overwrite(self):
        path = self.rng.choice(self.files())
        group = self.tree[path].group
        old = group.contents[-1]
        at, piece = self.rng.randrange(0, len(old) + 1), self.rng.randbytes(self.rng.choice((10, 700, 4096)))
        new = old[:at] + piece + old[at + len(piece) :]
        group.contents.append(new)
        node = self.node(path)
        self.vfs.open(node)
        with self.held(node):
            self.vfs.write(node, piece, at, cached=False)
        group.contents.append(new)

    def cut_off(self):
        """truncate(2), shorter or longer."""
        path = self.rng.choice(self.files())
        group = self.tree[path].group
        old = group.contents[-1]
        size = self.rng.randrange(0, 2 * len(old) + 100)
        new = old[:size] + bytes(max(0, size - len(old)))
        group.contents.append(new)
        self.vfs.setattr(self.node(path), Changes(size=size))
        group.contents.append(new)

    def rmdir(self):
        empty = [path for path in self.directories() if path and not any(other[:-1] == path for other in self.tree)]
        if empty:
            path = self.rng.choice(empty)
            parent = self.node(path[:-1])
            item = self.tree.pop(path)
            try:
                self.vfs.rmdir(parent, path[-1])
            except (KmsfsError, OSError):
                item.promised = False
                self.tree[path] = item
                raise

    def put(self, node, data):
        for start in range(0, len(data), 4096):
            self.vfs.write(node, data[start : start + 4096], start, cached=False)

    def tick(self):
        """What could not be committed is kept in memory, and not promised to anybody."""
        self.vfs.tick()
        for path, item in self.tree.items():
            if item.kind == "f":
                node = self.node(path)
                if self.vfs.extras.unsynced() or node.key in self.vfs.recent or (
                    node.file is not None and (node.file.failed or node.file.dirty or node.file.provisional)
                ):
                    continue
            item.promise()
            item.group.acknowledged()

    def fsync(self):
        if not self.files():
            return
        path = self.rng.choice(self.files())
        node = self.node(path)
        self.vfs.open(node)
        with self.held(node):
            self.vfs.fsync(node)
        self.tree[path].promise()
        self.tree[path].group.acknowledged()
        for at in range(1, len(path)):
            self.tree[path[:at]].promised = True


def fault_campaign(count, folder, first_seed=0):
    """Run `count` histories; return what was violated, as texts."""
    violations = []
    for seed in range(first_seed, first_seed + count):
        place = Path(folder) / f"h{seed}"
        place.mkdir()
        try:
            # Keys and names too: the same seed is the same life.
            with patched({(os, "urandom"): random.Random(seed).randbytes}):
                history = FaultHistory(seed, "fault", place)
                history.run()
        except Violation as error:
            violations.append(f"seed {seed}, {history.recorder.fired}: {error}")
        shutil.rmtree(place, ignore_errors=True)
    return violations


