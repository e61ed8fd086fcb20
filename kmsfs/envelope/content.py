"""Reading and writing a KF1 file's content: byte ranges to chunks, runs of chunks in one read, write and seal."""

import errno

from kmsfs.envelope.allocator import FIRST_BLOCK
from kmsfs.envelope.filekeys import FileKeys, epoch_of
from kmsfs.envelope.kf1file import Kf1File
from kmsfs.envelope.maptree import ROOT_BODY_BYTES, MapTree
from kmsfs.envelope.recovery import open_chunk
from kmsfs.errors import AuthenticationFailed, CorruptFile, IntegrityReason, InvariantBroken, StorageError
from kmsfs.formats.fileheader import (
    ENTRY,
    HOLE,
    INLINE_MAX_BYTES,
    MAX_HEIGHT,
    chunk_aad,
    pack_location,
    split_location,
)
from kmsfs.formats.filelayout import blocks_for, chunk_count, chunk_runs, max_file_bytes
from kmsfs.quantity import BLOCK_BYTES

_TAG_SPARE = 16
_MOVE_BYTES = 1 << 20
_RECLAIM_BLOCKS = 256
"""1 MiB: fewer idle blocks than this are not worth a walk of the map."""


def _tree(file: Kf1File) -> MapTree:
    if file.tree is None:
        raise InvariantBroken("a file with chunks has no map")
    return file.tree


# --- reading ------------------------------------------------------------------------------------------------


def read(file: Kf1File, length: int, offset: int) -> bytes | memoryview:
    """Return up to `length` bytes at `offset`; fewer at the end of the file, zeros in holes.

    The result may be a view of the volume's scratch buffer: use it before the next call.

    Raises:
        CorruptFile: naming the chunk, if bytes are not what was written. Nothing unverified is returned.
        KmsfsError: as the provider's Decrypt.
    """
    file.require_sound()
    length = min(length, file.size - offset)
    if length <= 0:
        return b""
    keys = file.unlock()
    if file.inline is not None:
        piece = bytes(file.inline[offset : offset + length])
        return piece + bytes(length - len(piece))
    log2 = file.clear.chunk_log2
    first, last = chunk_runs(offset, length, log2)
    start = first << log2
    total = (last - first) << log2
    out = _scratch(file, 2 * total + _TAG_SPARE)
    plain = out[:total]
    _read_chunks(file, keys, first, last, plain, out[total:])
    return plain[offset - start : offset - start + length]


def _scratch(file: Kf1File, needed: int) -> memoryview:
    if len(file.tools.scratch) < needed:
        file.tools.scratch = bytearray(needed)
    return memoryview(file.tools.scratch)[:needed]


def _read_chunks(
    file: Kf1File, keys: FileKeys, first: int, last: int, plain: memoryview, spare: memoryview
) -> None:
    """Open chunks first…last-1 into `plain`, gathering neighbours on disk into one read each."""
    tree, log2 = _tree(file), file.clear.chunk_log2
    chunk_bytes = 1 << log2
    index = first
    while index < last:
        entry = tree.entry(index, file.file, keys.map)
        at = (index - first) << log2
        if entry == HOLE:
            plain[at : at + chunk_bytes] = bytes(chunk_bytes)
            index += 1
            continue
        run = _run_from(tree, file, keys, index, last, entry)
        _open_run(file, keys, index, run, plain[at : at + (len(run) << log2)], spare)
        index += len(run)


