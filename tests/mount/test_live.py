"""The live mount, on both transports: POSIX behaviour that this release promises."""

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest

from kmsfs.backing.posix import rename_with_flags
from kmsfs.mount.control import ask_restart
from kmsfs.mount.mounttable import find_mounted
from support.peers import let_others_in
from support.waiting import soon

pytestmark = pytest.mark.fuse


@pytest.fixture(params=["kernel", "fusepy"])
def mounted(request, make_mount):
    process = make_mount("--transport", request.param).start()
    process.kernel = request.param == "kernel"
    return process


@pytest.fixture
def kernel(make_mount):
    return make_mount().start()


@pytest.mark.parametrize("size", [0, 1, 2960, 2961, 4096, 16384, 16385, 1_300_000])
def test_files_come_back_after_a_remount(mounted, size):
    data = os.urandom(size)
    (mounted.plain / "f").write_bytes(data)
    assert (mounted.plain / "f").read_bytes() == data
    assert (mounted.plain / "f").stat().st_size == size
    mounted.again()
    assert (mounted.plain / "f").read_bytes() == data
    stored = b"".join(p.read_bytes() for p in mounted.cipher.iterdir() if p.is_file())
    assert size < 16 or data[:16] not in stored


def test_open_flags(mounted):
    path = mounted.plain / "f"
    with pytest.raises(FileNotFoundError):
        os.open(path, os.O_RDWR)
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o640)
    with pytest.raises(FileExistsError):
        os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR)
    os.write(descriptor, b"0123456789")
    os.close(descriptor)
    append = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(append, b"AB")
    os.lseek(append, 0, 0)
    os.write(append, b"CD")
    os.close(append)
    assert path.read_bytes() == b"0123456789ABCD"
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
    assert path.read_bytes() == b""
    with pytest.raises(NotADirectoryError):
        os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    os.symlink("f", mounted.plain / "l")
    with pytest.raises(OSError) as caught:
        os.open(mounted.plain / "l", os.O_RDONLY | os.O_NOFOLLOW)
    assert caught.value.errno == errno.ELOOP


def test_random_access_and_truncate(mounted):
    path = mounted.plain / "f"
    model = bytearray()
    with path.open("w+b", buffering=0) as stream:
        for offset, length in ((0, 5000), (100_000, 20_000), (3, 9), (16380, 8), (119_000, 40_000)):
            data = os.urandom(length)
            stream.seek(offset)
            stream.write(data)
            model.extend(bytes(max(0, offset + length - len(model))))
            model[offset : offset + length] = data
        for size in (130_000, 50_001, 60_000, 2000, 0, 70_000):
            stream.truncate(size)
            del model[size:]
            model.extend(bytes(size - len(model)))
            stream.seek(0)
            assert stream.read() == bytes(model)
    assert path.read_bytes() == bytes(model)


def test_sparse_files(kernel):
    path = kernel.plain / "f"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
        stream.seek(1 << 30)
        stream.write(b"data")
    assert path.stat().st_size == 1 << 40
    assert sum(p.stat().st_blocks for p in kernel.cipher.iterdir()) < 1000
    descriptor = os.open(path, os.O_RDONLY)
    start = os.lseek(descriptor, 0, os.SEEK_DATA)
    assert start == 1 << 30
    assert os.lseek(descriptor, 0, os.SEEK_HOLE) == 0
    hole = os.lseek(descriptor, start, os.SEEK_HOLE)
    assert start < hole <= start + 16384
    with pytest.raises(OSError) as caught:
        os.lseek(descriptor, hole, os.SEEK_DATA)
    assert caught.value.errno == errno.ENXIO
    assert os.pread(descriptor, 8, (1 << 30) - 2) == b"\0\0data\0\0"
    os.close(descriptor)


def test_fallocate(kernel):
    path = kernel.plain / "f"
    path.write_bytes(b"x" * 100_000)
    descriptor = os.open(path, os.O_RDWR)
    subprocess.run(["fallocate", "-p", "-o", "20000", "-l", "40000", path], check=True)
    assert os.pread(descriptor, 100_000, 0) == b"x" * 20_000 + bytes(40_000) + b"x" * 40_000
    os.posix_fallocate(descriptor, 0, 150_000)
    assert os.fstat(descriptor).st_size == 150_000
    with pytest.raises(OSError) as caught:
        os.posix_fallocate(descriptor, 0, 1 << 50)
    assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
    assert subprocess.run(["fallocate", "-c", "-o", "0", "-l", "4096", path], capture_output=True).returncode
    os.close(descriptor)


