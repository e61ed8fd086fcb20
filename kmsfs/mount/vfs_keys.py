"""KMS keys of directories: new files below one that has a key of its own get their data keys under it.

Which directory has which key is kmsd's to know (ADR 0014). Whoever mounted the volume, and the superuser, sets and reads
it as an attribute of the directory; it is listed nowhere, so that no copy carries it along.
"""

import errno
import os
import stat

from kmsfs.formats.blob import parse_blob
from kmsfs.ids import is_key_id, owner_of
from kmsfs.mount.attributes import EFFECTIVE_KEY_ATTRIBUTE, KEY_ATTRIBUTE, Requester
from kmsfs.mount.nodes import Node
from kmsfs.mount.vfs_attributes import AttributeOperations


class KeyOperations(AttributeOperations):
    """What happens to the keys of directories."""

    def require_same_key(self, node: Node, old_parent: Node, parent: Node) -> None:
        """Let an entry move only where files have the KMS key that it has: elsewhere it must be copied, under that key.

        Raises:
            OSError: EXDEV, as between file systems; mv(1) copies then.
        """
        if not self.directory_keys or old_parent is parent or not (node.is_file or node.is_dir):
            return
        if node.is_dir and self.dir_id(node) in self.directory_keys:
            return
        if self.key_for(old_parent) != self.key_for(parent):
            raise OSError(errno.EXDEV, "the other directory has another KMS key")

    def require_key_of(self, node: Node, parent: Node) -> None:
        """Let a file without a name get one only where files have its KMS key.

        Raises:
            OSError: EXDEV.
        """
        if self.directory_keys and node.file is not None:
            wanted = owner_of(self.key_for(parent) or self.volume_key_id)
            if parse_blob(node.file.clear.wrapped_key).owner != wanted:
                raise OSError(errno.EXDEV, "the directory has another KMS key")

    # --- as attributes ----------------------------------------------------------------------------------------

    def get_key_attribute(self, node: Node, name: bytes) -> bytes:
        """Return the value of one of `KEY_ATTRIBUTES`.

        Raises:
            OSError: ENODATA where there is none.
            KmsfsError: if the file cannot be opened.
        """
        found = ""
        if node.is_dir:
            own = self.directory_keys.get(self.dir_id(node), "")
            found = own if name == KEY_ATTRIBUTE else self.key_for(node) or self.volume_key_id
        elif node.is_file and name == EFFECTIVE_KEY_ATTRIBUTE:
            file = self.acquire(node)
            try:
                found = parse_blob(file.clear.wrapped_key).key_id
            finally:
                self.give_back(node)
        if not found:
            raise OSError(errno.ENODATA, "no such attribute")
        return found.encode()

    def set_key_attribute(self, node: Node, name: bytes, value: bytes | None, who: Requester) -> None:
        """Give a directory a KMS key, or take its own away (None). Files that are there keep theirs.

        Raises:
            OSError: EPERM for others than who mounted and root, ENODATA, EINVAL, ENOTDIR, ENOENT.
            KmsfsError: if the key cannot make data keys for this mount, or kmsd refuses.
        """
        if who.uid not in (0, os.geteuid()):
            raise OSError(errno.EPERM, "only who mounted the volume, and root, may do that")
        if name != KEY_ATTRIBUTE:
            raise OSError(errno.EOPNOTSUPP, "this attribute only tells")
        if not stat.S_ISDIR(node.kind):
            raise OSError(errno.ENOTDIR, "KMS keys are given to directories")
        if self.removed(node):
            raise OSError(errno.ENOENT, "the directory was removed")
        dir_id = self.dir_id(node)
        if value is None:
            if dir_id not in self.directory_keys:
                raise OSError(errno.ENODATA, "it has no KMS key of its own")
            self._keep(dir_id, None)
            return
        key_id = value.decode("ascii", "replace")
        if not is_key_id(key_id):
            raise OSError(errno.EINVAL, "not the id of a KMS key")
        self.provider.stock(key_id)
        # Before kmsd remembers the directory's id.
        self.sync_fresh_directories(node)
        self._keep(dir_id, key_id)

    def _keep(self, dir_id: bytes, key_id: str | None) -> None:
        self.store_directory_key(dir_id, key_id)
        left = {known: key for known, key in self.directory_keys.items() if known != dir_id}
        self.directory_keys = left if key_id is None else {**left, dir_id: key_id}

    # --- removed directories ----------------------------------------------------------------------------------

    def directory_dropped(self, dir_id: bytes) -> None:
        """Note that a directory is gone: its key is forgotten once a power cut cannot bring the directory back."""
        if self.listings is not None:
            self.removed_directories.add(dir_id)
        if dir_id in self.directory_keys:
            self.dropped_directories |= {dir_id}

    def forget_dropped(self, covered: frozenset[bytes]) -> None:
        """Forget the keys of directories whose removal a barrier has covered.

        Raises:
            KmsfsError: if kmsd cannot be told; they stay noted.
        """
        for dir_id in covered:
            self._keep(dir_id, None)
            self.dropped_directories -= {dir_id}
