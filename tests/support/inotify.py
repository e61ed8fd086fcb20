"""What inotify(7) tells, as (path, flag names) pairs."""

import ctypes
import os
import select
import struct
import time

_LIBC = ctypes.CDLL(None, use_errno=True)
_FLAGS = {
    0x2: "MODIFY", 0x4: "ATTRIB", 0x8: "CLOSE_WRITE", 0x100: "CREATE", 0x200: "DELETE", 0x400: "DELETE_SELF", 0x40000000: "ISDIR",
}  # fmt: skip
_WANTED = 0x2 | 0x4 | 0x8 | 0x100 | 0x200 | 0x400


class Watch:
    """Watches on files and directories."""

    def __init__(self, *paths):
        self._descriptor = _LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._paths = {}
        for path in paths:
            number = _LIBC.inotify_add_watch(self._descriptor, os.fsencode(path), _WANTED)
            assert number >= 0, os.strerror(ctypes.get_errno())
            self._paths[number] = os.fspath(path)

    def events(self, seconds=0.5):
        """All events until there was none for a while."""
        found = []
        waiting = select.poll()
        waiting.register(self._descriptor, select.POLLIN)
        while waiting.poll(seconds * 1000):
            data = os.read(self._descriptor, 65536)
            while data:
                number, mask, _, length = struct.unpack_from("iIII", data)
                name = data[16 : 16 + length].rstrip(b"\0").decode()
                flags = {text for bit, text in _FLAGS.items() if mask & bit}
                if flags:
                    found.append((os.path.join(self._paths[number], name) if name else self._paths[number], flags))
                data = data[16 + length :]
        return found

    def until(self, path, flag, seconds=10.0):
        """Wait for one event, and return all that came until it was quiet behind it."""
        deadline, found = time.monotonic() + seconds, []
        while time.monotonic() < deadline:
            found += self.events(0.3)
            if any(one == os.fspath(path) and flag in flags for one, flags in found):
                return found
        raise AssertionError(f"no {flag} of {path}: {found}")

    def close(self):
        os.close(self._descriptor)