def test_mmap_shared(kernel):
    path = kernel.plain / "f"
    path.write_bytes(bytes(50_000))
    with path.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as view:
        view[30_000:30_005] = b"hello"
        view.flush()
        assert path.read_bytes()[30_000:30_005] == b"hello"
    kernel.again()
    assert path.read_bytes()[29_999:30_006] == b"\0hello\0"


def test_directories(mounted):
    root = mounted.plain
    (root / "d").mkdir(mode=0o750)
    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o750
    (root / "d" / "e").mkdir()
    (root / "d" / "e" / "f").write_text("x")
    with pytest.raises(OSError) as caught:
        (root / "d").rmdir()
    assert caught.value.errno == errno.ENOTEMPTY
    with pytest.raises(FileExistsError):
        (root / "d").mkdir()
    names = {f"file-{n:04d}" for n in range(300)}
    for name in names:
        (root / "d" / name).touch()
    assert set(os.listdir(root / "d")) == names | {"e"}
    mounted.again()
    assert set(os.listdir(root / "d")) == names | {"e"}
    subprocess.run(["rm", "-r", root / "d"], check=True)
    assert os.listdir(root) == []
    assert [p.name for p in mounted.cipher.iterdir()] == ["kmsfs.volume"]


def test_readdir_with_seek(kernel):
    import ctypes

    for number in range(500):
        (kernel.plain / f"n{number:03d}").touch()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
    libc.telldir.restype = ctypes.c_long
    libc.readdir.argtypes = libc.telldir.argtypes = libc.closedir.argtypes = libc.rewinddir.argtypes = [ctypes.c_void_p]
    libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
    handle = libc.opendir(os.fsencode(kernel.plain))

    def entry():
        found = libc.readdir(handle)
        return ctypes.string_at(found + 19) if found else None

    for _ in range(250):
        entry()
    mark = libc.telldir(handle)
    rest = []
    while (name := entry()) is not None:
        rest.append(name)
    libc.seekdir(handle, mark)
    assert [entry() for _ in rest] == rest
    libc.rewinddir(handle)
    everything = set()
    while (name := entry()) is not None:
        everything.add(name)
    assert len(everything) == 502
    libc.closedir(handle)


def test_names(mounted):
    names = ["a" * 255, "ü" * 127, "日本語", " leading", "trailing ", "-dash", "new\nline", ".hidden", "n" * 161, ".kd", "kmsfs.volume"]
    for name in names:
        (mounted.plain / name).write_text(name)
    assert sorted(os.listdir(mounted.plain)) == sorted(names)
    with pytest.raises(OSError) as caught:
        (mounted.plain / ("a" * 256)).touch()
    assert caught.value.errno == errno.ENAMETOOLONG
    mounted.again()
    for name in names:
        assert (mounted.plain / name).read_text() == name
        os.rename(mounted.plain / name, mounted.plain / ("x" * 200))
        assert (mounted.plain / ("x" * 200)).read_text() == name
        os.unlink(mounted.plain / ("x" * 200))
    assert [p.name for p in mounted.cipher.iterdir()] == ["kmsfs.volume"]


def test_rename(mounted):
    root = mounted.plain
    (root / "a").write_text("A")
    (root / "b").write_text("B")
    with (root / "b").open() as old:
        os.rename(root / "a", root / "b")
        assert old.read() == "B"
    assert (root / "b").read_text() == "A" and os.listdir(root) == ["b"]
    (root / "d").mkdir()
    (root / "d" / "sub").mkdir()
    (root / "d" / "sub" / "x").write_text("X")
    os.rename(root / "b", root / "d" / "moved")
    (root / "e").mkdir()
    os.rename(root / "d", root / "e")
    assert (root / "e" / "sub" / "x").read_text() == "X" and (root / "e" / "moved").read_text() == "A"
    (root / "full").mkdir()
    (root / "full" / "x").touch()
    with pytest.raises(OSError) as caught:
        os.rename(root / "e", root / "full")
    assert caught.value.errno in (errno.ENOTEMPTY, errno.EEXIST)
    with pytest.raises(OSError):
        os.rename(root / "full", root / "e" / "moved")
    with pytest.raises(OSError):
        os.rename(root / "e" / "moved", root / "full")
    with pytest.raises(OSError) as caught:
        os.rename(root / "e", root / "e" / "sub" / "loop")
    assert caught.value.errno == errno.EINVAL
    mounted.again()
    assert (root / "e" / "sub" / "x").read_text() == "X" and (root / "e" / "moved").read_text() == "A"


