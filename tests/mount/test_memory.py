"""The inode table stays small whatever is walked through, and nothing is the worse for it."""

import contextlib
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest
from kmsfs.mount.durability import TICK_SECONDS
from kmsfs.mount.kernel.notify import KernelNotifier
from kmsfs.mount.kernel.pruning import most_nodes
from support import smalltable
from support.waiting import soon

pytestmark = [pytest.mark.fuse, pytest.mark.root]
MOST = 600


@pytest.fixture(params=["prune", "names"])
def small(make_mount, tmp_path, request):
    """A mount with a small table, and what tells how big it is and was at most."""
    told = tmp_path / "told"
    mount = make_mount()
    mount.program = (smalltable.__file__, str(MOST), request.param, str(told))
    mount.start()

    def sizes():
        return tuple(int(word) for word in told.read_text().split()) if told.exists() else (0, 0)

    soon(True, lambda: sizes()[0] > 0, 10)
    return mount, sizes


def test_walking_through_many_files_leaves_a_small_table(small):
    mount, sizes = small
    for number in range(20):
        folder = mount.plain / f"d{number}"
        folder.mkdir()
        for other in range(150):
            (folder / f"f{other}").write_text(f"{number} {other}")
    mount.again()
    # Twice: what was forgotten is found again, with the same numbers.
    first = {path: path.stat().st_ino for path in mount.plain.rglob("*")}
    assert len(first) == 20 * 151
    soon(True, lambda: sizes()[0] <= MOST, 10)
    assert {path: path.stat().st_ino for path in mount.plain.rglob("*")} == first
    soon(True, lambda: sizes()[0] <= MOST, 10)
    for number in range(20):
        for other in range(0, 150, 10):
            assert (mount.plain / f"d{number}" / f"f{other}").read_text() == f"{number} {other}"


def test_what_is_in_use_stays(small):
    mount, sizes = small
    (mount.plain / "w").mkdir()
    held = []
    for number in range(MOST + 200):
        descriptor = os.open(mount.plain / f"h{number}", os.O_RDWR | os.O_CREAT)
        os.write(descriptor, b"before %d" % number)
        held.append(descriptor)
    child = subprocess.Popen(["sh", "-c", "read go; cat inside; pwd -P"], cwd=mount.plain / "w", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    (mount.plain / "w" / "inside").write_text("still here")
    for number in range(MOST):
        (mount.plain / "w" / f"f{number}").touch()
    time.sleep(1)
    assert sizes()[0] > MOST
    for number, descriptor in enumerate(held):
        os.pwrite(descriptor, b"after!", 0)
        assert os.pread(descriptor, 20, 0) == b"after! %d" % number
        os.close(descriptor)
    out, _ = child.communicate(b"go\n", 20)
    assert out.decode() == f"still here{mount.plain / 'w'}\n"
    # They are idle now, and go as new ones come.
    for number in range(MOST):
        (mount.plain / "w" / f"g{number}").touch()
    soon(True, lambda: sizes()[0] <= MOST, 60)


def test_writers_and_walkers_at_the_same_time(small):
    mount, _ = small
    wrong = []

    def work(name):
        try:
            folder = mount.plain / name
            folder.mkdir()
            for turn in range(3):
                for number in range(200):
                    path = folder / f"f{number}"
                    path.write_text(f"{name} {turn} {number}")
                    other = folder / f"f{(number * 7) % (number + 1)}"
                    if not other.read_text().startswith(name):
                        wrong.append(other)
                    if number % 50 == 49:
                        path.rename(folder / f"m{number}")
                        list(folder.iterdir())
                        (folder / f"m{number}").rename(path)
        except OSError as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(f"w{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not wrong
    for number in range(4):
        for other in range(200):
            assert (mount.plain / f"w{number}" / f"f{other}").read_text() == f"w{number} 2 {other}"


def test_the_option(make_mount):
    assert most_nodes(256 << 20) > 60_000
    assert most_nodes(1 << 20) == 16_384
    make_mount("--memory", "128").start()
    refused = make_mount("--memory", "12", name="w")
    with pytest.raises(RuntimeError, match="128"):
        refused.start()


def test_who_executes_something_else_waits_for_what_is_under_way():
    read, write = os.pipe()
    os.set_blocking(write, False)
    while True:
        try:
            os.write(write, bytes(4096))
        except BlockingIOError:
            break
    os.set_blocking(write, True)
    notifier = KernelNotifier(write)
    thread = threading.Thread(target=notifier.drop_inode, args=(7,))
    thread.start()
    soon(1, lambda: notifier._under_way, 5)
    with notifier.held_back(0.05) as quiet:
        assert not quiet
        other = threading.Thread(target=notifier.drop_inode, args=(8,))
        other.start()
        time.sleep(0.1)
        assert notifier._under_way == 1
    # Let go, both come through.
    os.set_blocking(read, False)
    while thread.is_alive() or other.is_alive():
        with contextlib.suppress(BlockingIOError):
            os.read(read, 1 << 16)
        time.sleep(0.001)
    with notifier.held_back(1.0) as quiet:
        assert quiet
    os.close(read)
    os.close(write)


def test_what_is_mounted_within_the_volume_stays_mounted(small):
    mount, sizes = small
    inside = mount.plain / "inside"
    inside.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(inside)], check=True)
    (mount.plain / "name").touch()
    subprocess.run(["mount", "--bind", "/etc/passwd", str(mount.plain / "name")], check=True)
    try:
        (inside / "kept").write_text("kept")
        for number in range(2 * MOST):
            (mount.plain / f"f{number}").touch()
        # What was written stays until a barrier has covered it.
        time.sleep(TICK_SECONDS + 2)
        # A kernel that prunes leaves what is mounted on; names are not dropped at all then.
        assert (sizes()[0] <= MOST) == (mount.program[2] == "prune")
        assert os.path.ismount(inside)
        assert (inside / "kept").read_text() == "kept"
        assert (mount.plain / "name").read_text() == Path("/etc/passwd").read_text()
    finally:
        subprocess.run(["umount", str(mount.plain / "name")], check=True)
        subprocess.run(["umount", str(inside)], check=True)
