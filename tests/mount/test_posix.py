"""POSIX by comparison: several users' random calls on the mount and on a plain directory; and single cases.

CI runs the same seeds each time. `KMSFS_POSIX_SEEDS=2000 pytest tests/mount/test_posix.py` is the long form, with new ones.
"""

import ctypes
import os
import random
import subprocess

import pytest

from support.posixdiff import compare

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.timeout(7200)]
ASKED = int(os.environ.get("KMSFS_POSIX_SEEDS", "0"))
SEEDS = range(first := random.SystemRandom().randrange(1 << 40), first + ASKED) if ASKED else (*range(29), 505805402899)
"""The last one of CI links a file whose set-user-ID bit a write had just cleared."""


def test_calls_of_several_users_answer_as_on_a_plain_directory(shared, tmp_path):
    found = []
    for seed in SEEDS:
        here, there = shared.plain / f"s{seed}", tmp_path / f"s{seed}"
        here.mkdir()
        there.mkdir()
        found += compare(here, there, seed, 300)
    assert not found, "\n".join(found)


def test_times_before_1970(shared):
    path = shared.plain / "f"
    path.write_text("x")
    os.utime(path, ns=(-5_000_000_001, -7_000_000_001))
    facts = path.stat()
    assert (facts.st_atime_ns, facts.st_mtime_ns) == (-5_000_000_001, -7_000_000_001)


def test_removed_files_leave_no_error_for_syncfs(shared):
    root = os.open(shared.plain, os.O_RDONLY)
    try:
        for number in range(50):
            folder = shared.plain / "d" / f"e{number}"
            folder.mkdir(parents=True)
            for name in ("a", "b"):
                (folder / name).write_text("x" * 5000)
        subprocess.run(["rm", "-rf", str(shared.plain / "d")], check=True)
        assert ctypes.CDLL(None, use_errno=True).syncfs(root) == 0, os.strerror(ctypes.get_errno())
    finally:
        os.close(root)