def test_rename_noreplace_and_exchange(kernel):
    root = kernel.plain
    (root / "a").write_text("A")
    (root / "d").mkdir()
    (root / "d" / "x").write_text("X")
    folder = os.open(root, os.O_RDONLY)
    with pytest.raises(FileExistsError):
        rename_with_flags(folder, "a", folder, "d", 1)
    rename_with_flags(folder, "a", folder, "d", 2)
    assert (root / "d").read_text() == "A" and (root / "a" / "x").read_text() == "X"
    rename_with_flags(folder, "d", folder, "fresh", 1)
    with pytest.raises(FileNotFoundError):
        rename_with_flags(folder, "fresh", folder, "none", 2)
    os.close(folder)
    kernel.again()
    assert (root / "fresh").read_text() == "A" and (root / "a" / "x").read_text() == "X"


def test_unlink_while_open(mounted):
    path = mounted.plain / "f"
    with path.open("w+b", buffering=0) as stream:
        stream.write(b"x" * 100_000)
        path.unlink()
        assert not path.exists()
        stream.seek(50_000)
        stream.write(b"y" * 100_000)
        stream.seek(0)
        assert stream.read() == b"x" * 50_000 + b"y" * 100_000
        assert os.fstat(stream.fileno()).st_size == 150_000
        path.write_text("another")
    assert path.read_text() == "another"


def test_hard_links(mounted):
    root = mounted.plain
    (root / "a").write_text("one")
    (root / "d").mkdir()
    os.link(root / "a", root / "d" / "b")
    assert (root / "a").stat().st_nlink == 2
    assert (root / "a").stat().st_ino == (root / "d" / "b").stat().st_ino
    assert (root / "d" / "b").stat().st_size == 3
    (root / "d" / "b").write_text("changed")
    assert (root / "a").read_text() == "changed"
    os.unlink(root / "a")
    mounted.again()
    assert (root / "d" / "b").read_text() == "changed"


def test_symlinks(mounted):
    target = "../some/where/" + "x" * 900
    os.symlink(target, mounted.plain / "l")
    assert os.readlink(mounted.plain / "l") == target
    assert os.lstat(mounted.plain / "l").st_size == len(target)
    assert target not in "".join(os.readlink(p) for p in mounted.cipher.iterdir() if p.is_symlink())
    mounted.again()
    assert os.readlink(mounted.plain / "l") == target


def test_modes_owners_and_times(mounted):
    path = mounted.plain / "f"
    path.write_text("x")
    os.chmod(path, 0o4751)
    assert stat.S_IMODE(path.stat().st_mode) == 0o4751
    if os.geteuid() == 0:
        os.chown(path, 123, 456)
        assert (path.stat().st_uid, path.stat().st_gid) == (123, 456)
    for atime, mtime in ((1_000_000_000_123_456_789, 1_234_567_890_987_654_321), (5, -3_000_000_001)):
        os.utime(path, ns=(atime, mtime))
        assert path.stat().st_mtime_ns == mtime and path.stat().st_atime_ns == atime
    mounted.again()
    assert path.stat().st_mtime_ns == -3_000_000_001
    before = time.time_ns()
    path.write_text("y")
    assert abs(path.stat().st_mtime_ns - before) < 5 * 10**9
    space = os.statvfs(mounted.plain)
    assert space.f_namemax == 255 and space.f_blocks > 0


@pytest.mark.root
def test_ordinary_modes_are_enforced_for_other_users(make_mount):
    mounted = make_mount("--allow-other").start()
    let_others_in(mounted.plain.parent)
    os.chmod(mounted.plain, 0o777)
    (mounted.plain / "secret").write_text("x")
    os.chmod(mounted.plain / "secret", 0o600)
    script = "\n".join((
        "import os, sys", "os.setgid(4321); os.setuid(4321); os.chdir(sys.argv[1])",
        "try: open('secret').read(); print('read')", "except PermissionError: print('denied')",
        "open('mine', 'w').write('y'); os.mkdir('dir'); print(os.stat('mine').st_uid, os.stat('dir').st_uid)",
        "os.chmod('mine', 0o400); print(open('mine').read())",
    ))  # fmt: skip
    done = subprocess.run(["python3", "-c", script, mounted.plain], capture_output=True, text=True)
    assert done.stdout.split() == ["denied", "4321", "4321", "y"], done.stderr