def _run_from(
    tree: MapTree, file: Kf1File, keys: FileKeys, index: int, last: int, entry: bytes
) -> list[tuple[int, int, int, bytes]]:
    """Return (block, plain bytes, epoch, pin) of chunks that lie one after the other on disk."""
    chunk_bytes = 1 << file.clear.chunk_log2
    run: list[tuple[int, int, int, bytes]] = []
    while entry != HOLE:
        word, epoch, pin = ENTRY.unpack(entry)
        block, plain_bytes = split_location(word)
        if not 0 < plain_bytes <= chunk_bytes:
            raise CorruptFile("chunk entry has an impossible length", IntegrityReason.MAP, chunk_index=index)
        if run and (
            block != run[-1][0] + chunk_bytes // BLOCK_BYTES
            or epoch != run[0][2]
            or run[-1][1] != chunk_bytes
        ):
            break
        run.append((block, plain_bytes, epoch, pin))
        index += 1
        if index >= last:
            break
        entry = tree.entry(index, file.file, keys.map)
    return run


def _open_run(
    file: Kf1File,
    keys: FileKeys,
    first: int,
    run: list[tuple[int, int, int, bytes]],
    plain: memoryview,
    spare: memoryview,
) -> None:
    chunk_bytes = 1 << file.clear.chunk_log2
    total = (len(run) - 1) * chunk_bytes + run[-1][1]
    cipher = spare[: total + _TAG_SPARE]
    got = file.file.read_into(cipher[:total], run[0][0] * BLOCK_BYTES)
    if got != total:
        broken = first + got // chunk_bytes
        raise CorruptFile(f"chunk {broken} is cut off", IntegrityReason.LENGTH, chunk_index=broken)
    epoch = run[0][2]
    aads = [chunk_aad(file.clear.file_id, first + i, item[1], epoch) for i, item in enumerate(run)]
    try:
        keys.chunk(epoch).open_run([item[3] for item in run], cipher, chunk_bytes, aads, plain[:total])
    except AuthenticationFailed as error:
        broken = first + int(error.evidence)
        raise CorruptFile(
            f"chunk {broken} does not authenticate", IntegrityReason.CHUNK_TAG, chunk_index=broken
        ) from error
    plain[total:] = bytes(len(plain) - total)


def _chunk_plain(file: Kf1File, keys: FileKeys, index: int) -> bytes:
    """Return a chunk's stored plaintext, without the zeros that follow it."""
    entry = _tree(file).entry(index, file.file, keys.map)
    if entry == HOLE:
        return b""
    return open_chunk(index, entry, file.clear.file_id, 1 << file.clear.chunk_log2, keys, file.file)


# --- writing ------------------------------------------------------------------------------------------------


