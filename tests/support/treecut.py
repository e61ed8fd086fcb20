"""A power-cut simulator for whole trees: the real vfs on a real directory, its system calls recorded.

The model of the disk is the weakest that ext4, xfs and btrfs have in common. Data: each 512-byte sector written
since the file's last barrier keeps its old content or any version since. Names: fsync of an inode makes the changes
durable that name it or happened in it; of the others, each directory keeps a prefix. A rename is atomic. syncfs covers
everything. After the cut the surviving tree is made anew and mounted as an unclean session.
"""

import contextlib
import errno
import os
import random
import shutil
import stat
from pathlib import Path

from kmsfs.backing import posix
from kmsfs.errors import KmsfsError
from kmsfs.mount import durability, vfs_dirs
from kmsfs.mount.attributes import Requester
from kmsfs.mount.durability import Vfs
from kmsfs.mount.vfs import VfsOptions

from support.fakes import FakeProvider, MemoryRecords, make_tools, volume_keys
from support.powercut import SECTOR, Cut, Violation

WHO = Requester(0, 0)
ROOT_DIR_ID = b"r" * 16
_RENAME_EXCHANGE = 2


class TreeProvider(FakeProvider):
    on_low = None

    def drop(self):
        pass

    def prepare(self):
        return False


class FileData:
    def __init__(self, content=b""):
        self.durable = bytearray(content)
        self.cache = bytearray(content)
        self.versions = {}
        self.lost = {}
        """Sectors whose write-back failed: the kernel takes them for clean, and no later barrier stores them."""

    def write(self, data, offset):
        if len(self.cache) < offset + len(data):
            self.cache.extend(bytes(offset + len(data) - len(self.cache)))
        self.cache[offset : offset + len(data)] = data
        for at in range(0, len(data), SECTOR):
            piece = bytes(data[at : at + SECTOR]).ljust(SECTOR, b"\0")
            self.versions.setdefault((offset + at) // SECTOR, []).append(piece)
            self.lost.pop((offset + at) // SECTOR, None)

    def barrier(self):
        before, self.durable, self.versions = self.durable, bytearray(self.cache), dict(self.lost)
        for number in self.lost:
            old = bytes(before[number * SECTOR : (number + 1) * SECTOR]).ljust(SECTOR, b"\0")
            end = min(len(self.durable), (number + 1) * SECTOR)
            self.durable[number * SECTOR : end] = old[: end - number * SECTOR]

    def failed_barrier(self):
        self.lost = dict(self.versions)

    def truncate(self, size):
        for copy in (self.cache, self.durable):
            del copy[size:]
        self.versions = {number: v for number, v in self.versions.items() if number * SECTOR < size}
        self.lost = {number: v for number, v in self.lost.items() if number * SECTOR < size}

    def survivor(self, rng):
        left = bytearray(self.durable)
        for number, versions in self.versions.items():
            piece = rng.choice([None, *versions]) if rng.random() < 0.7 else versions[-1]
            if piece is not None:
                at = number * SECTOR
                left.extend(bytes(max(0, at + SECTOR - len(left))))
                left[at : at + SECTOR] = piece
        return bytes(left)


class Change:
    """One change of names: `places` are (directory, name, inode or None) after it."""

    def __init__(self, places, inodes):
        self.places = places
        self.dirs = {place[0] for place in places}
        self.inodes = inodes
        self.durable = False


class Recorder:
    """Follows the system calls on one tree; burns a fuse and raises Cut when it is through."""

    def __init__(self, root, rng):
        self.rng = rng
        self.fuse = None
        self.changes = []
        self.kinds = {}
        self.data = {}
        self.links = {}
        self.base = {}
        self.current = {}
        self.ids = {}
        """Our own numbers by the real inode's: a real one is given to another file once it is free."""
        self.root = self.identify(os.stat(root).st_ino)
        self._scan(os.fspath(root))

    def identify(self, inode):
        self.ids[inode] = len(self.kinds) + 1
        self.kinds[self.ids[inode]] = "?"
        return self.ids[inode]

    def _scan(self, folder):
        here = self.ids[os.stat(folder).st_ino]
        entries = self.base[here] = {}
        self.kinds[here] = "d"
        for entry in os.scandir(folder):
            number = self.ids.get(entry.inode()) or self.identify(entry.inode())
            entries[entry.name] = number
            if entry.is_symlink():
                self.kinds[number], self.links[number] = "l", os.readlink(entry.path)
            elif entry.is_dir():
                self._scan(entry.path)
            else:
                self.kinds[number], self.data[number] = "f", FileData(Path(entry.path).read_bytes())
        self.current[here] = dict(entries)

    def burn(self, _call, _inode=None):
        """Before each system call that changes something."""
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                raise Cut

    def shorten(self, data):
        """A write may be shorter than asked."""
        return data

    def change(self, places, *inodes):
        self.changes.append(Change(places, set(inodes)))
        for directory, name, inode in places:
            if inode is None:
                self.current[directory].pop(name, None)
            else:
                self.current[directory][name] = inode

    def sync(self, inode, *, names):
        if inode in self.data:
            self.data[inode].barrier()
        if names:
            for change in self.changes:
                if inode in change.dirs or (inode in change.inodes and self.holds(change)):
                    change.durable = True

    def holds(self, change):
        """Whether what a change did is still so: a log keeps an inode's present names, not its former ones."""
        return all(self.current[directory].get(name) == inode for directory, name, inode in change.places)

    def sync_all(self):
        for inode in self.data:
            self.data[inode].barrier()
        for change in self.changes:
            change.durable = True

    def survivors(self, *, power):
        """Return the tree after the cut: directory to its entries, as inode numbers."""
        tree = {number: dict(entries) for number, entries in self.base.items()}
        for number, kind in self.kinds.items():
            if kind == "d":
                tree.setdefault(number, {})
        cuts = {}
        for directory in tree:
            count = sum(directory in change.dirs for change in self.changes)
            cuts[directory] = self.rng.randrange(0, count + 1) if power and self.rng.random() < 0.8 else count
        seen = dict.fromkeys(tree, 0)
        for change in self.changes:
            kept = all(seen[directory] < cuts[directory] for directory in change.dirs)
            for directory in change.dirs:
                seen[directory] += 1
            if not kept:
                # What comes later in any of its directories is not kept either: each keeps a prefix.
                for directory in change.dirs:
                    cuts[directory] = min(cuts[directory], seen[directory] - 1)
            if kept or change.durable or not power:
                for directory, name, inode in change.places:
                    if inode is None:
                        tree[directory].pop(name, None)
                    else:
                        tree[directory][name] = inode
        return tree

    def make_anew(self, target, *, power):
        tree, made = self.survivors(power=power), {}

        def fill(directory, path):
            for name, inode in tree[directory].items():
                here, kind = os.path.join(path, name), self.kinds[inode]
                if inode in made:
                    if kind == "f":
                        os.link(made[inode], here)
                    continue
                made[inode] = here
                if kind == "d":
                    os.mkdir(here)
                    fill(inode, here)
                elif kind == "l":
                    os.symlink(self.links[inode], here)
                else:
                    data = self.data[inode]
                    Path(here).write_bytes(data.survivor(self.rng) if power else bytes(data.cache))

        os.mkdir(target)
        fill(self.root, os.fspath(target))
        facts = {path: os.stat(path, follow_symlinks=False) for path in made.values()}
        return {facts[path].st_ino: inode for inode, path in made.items()}, {
            item.st_ino for item in facts.values() if item.st_size
        }

    # --- interception -----------------------------------------------------------------------------------------

    def wrap(self):
        """Return {(module, name): replacement} for what the vfs calls."""
        real = {name: getattr(os, name) for name in ("open", "mkdir", "symlink", "rename", "unlink", "rmdir", "link",
                                                     "pwrite", "write", "ftruncate", "fsync", "fdatasync")}  # fmt: skip

        def number(fd):
            return self.ids.get(os.fstat(fd).st_ino)

        def child(name, fd):
            return self.ids[os.stat(name, dir_fd=fd, follow_symlinks=False).st_ino]

        def made(name, fd):
            return self.identify(os.stat(name, dir_fd=fd, follow_symlinks=False).st_ino)

        def place(name, fd):
            """`x/.kd` with the descriptor of x's parent is a name in x."""
            head, _, tail = os.fspath(name).rpartition("/")
            return (child(head, fd) if head else number(fd)), tail

        def do_open(path, flags, mode=0o777, *, dir_fd=None):
            if dir_fd is None or not flags & os.O_CREAT or number(dir_fd) not in self.current:
                return real["open"](path, flags, mode, dir_fd=dir_fd)
            self.burn("open")
            fd = real["open"](path, flags, mode, dir_fd=dir_fd)
            inode = self.identify(os.fstat(fd).st_ino)
            self.kinds[inode], self.data[inode] = "f", FileData()
            self.change([(number(dir_fd), path, inode)], inode)
            return fd

        def do_mkdir(path, mode=0o777, *, dir_fd=None):
            if dir_fd is None:
                return real["mkdir"](path, mode)
            self.burn("mkdir")
            real["mkdir"](path, mode, dir_fd=dir_fd)
            inode = made(path, dir_fd)
            self.kinds[inode], self.current[inode] = "d", {}
            self.change([(number(dir_fd), path, inode)], inode)

        def do_symlink(target, path, *args, dir_fd=None, **kwargs):
            if dir_fd is None:
                return real["symlink"](target, path, *args, **kwargs)
            self.burn("symlink")
            real["symlink"](target, path, dir_fd=dir_fd)
            inode = made(path, dir_fd)
            self.kinds[inode], self.links[inode] = "l", target
            directory, name = place(path, dir_fd)
            self.change([(directory, name, inode)], inode)

        def do_rename(old, new, *, src_dir_fd=None, dst_dir_fd=None):
            if src_dir_fd is None:
                return real["rename"](old, new)
            self.burn("rename")
            inode = child(old, src_dir_fd)
            real["rename"](old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            self.change([(number(src_dir_fd), old, None), (number(dst_dir_fd), new, inode)], inode)

        def do_flags(old_dir, old, new_dir, new, flags):
            self.burn("rename")
            inode = child(old, old_dir)
            other = child(new, new_dir) if flags == _RENAME_EXCHANGE else None
            REAL_FLAGS(old_dir, old, new_dir, new, flags)
            moved = {inode} if other is None else {inode, other}
            self.change([(number(old_dir), old, other), (number(new_dir), new, inode)], *moved)

        def do_remove(kind):
            def remove(path, *, dir_fd=None):
                if dir_fd is None:
                    return real[kind](path)
                self.burn(kind)
                inode = child(path, dir_fd)
                real[kind](path, dir_fd=dir_fd)
                directory, name = place(path, dir_fd)
                self.change([(directory, name, None)], inode)

            return remove

        def do_link(old, new, *, src_dir_fd=None, dst_dir_fd=None, follow_symlinks=True):
            if src_dir_fd is None:
                return real["link"](old, new)
            self.burn("link")
            real["link"](old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=follow_symlinks)
            inode = child(new, dst_dir_fd)
            self.change([(number(dst_dir_fd), new, inode)], inode)

        def do_pwrite(fd, data, offset):
            inode = number(fd)
            if inode in self.data:
                self.burn("pwrite")
                data = self.shorten(bytes(data))
                self.data[inode].write(data, offset)
            return real["pwrite"](fd, data, offset)

        def do_write(fd, data):
            inode = self.ids.get(os.fstat(fd).st_ino)
            if inode in self.data:
                self.burn("pwrite")
                data = self.shorten(bytes(data))
                self.data[inode].write(data, os.lseek(fd, 0, os.SEEK_CUR))
            return real["write"](fd, data)

        def do_truncate(fd, size):
            inode = number(fd)
            if inode in self.data:
                self.burn("ftruncate")
                self.data[inode].truncate(size)
            return real["ftruncate"](fd, size)

        def do_sync(*, names):
            def sync(fd):
                self.burn("fsync", number(fd))
                self.sync(number(fd), names=names)

            return sync

        def do_sync_all(_fd):
            self.burn("syncfs")
            self.sync_all()

        return {
            (os, "open"): do_open, (os, "mkdir"): do_mkdir, (os, "symlink"): do_symlink, (os, "rename"): do_rename,
            (os, "unlink"): do_remove("unlink"), (os, "rmdir"): do_remove("rmdir"), (os, "link"): do_link,
            (os, "pwrite"): do_pwrite, (os, "write"): do_write, (os, "ftruncate"): do_truncate, (os, "fsync"): do_sync(names=True),
            (os, "fdatasync"): do_sync(names=False), (durability, "sync_file_system"): do_sync_all,
            (vfs_dirs, "rename_with_flags"): do_flags, (vfs_dirs, "sync_file_system"): do_sync_all,
        }  # fmt: skip


REAL_FLAGS = posix.rename_with_flags
_MISSING = object()


@contextlib.contextmanager
def patched(replacements):
    saved = {place: getattr(*place) for place in replacements}
    for (module, name), value in replacements.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name), value in saved.items():
            setattr(module, name, value)


class TreeHistory:
    """Lives of one tree, each ended by a cut. `promised` maps a path to what must be there after the next cut:
    the set of contents that are right for a file, or the word for a directory."""

    def __init__(self, seed, mode, folder):
        self.rng = random.Random(seed)
        self.mode = mode
        self.folder = folder
        self.keys = volume_keys()
        self.provider = TreeProvider()
        self.records = MemoryRecords()
        self.session = 0
        self.unclean = set()
        self.lives = 0
        self.old_inodes, self.with_header = {}, set()
        self.torn = False
        """Whether a write was cut short in the last life: a new file's only header may be torn without a power cut."""
        self.root = Path(folder) / "0"
        self.root.mkdir()

    def run(self):
        self.tree, self.groups, self.power = {}, {}, False
        for _ in range(self.rng.randrange(1, 4)):
            self.life()
        self.mount()
        self.judge()
        self.leave()

    # --- mounting ---------------------------------------------------------------------------------------------

    def mount(self):
        self.session += 1
        tools = make_tools(self.keys, self.provider, self.session, self.unclean, 12, self.records)
        self.unclean.add(self.session)
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        self.vfs = Vfs(tools, self.provider, descriptor, ROOT_DIR_ID, VfsOptions(put_off=self.rng.random() < 0.7))

    def leave(self):
        for node in self.vfs.nodes.all_nodes():
            if node.file is not None:
                node.file.close()
                node.file, node.descriptor = None, -1
        for node in self.vfs.nodes.all_nodes():
            if node.descriptor >= 0:
                os.close(node.descriptor)
                node.descriptor = -1
        for file, _names in self.vfs._trash:
            file.close()

    def node(self, path):
        node = self.vfs.nodes.root
        for part in path:
            node, _ = self.vfs.lookup(node, part)
            node.lookups += 1
        return node

    # --- judging ----------------------------------------------------------------------------------------------

    def judge(self):
        """Read everything; compare with what was promised; go on from what is there."""
        try:
            found = self.read_tree((), self.vfs.nodes.root)
        except (KmsfsError, OSError) as error:
            raise Violation(f"unreadable: {error!r}") from error
        for path, (there, inode) in list(found.items()):
            group = self.groups.get(inode)
            if there is UNREADABLE:
                # A power cut may tear the first header of a file that was never promised; a kill may not.
                if not (self.power or self.torn) or (group is not None and group.whole):
                    raise Violation(f"{path} is unreadable, power {self.power}, whole {group and group.whole}")
                item = self.tree.get(path)
                if item is not None and item.promised and (item.replaced or item.group).whole:
                    raise Violation(f"{path} was replaced by something that the power cut tore")
                self.vfs.unlink(self.node(path[:-1]), path[-1])
                del found[path]
                if path in self.tree:
                    self.tree[path].promised = False
            elif there is not DIRECTORY and group is not None and there not in group.right():
                raise Violation(f"{path} has a content that its file never had")
        found = {path: there for path, (there, _) in found.items()}
        for path, item in self.tree.items():
            if item.promised:
                there = found.get(path)
                if there is None:
                    raise Violation(f"{path} is gone")
                if item.kind == "d":
                    if there is not DIRECTORY:
                        raise Violation(f"{path} is no directory any more")
                elif there is DIRECTORY or there not in item.right():
                    raise Violation(f"{path} has none of the contents that it may have")
        self.groups = {}
        self.tree = {}
        for path, content in found.items():
            self.tree[path] = item = Item("d" if content is DIRECTORY else "f", content)
            if content is not DIRECTORY:
                item.group = self.groups.setdefault(self.real_inode(path), item.group)
                # One that has no header yet is as good as just created: its first header may be torn.
                item.group.whole = self.real_inode(path) in self.with_header

    def real_inode(self, path):
        return self.node(path).key[1]

    def read_tree(self, prefix, node):
        found = {}
        for entry in self.vfs.list_directory(node):
            path = (*prefix, entry.name)
            try:
                child, facts = self.vfs.lookup(node, entry.name)
            except KmsfsError:
                if entry.kind == stat.S_IFDIR:
                    raise
                found[path] = UNREADABLE, self.old_inodes.get(entry.ino)
                continue
            child.lookups += 1
            if stat.S_ISDIR(facts.mode):
                found[path] = DIRECTORY, None
                found.update(self.read_tree(path, child))
            else:
                found[path] = self.read_file(child, facts), self.old_inodes.get(child.key[1])
        return found

    def read_file(self, child, facts):
        try:
            self.vfs.open(child)
        except KmsfsError:
            return UNREADABLE
        try:
            content = bytes(self.vfs.read(child, 1 << 20, 0))
        except KmsfsError:
            return UNREADABLE
        finally:
            self.vfs.release(child)
        if len(content) != facts.size:
            raise Violation("stat and read differ about the size")
        return content

    # --- living -----------------------------------------------------------------------------------------------

    def life(self):
        self.mount()
        self.judge()
        for item in self.tree.values():
            item.promised = False
        self.heal()
        recorder = self.recorder = self.make_recorder()
        self.groups = {recorder.ids[real]: group for real, group in self.groups.items()}
        recorder.fuse = self.rng.randrange(0, 120)
        with patched(recorder.wrap()):
            try:
                # What was there before the mount is durable in the model; recovery may still rewrite it.
                for item in self.tree.values():
                    item.promised = True
                for _ in range(self.rng.randrange(1, 40)):
                    self.step()
            except Cut:
                pass
            except (KmsfsError, OSError) as error:
                raise Violation(f"fails while it is used: {error!r}") from error
        recorder.fuse = None
        self.leave()
        self.records.crash(self.rng)
        self.lives += 1
        after = Path(self.folder) / str(self.lives)
        power = self.mode == "power" or (self.mode == "mixed" and self.rng.random() < 0.5)
        self.power = power
        self.old_inodes, self.with_header = recorder.make_anew(after, power=power)
        shutil.rmtree(self.root)
        self.root = after

    def make_recorder(self):
        return Recorder(self.root, self.rng)

    def heal(self):
        """Sometimes recovery gets through before anything happens: from then on nothing counts as touched by a crash."""
        if self.rng.random() < 0.5:
            if self.vfs.heal():
                raise Violation("an entry cannot be healed")
            self.unclean = {self.session}
            self.vfs.tools.rules.unclean.clear()

    def step(self):
        self.rng.choice((self.mkdir, self.write, self.write, self.rewrite, self.rename, self.replace, self.link,
                         self.unlink, self.fsync, self.fsync, self.fsyncdir, self.tick, self.idle))()  # fmt: skip

    def directories(self):
        return [(), *(path for path, item in self.tree.items() if item.kind == "d")]

    def files(self):
        return [path for path, item in self.tree.items() if item.kind == "f"]

    def fresh_path(self):
        return (*self.rng.choice(self.directories()), b"n%d" % self.rng.randrange(1 << 30))

    def mkdir(self):
        path = self.fresh_path()
        if len(path) > 4:
            return
        parent = self.node(path[:-1])
        self.tree[path] = Item("d", None)
        self.vfs.mkdir(parent, path[-1], 0o755, WHO)

    def content(self):
        return self.rng.randbytes(self.rng.choice((0, 10, 1000, 3500, 9000, 30_000)))

    def put(self, node, data):
        for start in range(0, len(data), 8192):
            self.vfs.write(node, data[start : start + 8192], start, cached=False)

    def write(self):
        path, data = self.fresh_path(), self.content()
        parent = self.node(path[:-1])
        self.tree[path] = item = Item("f", b"")
        node, _ = self.vfs.create(parent, path[-1], 0o644, WHO)
        self.groups[self.recorder.ids[node.key[1]]] = item.group
        item.during(data)
        self.put(node, data)
        self.vfs.release(node)
        item.settled(data)

    def rewrite(self):
        if not self.files():
            return
        path = self.rng.choice(self.files())
        item, data = self.tree[path], self.content()
        for same in self.same(path):
            self.tree[same].during(data)
        node = self.node(path)
        self.vfs.open(node, truncate=True)
        self.put(node, data)
        self.vfs.release(node)
        for same in self.same(path):
            self.tree[same].settled(data)

    def same(self, path):
        """All names of a file."""
        group = self.tree[path].group
        return [other for other, item in self.tree.items() if item.group is group]

    def rename(self):
        if not self.files():
            return
        old, new = self.rng.choice(self.files()), self.fresh_path()
        self.move(old, new)

    def replace(self):
        """Write anew and rename over: afterwards it is the old or the new, whole."""
        if len(self.files()) < 2:
            return
        old, new = self.rng.sample(self.files(), 2)
        if self.tree[old].group is self.tree[new].group:
            return
        self.move(old, new)

    def move(self, old, new):
        item, target = self.tree[old], self.tree.get(new)
        self.node(old)  # the kernel has looked it up
        source_parent, parent = self.node(old[:-1]), self.node(new[:-1])
        promised, item.promised = item.promised, False
        if target is not None:
            # Either of the two may be there, each at a content that it may have.
            target.others.append(item)
        replaced = parent.kids.get(new[-1])
        self.vfs.rename(source_parent, old[-1], parent, new[-1])
        self.lost_its_name(replaced)
        del self.tree[old]
        moved = Item("f", None)
        moved.group, moved.promised = item.group, target is not None and target.promised
        if target is not None:
            moved.others, moved.replaced = [target], target.replaced or target.group
        self.tree[new] = moved
        del promised

    def link(self):
        if not self.files():
            return
        old, new = self.rng.choice(self.files()), self.fresh_path()
        if len(self.same(old)) > 4:
            return
        node, parent = self.node(old), self.node(new[:-1])
        try:
            self.vfs.link(node, parent, new[-1])
        except OSError as error:
            if error.errno != errno.EMLINK:
                raise
            return  # homes of links that a cut took stay in the header and use up its room
        self.tree[new] = made = Item("f", None)
        made.group = self.tree[old].group

    def unlink(self):
        if not self.files():
            return
        path = self.rng.choice(self.files())
        parent = self.node(path[:-1])
        del self.tree[path]
        node = parent.kids.get(path[-1])
        self.vfs.unlink(parent, path[-1])
        self.lost_its_name(node)

    def lost_its_name(self, node):
        """The kernel forgets an inode without a name, now or much later; whoever had found it may open it until then."""
        if node is None or node.names or not node.lookups:
            return
        if node.file is not None and self.rng.random() < 0.3:
            self.vfs.open(node)
            self.vfs.read(node, 100, 0)
            self.vfs.release(node)
        if self.rng.random() < 0.8:
            self.vfs.forget(node, node.lookups)

    def fsync(self):
        if not self.files():
            return
        path = self.rng.choice(self.files())
        node = self.node(path)
        self.vfs.open(node)
        self.vfs.fsync(node)
        self.vfs.release(node)
        self.tree[path].promise()
        self.tree[path].group.acknowledged()
        for at in range(1, len(path)):
            self.tree[path[:at]].promised = True

    def fsyncdir(self):
        path = self.rng.choice(self.directories())
        self.vfs.fsyncdir(self.node(path))
        for other, item in self.tree.items():
            if other[:-1] == path:
                item.promise()
        for at in range(1, len(path) + 1):
            self.tree[path[:at]].promised = True

    def tick(self):
        self.vfs.tick()
        for item in self.tree.values():
            item.promise()
            item.group.acknowledged()

    def idle(self):
        for _ in range(self.rng.randrange(1, 6)):
            self.vfs.idle_step()
        self.vfs.quiet_step()


DIRECTORY, UNREADABLE = object(), object()


class Group:
    """The contents that one file may have after a cut: all since its last promise."""

    def __init__(self, first):
        self.contents = [first]
        self.attributes = [None]
        """Values that one extended attribute may have, None for none."""
        self.whole = False

    def acknowledged(self):
        self.contents, self.attributes = self.contents[-1:], self.attributes[-1:]
        self.whole = True

    def right(self):
        # A file whose content was never promised may come back empty.
        return self.contents if self.whole else [b"", *self.contents]


class Item:
    """One name."""

    def __init__(self, kind, content):
        self.kind = kind
        self.promised = False
        self.others = []
        self.replaced = None
        """The file that a rename put this one over: until the next promise, it may be that one that is there."""
        self.group = Group(content)

    def promise(self):
        self.promised, self.others, self.replaced = True, [], None

    def during(self, data):
        """From now on every prefix of the new content may be found: each piece may have been committed."""
        self.group.contents.append(b"")
        for end in range(4096, len(data), 4096):
            self.group.contents.append(data[:end])
        self.group.contents.append(data)

    def settled(self, data):
        self.group.contents.append(data)

    def right(self):
        """Each content of each file that may be there; who failed to replace whom may go in a circle."""
        items, contents = [self], []
        for item in items:
            contents += item.group.right()
            items += [other for other in item.others if other not in items]
        return contents


def tree_campaign(count, folder, modes=("power", "kill", "mixed"), first_seed=0):
    """Run `count` histories of trees; return what was violated, as texts."""
    violations = []
    for number in range(count):
        place = Path(folder) / f"h{number}"
        place.mkdir()
        try:
            TreeHistory(first_seed + number, modes[number % len(modes)], place).run()
        except Violation as error:
            violations.append(f"seed {first_seed + number} {modes[number % len(modes)]}: {error}")
        shutil.rmtree(place, ignore_errors=True)
    return violations
