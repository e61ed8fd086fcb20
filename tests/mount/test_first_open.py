"""The pages of a small file come with its first open: nothing is asked for again, and nothing wrong is ever in them."""

import json
import mmap
import os
import time

import pytest
from kmsfs.mount.kernel.quirks import zeroes_tails
from support import countedmount
from support.waiting import soon

pytestmark = [pytest.mark.fuse, pytest.mark.root]
SIZES = (0, 1, 100, 2960, 2961, 4095, 4096, 4097, 16_384, 16_385, 50_000, 65_535, 65_536)
BIGGER = (65_537, 200_000)


@pytest.fixture
def counted(make_mount, tmp_path):
    """A mount, and what tells how many requests of a kind it has served since the last time that was asked."""
    told, before = tmp_path / "requests", {}
    mount = make_mount()
    mount.program = (countedmount.__file__, str(told))
    mount.start()

    def requests(kind):
        time.sleep(0.1)
        counts = json.loads(told.read_text())
        found = counts.get(kind, 0) - before.get(kind, 0)
        before[kind] = counts.get(kind, 0)
        return found

    def again():
        mount.again()
        before.clear()

    return mount, requests, again


def content(size):
    return bytes((size * 31 + place * 7) % 251 for place in range(size))


def test_small_files_are_read_without_a_request(counted):
    mount, requests, again = counted
    for size in (*SIZES, *BIGGER):
        (mount.plain / f"f{size}").write_bytes(content(size))
    again()
    for size in SIZES:
        assert (mount.plain / f"f{size}").read_bytes() == content(size)
    assert requests("READ") == 0
    for size in BIGGER:
        assert (mount.plain / f"f{size}").read_bytes() == content(size)
    assert requests("READ") >= len(BIGGER)
    # The second time nothing is stored again, and nothing asked for.
    for size in SIZES:
        assert (mount.plain / f"f{size}").read_bytes() == content(size)
    assert requests("READ") == 0


def test_holes_maps_and_several_descriptors(counted):
    mount, requests, again = counted
    path = mount.plain / "holes"
    with path.open("wb") as stream:
        stream.truncate(60_000)
        os.pwrite(stream.fileno(), b"middle", 30_000)
    wanted = bytes(30_000) + b"middle" + bytes(29_994)
    again()
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:] == wanted
        assert requests("READ") == 0
        with path.open("r+b", buffering=0) as writer:
            writer.seek(10)
            writer.write(b"new")
            writer.truncate(40_000)
        changed = bytearray(wanted[:40_000])
        changed[10:13] = b"new"
        assert stream.read() == changed
        assert mapped[10:13] == b"new"
    again()
    assert path.read_bytes() == changed


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_DIRECT, os.O_RDWR | os.O_TRUNC])
def test_other_opens_bring_nothing(counted, flags):
    mount, requests, again = counted
    path = mount.plain / "f"
    path.write_bytes(content(5000))
    again()
    # The kernel may forget what nobody holds, and then the next open would be the first again.
    held = os.open(path, os.O_PATH)
    descriptor = os.open(path, flags)
    assert requests("READ") == 0
    left = b"" if flags & os.O_TRUNC else content(5000)
    os.close(descriptor)
    assert path.read_bytes() == left
    assert requests("READ") == (0 if flags & os.O_TRUNC else 1)
    os.close(held)


def test_damage_is_told_to_who_reads(counted):
    mount, _, again = counted
    (mount.plain / "big").write_bytes(content(50_000))
    (mount.plain / "good").write_bytes(content(500))
    mount.stop()
    [file] = [path for path in mount.cipher.iterdir() if path.is_file() and path.stat().st_size > 50_000]
    data = bytearray(file.read_bytes())
    data[20_000] ^= 1
    file.write_bytes(data)
    mount.start()
    with (mount.plain / "big").open("rb") as stream, pytest.raises(OSError, match="Input/output"):
        stream.read()
    assert (mount.plain / "good").read_bytes() == content(500)


def test_revoked_while_it_was_open(counted, daemon):
    mount, _, again = counted
    path = mount.plain / "f"
    path.write_bytes(content(20_000))
    again()
    session = daemon.session()
    key = session.call("DescribeKey", {"KeyId": "alias/kmsfs/default"})["KeyMetadata"]["KeyId"]
    with path.open("rb", buffering=0) as stream:
        assert stream.read(100) == content(20_000)[:100]
        session.call("DisableKey", {"KeyId": key})
        try:
            soon(True, lambda: refused(stream), 10)
        finally:
            session.call("EnableKey", {"KeyId": key})
        soon(content(20_000)[:100], lambda: os.pread(stream.fileno(), 100, 0), 10)


def refused(stream):
    try:
        os.pread(stream.fileno(), 100, 0)
    except OSError:
        return True
    return False


def test_behind_the_end_there_are_zeros(counted):
    """In the last page, mapped; and where the file grows past its end."""
    mount, requests, again = counted
    for size in (1, 100, 2960, 5000, 40_001):
        (mount.plain / f"f{size}").write_bytes(content(size))
    again()
    for size in (1, 100, 2960, 5000, 40_001):
        path = mount.plain / f"f{size}"
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[:] == content(size)
        with path.open("r+b", buffering=0) as stream:
            stream.seek(size + 700)
            stream.write(b"end")
        assert path.read_bytes() == content(size) + bytes(700) + b"end"
    assert requests("READ") == 0
    again()
    assert (mount.plain / "f100").read_bytes() == content(100) + bytes(700) + b"end"


def kernel(release, version="#1 SMP"):
    return ("Linux", "host", release, version, "x86_64")


@pytest.mark.parametrize(
    "system, zeroed",
    [
        (kernel("6.18.44-fc"), True), (kernel("6.11.0"), True), (kernel("7.0"), True), (kernel("6.10.7-generic"), True), (kernel("6.10.6"), False),
        (kernel("6.8.0-45-generic"), False), (kernel("6.1.107"), True), (kernel("6.1.106"), False), (kernel("5.14.0-503.el9"), False),
        (kernel("6.1.0-28-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.119-1 (2024-11-22)"), True),
        (kernel("6.1.0-23-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.99-1 (2024-07-15)"), False), (kernel("rubbish"), False),
    ],
)  # fmt: skip
def test_kernels_that_leave_the_rest_of_a_page(system, zeroed):
    assert zeroes_tails(system) == zeroed