def test_fsync_and_fsyncdir(mounted):
    with (mounted.plain / "f").open("wb") as stream:
        stream.write(b"x" * 70_000)
        stream.flush()
        os.fsync(stream.fileno())
        os.fdatasync(stream.fileno())
    folder = os.open(mounted.plain, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def test_locks(kernel):
    path = kernel.plain / "f"
    path.write_text("x" * 100)
    one, two = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    fcntl.flock(one, fcntl.LOCK_EX)
    with pytest.raises(BlockingIOError):
        fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(one, fcntl.LOCK_UN)
    fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.lockf(one, fcntl.LOCK_EX, 10, 0)
    script = f"import fcntl,os; f=os.open({str(path)!r},os.O_RDWR); fcntl.lockf(f,fcntl.LOCK_EX|fcntl.LOCK_NB,10,5)"
    assert "BlockingIOError" in subprocess.run(["python3", "-c", script], capture_output=True, text=True).stderr
    fcntl.lockf(one, fcntl.LOCK_UN, 10, 0)
    assert subprocess.run(["python3", "-c", script]).returncode == 0
    os.close(one)
    os.close(two)


def test_many_threads_on_one_mount(kernel):
    failures = []

    def work(number):
        folder = kernel.plain / f"t{number}"
        folder.mkdir()
        for n in range(60):
            path = folder / f"f{n}"
            data = os.urandom(n * 100)
            path.write_bytes(data)
            os.rename(path, folder / f"g{n}")
            if (folder / f"g{n}").read_bytes() != data:
                failures.append(path)
            if n % 3:
                (folder / f"g{n}").unlink()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert all(len(os.listdir(kernel.plain / f"t{n}")) == 20 for n in range(6))


def test_opening_while_it_is_replaced_never_fails(kernel):
    path = kernel.plain / "config"
    path.write_text("0")
    stop = threading.Event()
    missing = []

    def reader():
        while not stop.is_set():
            try:
                path.read_text()
            except FileNotFoundError as error:
                missing.append(error)

    thread = threading.Thread(target=reader)
    thread.start()
    for number in range(300):
        (kernel.plain / "new").write_text(str(number))
        os.replace(kernel.plain / "new", path)
    stop.set()
    thread.join()
    assert not missing


def deleted_but_open(mounted) -> list[str]:
    """The backing files without a name that a mount's process holds."""
    folder = f"/proc/{mounted.process.pid}/fd"
    found = []
    for entry in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(f"{folder}/{entry}")
            if target.startswith(str(mounted.cipher)) and target.endswith("(deleted)"):
                found.append(target)
    return found


@pytest.mark.parametrize("rested", [False, True])
@pytest.mark.parametrize("replaced", [False, True])
def test_what_was_found_can_be_opened_after_its_name_is_gone(kernel, replaced, rested):
    """Between finding a file and opening it another may take its place: whoever found it has it, as on any file system."""
    path = kernel.plain / "config"
    path.write_text("old")
    if rested:
        os.sync()
        time.sleep(0.5)
    found = os.open(path, os.O_PATH)
    again = f"/proc/self/fd/{found}"
    if replaced:
        (kernel.plain / "new").write_text("new")
        os.replace(kernel.plain / "new", path)
    else:
        path.unlink()
    for _ in range(2):
        with open(again, "r+") as file:
            assert file.read() == "old" and os.fstat(file.fileno()).st_nlink == 0
    with open(again, "w") as file:
        file.write("x" * 10_000)
    assert Path(again).read_text() == "x" * 10_000 and os.stat(again).st_size == 10_000
    os.utime(again, (1, 1))
    os.chmod(again, 0o640)
    assert os.stat(again).st_mtime == 1 and stat.S_IMODE(os.stat(again).st_mode) == 0o640
    assert len(deleted_but_open(kernel)) == 1
    os.close(found)
    soon([], lambda: deleted_but_open(kernel))
    assert path.exists() == replaced and (not replaced or path.read_text() == "new")


def test_changes_behind_the_mount_are_seen(kernel):
    """A restore or sync tool works on the cipher directory: the kernel's caches must not hide it."""
    (kernel.plain / "a").write_text("one")
    (kernel.plain / "a").read_text()
    kernel.stop()
    backup = {p.name: p.read_bytes() for p in kernel.cipher.iterdir() if p.name != "kmsfs.volume"}
    kernel.start()
    assert (kernel.plain / "a").read_text() == "one"
    time.sleep(1)
    [name] = backup
    os.unlink(kernel.cipher / name)
    deadline = time.monotonic() + 10
    while (kernel.plain / "a").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not (kernel.plain / "a").exists()
    time.sleep(1)
    (kernel.cipher / name).write_bytes(backup[name])
    # Long before the kernel forgets by itself that the name was absent.
    soon(True, (kernel.plain / "a").exists)
    assert (kernel.plain / "a").read_text() == "one"


@pytest.mark.root
def test_what_is_mounted_within_stays_when_somebody_touches_what_is_below(kernel):
    """What changed behind the mount is looked at again, and nothing is taken away that is as it was."""
    (kernel.plain / "folder").mkdir()
    (kernel.plain / "name").touch()
    (kernel.plain / "goes").touch()
    (kernel.plain / "goes").stat()
    subprocess.run(["mount", "-t", "tmpfs", "none", kernel.plain / "folder"], check=True)
    subprocess.run(["mount", "--bind", "/etc/passwd", kernel.plain / "name"], check=True)
    try:
        time.sleep(2.5)
        goes = (kernel.plain / "goes").stat().st_ino
        [gone] = [path for path in kernel.cipher.iterdir() if path.lstat().st_ino == goes]
        for path in kernel.cipher.iterdir():
            if path.name[0] == "n" and path.is_dir():
                path.rename(kernel.cipher / "away").rename(path)
            elif path.name[0] == "n":
                path.open("r+b").close()
        gone.unlink()
        soon(False, (kernel.plain / "goes").exists)
        assert ask_restart(find_mounted(kernel.plain))["version"]
        time.sleep(1.5)
        os.listdir(kernel.plain)
        assert os.path.ismount(kernel.plain / "folder")
        assert (kernel.plain / "name").read_text() == Path("/etc/passwd").read_text()
    finally:
        for name in ("name", "folder"):
            subprocess.run(["umount", kernel.plain / name], check=False)


def test_the_inode_table_does_not_grow(kernel):
    for number in range(200):
        (kernel.plain / f"f{number}").write_text("x")
    for number in range(200):
        (kernel.plain / f"f{number}").unlink()
    # What the kernel forgot, the mount forgot: its memory maps stay where they are.
    pid = kernel.process.pid
    before = len(os.listdir(f"/proc/{pid}/fd"))
    for _ in range(5):
        for number in range(200):
            (kernel.plain / f"f{number}").write_text("x")
        for number in range(200):
            (kernel.plain / f"f{number}").unlink()
    # Descriptors of removed files are closed when the mount has nothing better to do.
    deadline = time.monotonic() + 10
    while len(os.listdir(f"/proc/{pid}/fd")) > before + 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(os.listdir(f"/proc/{pid}/fd")) <= before + 2


def test_fifo_and_socket_nodes(kernel):
    os.mkfifo(kernel.plain / "pipe")
    assert stat.S_ISFIFO((kernel.plain / "pipe").stat().st_mode)
    Path(kernel.plain / "pipe").unlink()


@pytest.mark.parametrize("way", ["unlink", "replace"])
def test_what_is_written_after_a_name_went_is_under_the_names_that_are_left(make_mount, way):
    """A hard link that this mount has not looked up yet keeps the file, and all that is written to it."""
    mount = make_mount().start()
    (mount.plain / "a").write_text("old")
    os.link(mount.plain / "a", mount.plain / "b")
    (mount.plain / "c").write_text("other")
    mount.again()
    with open(mount.plain / "a", "r+") as stream:
        if way == "unlink":
            os.unlink(mount.plain / "a")
        else:
            os.rename(mount.plain / "c", mount.plain / "a")
        stream.write("new content")
    assert (mount.plain / "b").read_text() == "new content"
    mount.again()
    assert (mount.plain / "b").read_text() == "new content" and os.stat(mount.plain / "b").st_nlink == 1
    assert os.path.exists(mount.plain / "a") == (way == "replace")
    # Of the file that has no name left nothing stays.
    with open(mount.plain / "b", "r+") as stream:
        os.unlink(mount.plain / "b")
        stream.write("gone")
    mount.stop()
    assert len([path for path in mount.cipher.iterdir() if path.name[0] == "n"]) == 1