def write(file: Kf1File, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of `data`; it becomes part of the next commit.

    Raises:
        StorageError: if the store refuses (ENOSPC, EFBIG); what was there before is still there.
        CorruptFile: if a partly overwritten chunk is damaged; it is left as it is.
        KmsfsError: as the provider's Decrypt.
    """
    file.require_sound()
    if not len(data):
        return
    end = offset + len(data)
    keys = file.unlock()
    if end > max_file_bytes(file.clear.chunk_log2, MAX_HEIGHT):
        raise StorageError("file would exceed the format's largest size", os_errno=errno.EFBIG)
    _reclaim(file, keys)
    if file.inline is not None and end <= INLINE_MAX_BYTES:
        _write_inline(file, data, offset)
    else:
        _need_chunks(file, keys, end)
        view = data if isinstance(data, memoryview) else memoryview(data)
        _write_chunks(file, keys, view, offset)
    file.content_dirty = True
    file.attributes.size = max(file.attributes.size, end)


def _reclaim(file: Kf1File, keys: FileKeys) -> None:
    """Find blocks that an earlier opening freed: before the first change of this one, if there are enough to matter.

    Only where the last commit is durable and nothing changed since: then no header that recovery could choose
    names any other block than this map does.
    """
    if file.reclaimed:
        return
    file.reclaimed = True
    if file.dirty or file.provisional or file.durable_slot is None:
        return
    allocator = file.allocator
    idle = allocator.high_water - FIRST_BLOCK - allocator.live
    if idle <= max(_RECLAIM_BLOCKS, allocator.high_water // 8):
        return
    used = bytearray(allocator.high_water)
    used[:FIRST_BLOCK] = b"\1" * FIRST_BLOCK
    if file.tree is not None:
        for block, blocks in file.tree.used_extents(file.file, keys.map):
            used[block : block + blocks] = b"\1" * blocks
    start = used.find(0)
    while start >= 0:
        end = used.find(1, start)
        end = len(used) if end < 0 else end
        allocator.adopt_free(start, end - start)
        start = used.find(0, end)


def _write_inline(file: Kf1File, data: bytes | bytearray | memoryview, offset: int) -> None:
    inline = file.inline
    if inline is None:
        raise InvariantBroken("not an inline file")
    if len(inline) < offset:
        inline.extend(bytes(offset - len(inline)))
    inline[offset : offset + len(data)] = data


def _need_chunks(file: Kf1File, keys: FileKeys, size: int) -> None:
    """Turn an inline file into one with chunks, and grow the map for `size` bytes."""
    if file.inline is not None:
        if file.last_slot is None:
            # A new file gets its first header before its first chunk: killed in between, it is short, not damaged.
            file.commit()
        inline, file.inline = file.inline, None
        file.tree = MapTree(file.identity, 0, bytes(ROOT_BODY_BYTES))
        if inline:
            try:
                _store(file, keys, 0, memoryview(bytes(inline)))
            except BaseException:
                file.inline, file.tree = inline, None
                raise
        file.content_dirty = True
    tree = _tree(file)
    chunks = chunk_count(size, file.clear.chunk_log2)
    while tree.capacity() < chunks:
        tree.grow()
        file.content_dirty = True


def _write_chunks(file: Kf1File, keys: FileKeys, data: memoryview, offset: int) -> None:
    log2 = file.clear.chunk_log2
    chunk_bytes = 1 << log2
    end = offset + len(data)
    first, last = chunk_runs(offset, len(data), log2)
    start = first << log2
    lead = offset - start
    head = _chunk_plain(file, keys, first) if lead else b""
    tail_at = (last - 1) << log2
    tail = b""
    if end - tail_at < chunk_bytes and end < file.size:
        tail = head if last - 1 == first and lead else _chunk_plain(file, keys, last - 1)
    keep_tail = tail[end - tail_at :]
    if not lead and not keep_tail:
        _store(file, keys, first, data)
        return
    merged = bytearray(lead + len(data) + len(keep_tail))
    merged[: min(lead, len(head))] = head[:lead]
    merged[lead : lead + len(data)] = data
    merged[lead + len(data) :] = keep_tail
    _store(file, keys, first, memoryview(merged))


def _store(file: Kf1File, keys: FileKeys, first: int, plain: memoryview) -> None:
    """Seal whole chunks from `first` on into free blocks and pin them; the last one may be short."""
    chunk_bytes = 1 << file.clear.chunk_log2
    count = (len(plain) + chunk_bytes - 1) // chunk_bytes
    epoch = epoch_of(file.attributes.chunk_writes)
    lengths = [min(chunk_bytes, len(plain) - i * chunk_bytes) for i in range(count)]
    aads = [chunk_aad(file.clear.file_id, first + i, length, epoch) for i, length in enumerate(lengths)]
    cipher = _scratch(file, len(plain) + _TAG_SPARE)
    pins = keys.chunk(epoch).seal_run(file.tools.rng, plain, chunk_bytes, aads, cipher)
    file.attributes.chunk_writes += count
    blocks = _place(file, cipher[: len(plain)], lengths)
    generation = file.clear.generation + 1
    entries = [
        ENTRY.pack(pack_location(block, length), epoch, pin)
        for block, length, pin in zip(blocks, lengths, pins, strict=True)
    ]
    _release(file, _tree(file).swap(first, b"".join(entries), file.file, keys.map), generation)


def _place(file: Kf1File, cipher: memoryview, lengths: list[int]) -> list[int]:
    """Write ciphertext into free blocks, contiguous where there is room; return each chunk's first block."""
    chunk_bytes = 1 << file.clear.chunk_log2
    allocator = file.allocator
    generation = file.clear.generation + 1
    sizes = [blocks_for(length) for length in lengths]
    start = allocator.allocate(sum(sizes))
    try:
        file.file.write(cipher, start * BLOCK_BYTES)
    except BaseException:
        allocator.release(start, sum(sizes), generation)
        raise
    return [start + i * (chunk_bytes // BLOCK_BYTES) for i in range(len(sizes))]


def _release(file: Kf1File, entries: bytes, generation: int) -> None:
    """Free the blocks of chunks by their entries, those that lie one after the other at once."""
    start = end = 0
    for word, _epoch, _pin in ENTRY.iter_unpack(entries):
        block, plain_bytes = split_location(word)
        if block != end:
            if end > start:
                file.allocator.release(start, end - start, generation)
            start = end = block
        end += blocks_for(plain_bytes)
    if end > start:
        file.allocator.release(start, end - start, generation)


def write_under(file: Kf1File, keys: FileKeys, wrapped: bytes) -> None:
    """Write all content anew under another data key, which the next commit names; holes stay holes.

    Until that one is durable the commit before stands, under the key that it names. If this fails, the file is to be closed without
    a commit.

    Raises:
        StorageError: if there is no room beside what is there.
        CorruptFile: if a chunk is damaged.
        KmsfsError: as the provider's Decrypt.
    """
    file.require_sound()
    old = file.unlock()
    _reclaim(file, old)
    if file.tree is not None:
        file.tree = _tree_under(file, file.tree, old, keys)
    file.file_keys = keys
    file.clear.wrapped_key, file.clear.commitment = wrapped, keys.commitment()
    file.content_dirty = True


def _tree_under(file: Kf1File, before: MapTree, old: FileKeys, keys: FileKeys) -> MapTree:
    log2 = file.clear.chunk_log2
    most = max(1, _MOVE_BYTES >> log2)
    plain, spare = memoryview(bytearray(most << log2)), memoryview(bytearray((most << log2) + _TAG_SPARE))
    file.tree = after = MapTree(file.identity, before.height, bytes(ROOT_BODY_BYTES))
    index, end = 0, chunk_count(file.size, log2)
    while index < end:
        entry = before.entry(index, file.file, old.map)
        if entry == HOLE:
            index = before.absent_until(index, file.file, old.map)
            continue
        run = _run_from(before, file, old, index, min(end, index + most), entry)
        _open_run(file, old, index, run, plain[: len(run) << log2], spare)
        _store(file, keys, index, plain[: (len(run) - 1 << log2) + run[-1][1]])
        index += len(run)
    generation = file.clear.generation + 1
    for block, blocks in before.used_extents(file.file, old.map):
        file.allocator.release(block, blocks, generation)
    return after


def give_back_free(file: Kf1File) -> None:
    """Let the backing store have the space of blocks that nothing refers to."""
    for start, blocks in file.allocator.free_extents():
        file.file.punch(start * BLOCK_BYTES, blocks * BLOCK_BYTES)


# --- sizes and holes ----------------------------------------------------------------------------------------


def truncate(file: Kf1File, size: int) -> None:
    """Set the size; growth is a hole.

    Raises:
        StorageError: with EFBIG, if the format cannot hold the size, or as `write`.
        KmsfsError: as `write`.
    """
    file.require_sound()
    if size == file.size:
        return
    keys = file.unlock()
    _reclaim(file, keys)
    if size > max_file_bytes(file.clear.chunk_log2, MAX_HEIGHT):
        raise StorageError("file would exceed the format's largest size", os_errno=errno.EFBIG)
    if size < file.size:
        _shrink(file, keys, size)
    elif file.inline is None or size > INLINE_MAX_BYTES:
        _need_chunks(file, keys, size)
    file.attributes.size = size
    file.content_dirty = True


def _shrink(file: Kf1File, keys: FileKeys, size: int) -> None:
    if file.inline is not None:
        del file.inline[size:]
        return
    if size <= INLINE_MAX_BYTES:
        kept = bytearray(_chunk_plain(file, keys, 0)[:size]) if size else bytearray()
        _drop_chunks(file, keys, 0)
        file.inline, file.tree = kept, None
        return
    log2 = file.clear.chunk_log2
    edge = size & ((1 << log2) - 1)
    if edge:
        plain = _chunk_plain(file, keys, size >> log2)
        if len(plain) > edge:
            _store(file, keys, size >> log2, memoryview(plain)[:edge])
    _drop_chunks(file, keys, chunk_count(size, log2))


def _drop_chunks(file: Kf1File, keys: FileKeys, first: int, last: int | None = None) -> None:
    tree = _tree(file)
    generation = file.clear.generation + 1
    end = chunk_count(file.size, file.clear.chunk_log2) if last is None else last
    index = first
    while index < end:
        if tree.entry(index, file.file, keys.map) == HOLE:
            index = tree.absent_until(index, file.file, keys.map)
            continue
        after = min(end, tree.beside(index))
        _release(file, tree.swap(index, HOLE * (after - index), file.file, keys.map), generation)
        index = after


def punch(file: Kf1File, offset: int, length: int) -> None:
    """Make a range inside the file read as zeros, giving whole chunks' space back.

    Raises:
        StorageError, CorruptFile, KmsfsError: as `write`.
    """
    file.require_sound()
    end = min(offset + length, file.size)
    if offset >= end:
        return
    keys = file.unlock()
    _reclaim(file, keys)
    if file.inline is not None:
        stored = len(file.inline)
        file.inline[offset : min(end, stored)] = bytes(max(0, min(end, stored) - offset))
        file.content_dirty = True
        return
    log2 = file.clear.chunk_log2
    first_whole = (offset + (1 << log2) - 1) >> log2
    last_whole = chunk_count(end, log2) if end == file.size else end >> log2
    if first_whole >= last_whole:
        _zero(file, keys, offset, end)
        return
    _zero(file, keys, offset, first_whole << log2)
    _zero(file, keys, last_whole << log2, end)
    _drop_chunks(file, keys, first_whole, last_whole)
    file.content_dirty = True


def _zero(file: Kf1File, keys: FileKeys, start: int, end: int) -> None:
    """Overwrite a range with zeros, chunk by chunk, skipping holes."""
    log2 = file.clear.chunk_log2
    while start < end:
        index = start >> log2
        stop = min(end, (index + 1) << log2)
        plain = bytearray(_chunk_plain(file, keys, index))
        at, to = start - (index << log2), min(stop - (index << log2), len(plain))
        if at < to:
            plain[at:to] = bytes(to - at)
            _store(file, keys, index, memoryview(plain))
            file.content_dirty = True
        start = stop


def seek(file: Kf1File, offset: int, *, data: bool) -> int:
    """Return the next offset at or after `offset` that is data, or a hole; chunks are the granularity.

    Raises:
        StorageError: with ENXIO, past the end, or where no data follows.
    """
    if offset >= file.size:
        raise StorageError("offset is past the end of the file", os_errno=errno.ENXIO)
    keys = file.unlock()
    if file.inline is not None:
        return offset if data else file.size
    tree, log2 = _tree(file), file.clear.chunk_log2
    end = chunk_count(file.size, log2)
    index = offset >> log2
    while index < end:
        hole = tree.entry(index, file.file, keys.map) == HOLE
        if hole != data:
            return max(offset, index << log2)
        index = tree.absent_until(index, file.file, keys.map) if hole else index + 1
    if data:
        raise StorageError("no data follows", os_errno=errno.ENXIO)
    return file.size
