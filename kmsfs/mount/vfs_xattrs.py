"""Extended attributes, access control lists, and the homes of a file.

`user.*`, `trusted.*` and `security.*` attributes are stored sealed in extras records; the kernel has checked who may
change them. `system.posix_acl_*` are the backing store's own, as owners and modes are: it enforces, masks and inherits
them. Everything else is not offered.
"""

import contextlib
import errno
import os
import stat
import time

from kmsfs.envelope.extras import Extras
from kmsfs.envelope.kf1file import Kf1File
from kmsfs.formats.fileheader import EXTRA_HOMES
from kmsfs.mount.attributes import KEY_ATTRIBUTES, Requester
from kmsfs.mount.nodes import Node
from kmsfs.mount.vfs_keys import KeyOperations

XATTR_CREATE, XATTR_REPLACE = 1, 2
ACL_ACCESS, ACL_DEFAULT = b"system.posix_acl_access", b"system.posix_acl_default"
CAPABILITY = b"security.capability"
LINK_MAX = 4096
"""Homes of one file: those that its header has no room for lie in its extras record."""
_SEALED = (b"user.", b"trusted.", b"security.")
_ACLS = (ACL_ACCESS, ACL_DEFAULT)


class ExtrasOperations(KeyOperations):
    """What happens to extended attributes and to homes."""

    # --- extended attributes ------------------------------------------------------------------------------

    def get_xattr(self, node: Node, name: bytes) -> bytes:
        """Return an attribute's value.

        Raises:
            OSError: ENODATA if there is none, EOPNOTSUPP for a namespace that is not offered.
            CorruptFile: if the file's record is damaged.
        """
        self.require_unlocked()
        if name in KEY_ATTRIBUTES:
            return self.get_key_attribute(node, name)
        if name in _ACLS:
            place, follow = self._backing_place(node)
            return os.getxattr(place, name, follow_symlinks=follow)
        if not self._may_have_extras(node, name):
            raise OSError(errno.ENODATA, "no such attribute")
        value = self._load_extras(node).attributes.get(name)
        if value is None:
            raise OSError(errno.ENODATA, "no such attribute")
        return value

    def list_xattrs(self, node: Node, who: Requester) -> bytes:
        """Return the names of all attributes that a caller may know of, each ended by a zero byte.

        `trusted.*` is for the superuser (xattr(7)); whether a capability stands for that, the request does not say.

        Raises:
            CorruptFile: if the file's record is damaged.
        """
        self.require_unlocked()
        names = sorted(self._load_extras(node).attributes) if node.is_file or node.is_dir else []
        if who.uid:
            names = [name for name in names if not name.startswith(b"trusted.")]
        if not stat.S_ISLNK(node.kind):
            with contextlib.suppress(OSError):
                place, follow = self._backing_place(node)
                here = os.listxattr(place, follow_symlinks=follow)
                names += [acl for acl in _ACLS if acl.decode() in here]
        return b"".join(name + b"\0" for name in names)

    def set_xattr(
        self, node: Node, name: bytes, value: bytes, flags: int, who: Requester, *, kill_sgid: bool = False
    ) -> None:
        """Set an attribute; `flags` as setxattr(2).

        Raises:
            OSError: EEXIST, ENODATA by the flags, ENOSPC, EOPNOTSUPP.
            CorruptFile, StorageError: if the record is damaged or cannot be written.
        """
        self.require_unlocked()
        self.require_writable()
        if name in KEY_ATTRIBUTES:
            self.set_key_attribute(node, name, value, who)
            return
        if name in _ACLS:
            place, follow = self._backing_place(node)
            os.setxattr(place, name, value, flags, follow_symlinks=follow)
            node.default_acl = None
            if kill_sgid and name == ACL_ACCESS:
                # Only the access list changes the mode (posix_acl_update_mode in the kernel).
                self._clear_bits(node, stat.S_ISGID)
            return
        if not self._may_have_extras(node, name):
            raise OSError(errno.EOPNOTSUPP, "not on this kind of inode")
        extras = self._load_extras(node)
        if flags & XATTR_CREATE and name in extras.attributes:
            raise OSError(errno.EEXIST, "attribute exists")
        if flags & XATTR_REPLACE and name not in extras.attributes:
            raise OSError(errno.ENODATA, "no such attribute")
        extras.attributes[name] = value
        self._store_extras(node, extras)

    def remove_xattr(self, node: Node, name: bytes, who: Requester) -> None:
        """Remove an attribute.

        Raises:
            OSError: ENODATA if there is none, EOPNOTSUPP.
            CorruptFile, StorageError: as `set_xattr`.
        """
        self.require_unlocked()
        self.require_writable()
        if name in KEY_ATTRIBUTES:
            self.set_key_attribute(node, name, None, who)
            return
        if name in _ACLS:
            place, follow = self._backing_place(node)
            os.removexattr(place, name, follow_symlinks=follow)
            node.default_acl = None
            return
        extras = self._load_extras(node) if self._may_have_extras(node, name) else Extras()
        if extras.attributes.pop(name, None) is None:
            raise OSError(errno.ENODATA, "no such attribute")
        self._store_extras(node, extras)

    def _may_have_extras(self, node: Node, name: bytes) -> bool:
        if not name.startswith(_SEALED):
            raise OSError(errno.EOPNOTSUPP, "this namespace of attributes is not offered")
        return node.is_file or node.is_dir

    def _backing_place(self, node: Node) -> tuple[int | str, bool]:
        """Return what the xattr calls take: a descriptor or a path, and whether to follow symlinks."""
        if node.is_dir:
            return self.nodes.descriptor(node), True
        if node.descriptor >= 0:
            return node.descriptor, True
        place = node.place()
        if place is None:
            raise OSError(errno.ESTALE, "the name is gone; the kernel looks again")
        return f"/proc/self/fd/{self.nodes.descriptor(place[0])}/{place[2]}", False

    # --- records --------------------------------------------------------------------------------------------

    def _load_extras(self, node: Node) -> Extras:
        if node.is_dir:
            return self.extras.load(self.dir_id(node), None)
        if node.file is None and node.place() is None:
            # Its record went with it.
            raise OSError(errno.ESTALE, "the name is gone; the kernel looks again")
        attributes = node.file.attributes if node.file is not None else node.attributes
        if attributes is None:
            attributes = self.acquire(node).attributes
            self.give_back(node)
        return self.extras.load(attributes.file_id, attributes.extras)

    def _store_extras(self, node: Node, extras: Extras) -> None:
        """Write a record and, for a file, the header that names it; an empty one is removed."""
        number = max(extras.number + 1, time.time_ns())
        if node.is_dir and self.removed(node):
            # Whoever found it before is as if he had come before its removal. A record would stay for ever.
            return
        if node.is_dir:
            self._replace_record(self.dir_id(node), extras, number, had_one=extras.number > 0)
            descriptor = self.nodes.descriptor(node)
            os.fchmod(descriptor, stat.S_IMODE(os.fstat(descriptor).st_mode))
            return
        file = self.acquire(node)
        try:
            # Before the record is replaced: its header could not name the new one.
            file.require_sound()
            before = file.attributes.extras
            if not extras.empty:
                self._replace_record(file.attributes.file_id, extras, number, had_one=before > 0)
            file.attributes.extras = 0 if extras.empty else number
            file.attributes_dirty = True
            try:
                file.commit()
            except BaseException:
                if extras.empty:
                    # The record that was to go is there still.
                    file.attributes.extras = before
                raise
            if extras.empty:
                self.extras.withdraw(file.attributes.file_id)
        finally:
            self.give_back(node)

    def _replace_record(self, owner: bytes, extras: Extras, number: int, *, had_one: bool) -> None:
        if extras.empty:
            self.extras.withdraw(owner)
            return
        extras.number = number
        self.extras.replace(owner, extras, durable=had_one)

    def has_extras(self, node: Node) -> bool:
        """Whether a known file has a record."""
        attributes = node.file.attributes if node.file is not None else node.attributes
        return attributes is not None and attributes.extras > 0

    # --- privileges and modes -------------------------------------------------------------------------------

    def kill_privileges(self, node: Node) -> None:
        """Drop what a change of content takes away: set-user-id, set-group-id where the group may execute, capabilities.

        The kernel asks for it where the writer lacks CAP_FSETID (FUSE_HANDLE_KILLPRIV_V2).
        """
        mode = self._backing_facts(node).st_mode
        self._clear_bits(node, stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0))
        if self.has_extras(node):
            extras = self._load_extras(node)
            if extras.attributes.pop(CAPABILITY, None) is not None:
                self._store_extras(node, extras)

    def _clear_bits(self, node: Node, bits: int) -> None:
        mode = self._backing_facts(node).st_mode
        if mode & bits:
            self._chmod(node, stat.S_IMODE(mode) & ~bits)

    def made_mode(self, parent: Node, mode: int, who: Requester) -> int:
        """Return a new entry's mode: a default ACL of its directory takes the place of the umask (acl(5))."""
        if not who.umask:
            return mode
        if parent.default_acl is None:
            try:
                os.getxattr(self.nodes.descriptor(parent), ACL_DEFAULT)
                parent.default_acl = True
            except OSError:
                parent.default_acl = False
        return mode if parent.default_acl else mode & ~who.umask

    # --- homes ------------------------------------------------------------------------------------------------

    def add_home(self, node: Node, parent: Node, name: bytes) -> None:
        """Let a file's header, or its record, learn of another home before the name is there.

        Raises:
            OSError: EMLINK past `LINK_MAX` homes.
        """
        dir_id = self.dir_id(parent)
        tag = self.keys.home_tag(dir_id, name)
        file = self.acquire(node)
        try:
            attributes = file.attributes
            if not attributes.name:
                attributes.primary_dir, attributes.name = dir_id, name
            elif tag in attributes.extra_homes:
                return
            elif len(attributes.extra_homes) < EXTRA_HOMES:
                attributes.extra_homes.append(tag)
            else:
                self._add_to_record(node, tag)
                return
            file.attributes_dirty = True
            file.commit()
        finally:
            self.give_back(node)

    def _add_to_record(self, node: Node, tag: bytes) -> None:
        extras = self._load_extras(node)
        if tag not in extras.homes:
            if len(extras.homes) >= LINK_MAX:
                raise OSError(errno.EMLINK, "too many links")
            extras.homes.append(tag)
            self._store_extras(node, extras)

    def only_home(self, node: Node, file: Kf1File, parent: Node, name: bytes) -> None:
        """Let a file with one name have that home and no other."""
        attributes = file.attributes
        attributes.primary_dir, attributes.name, attributes.extra_homes = self.dir_id(parent), name, []
        if attributes.extras:
            extras = self._load_extras(node)
            if extras.homes:
                extras.homes = []
                self._store_extras(node, extras)
        file.attributes_dirty = True

    def forget_home(self, node: Node, file: Kf1File, dir_id: bytes, name: bytes) -> None:
        """Take a removed link's home away, so that the file cannot be put back there."""
        attributes = file.attributes
        tag = self.keys.home_tag(dir_id, name)
        if attributes.primary_dir == dir_id and attributes.name == name:
            attributes.primary_dir, attributes.name = bytes(16), b""
        elif tag in attributes.extra_homes:
            attributes.extra_homes.remove(tag)
        elif attributes.extras:
            extras = self._load_extras(node)
            if tag in extras.homes:
                extras.homes.remove(tag)
                self._store_extras(node, extras)
            return
        file.attributes_dirty = True

    def ready_home(self, node: Node, file: Kf1File, old: tuple[Node, bytes], new: tuple[Node, bytes]) -> None:
        """Before a rename: a home that stands in the file's record is written there first, as a hard link's is.

        Raises:
            CorruptFile, StorageError: if the record is damaged or cannot be written; nothing was renamed then.
        """
        attributes = file.attributes
        old_dir = self.dir_id(old[0])
        primary = attributes.primary_dir == old_dir and attributes.name == old[1]
        if attributes.extras and not primary and self.keys.home_tag(old_dir, old[1]) not in attributes.extra_homes:
            self._add_to_record(node, self.keys.home_tag(self.dir_id(new[0]), new[1]))

    def move_home(self, node: Node, file: Kf1File, old: tuple[Node, bytes], new: tuple[Node, bytes]) -> None:
        """Write a renamed link's new home in the place of the old one."""
        attributes = file.attributes
        old_dir, new_dir = self.dir_id(old[0]), self.dir_id(new[0])
        alone = not attributes.extra_homes and not attributes.extras
        if (attributes.primary_dir == old_dir and attributes.name == old[1]) or alone:
            attributes.primary_dir, attributes.name = new_dir, new[1]
        else:
            tag, new_tag = self.keys.home_tag(old_dir, old[1]), self.keys.home_tag(new_dir, new[1])
            if tag in attributes.extra_homes:
                attributes.extra_homes[attributes.extra_homes.index(tag)] = new_tag
            else:
                extras = self._load_extras(node)
                extras.homes = [new_tag, *(home for home in extras.homes if home not in (tag, new_tag))]
                self._store_extras(node, extras)
        file.attributes_dirty = True
