"""Hypothesis: files against a plain bytearray, codecs that invert, parsers that never crash."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.authz.wildcard import matches
from kmsfs import errors
from kmsfs.api.registry import OPERATIONS
from kmsfs.api.validation import decode
from kmsfs.backing.faulty import FaultyFile
from kmsfs.backing.memory import MemoryFile
from kmsfs.envelope import content
from kmsfs.envelope.allocator import Allocator
from kmsfs.envelope.kf1file import Kf1File
from kmsfs.formats.blob import parse_blob
from kmsfs.formats.context import canonical, parse_canonical
from kmsfs.formats.fileheader import parse_clear
from kmsfs.formats.filelayout import chunk_runs, map_height, max_file_bytes
from kmsfs.formats.frame import decode_request
from kmsfs.formats.message import parse_message
from kmsfs.formats.packing import pack, unpack
from kmsfs.formats.volume import parse_config
from support.fakes import make_tools, volume_keys

texts = st.text(max_size=20)
contexts = st.dictionaries(texts, texts, max_size=6)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 200_000), st.integers(1, 70_000)),
        st.tuples(st.just("truncate"), st.integers(0, 300_000), st.just(0)),
        st.tuples(st.just("punch"), st.integers(0, 200_000), st.integers(1, 100_000)),
        st.tuples(st.just("commit"), st.just(0), st.just(0)),
        st.tuples(st.just("sync"), st.just(0), st.just(0)),
        st.tuples(st.just("reopen"), st.just(0), st.just(0)),
    ),
    max_size=14,
)


def apply(model, step):
    kind, offset, length = step
    if kind == "write":
        data = bytes((offset + i) % 251 for i in range(min(length, 997))) * (length // 997 + 1)
        data = data[:length]
        if len(model) < offset:
            model.extend(bytes(offset - len(model)))
        model[offset : offset + length] = data
        return data
    if kind == "truncate":
        del model[offset:]
        model.extend(bytes(offset - len(model)))
    if kind == "punch":
        end = min(len(model), offset + length)
        if offset < end:
            model[offset:end] = bytes(end - offset)
    return None


def act(file, step, data):
    kind, offset, length = step
    if kind == "write":
        content.write(file, data, offset)
    elif kind == "truncate":
        content.truncate(file, offset)
    elif kind == "punch":
        content.punch(file, offset, length)
    elif kind in ("commit", "sync", "reopen"):
        file.commit()
        if kind != "commit":
            file.make_durable()


@given(steps, st.sampled_from((12, 14)))
def test_a_file_is_its_model(sequence, chunk_log2):
    tools = make_tools(chunk_log2=chunk_log2)
    disk = MemoryFile()
    file = Kf1File.create(tools, disk, tools.provider.fresh())
    model = bytearray()
    for step in sequence:
        act(file, step, apply(model, step))
        if step[0] == "reopen":
            file = Kf1File.open(tools, disk)
        assert bytes(content.read(file, len(model) + 10, 0)) == bytes(model)
    file.commit()
    again = Kf1File.open(tools, disk)
    assert bytes(content.read(again, len(model) + 10, 0)) == bytes(model)
    check_seek(again, model)


def check_seek(file, model):
    """Data lies wherever the model has a byte that is not zero, and SEEK_HOLE/SEEK_DATA make progress."""
    position = 0
    covered = bytearray(len(model))
    while position < len(model):
        try:
            start = content.seek(file, position, data=True)
        except errors.StorageError as error:
            assert error.os_errno == errno.ENXIO
            break
        end = content.seek(file, start, data=False)
        assert end > start >= position
        covered[start:end] = b"\1" * (min(end, len(model)) - start)
        position = end
    assert all(covered[i] for i in range(len(model)) if model[i])


@given(steps, st.integers(0, 12), st.integers(0, 3))
def test_a_failing_disk_never_gives_wrong_plaintext(sequence, bad_write, bad_barrier):
    tools = make_tools()
    disk = FaultyFile(MemoryFile(), fail_write=bad_write, fail_barrier=bad_barrier)
    file = Kf1File.create(tools, disk, tools.provider.fresh())
    model = bytearray()
    for step in sequence:
        before = bytearray(model)
        data = apply(model, step)
        try:
            act(file, step, data)
        except errors.StorageError:
            if file.failed:
                return
            if step[0] not in ("commit", "sync", "reopen"):
                found = bytes(content.read(file, 1 << 20, 0))
                assert len(found) in (len(before), len(model))
                model = bytearray(found)
                assert_from(before, model, found)
    assert bytes(content.read(file, len(model) + 10, 0)) == bytes(model)


def assert_from(before, after, found):
    for position, byte in enumerate(found):
        allowed = {side[position] if position < len(side) else 0 for side in (before, after)}
        assert byte in allowed


@given(contexts)
def test_contexts_invert(context):
    assert parse_canonical(canonical(context)) == context


@given(contexts, contexts)
def test_contexts_are_injective(left, right):
    assert (canonical(left) == canonical(right)) == (left == right)


@given(st.recursive(st.none() | st.booleans() | st.integers(-(2**60), 2**60) | texts | st.binary(max_size=30),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12))
def test_packing_inverts(value):
    assert unpack(pack(value)) == value


@pytest.mark.parametrize("parse", [unpack, decode_request, parse_blob, parse_message, parse_config, parse_canonical, parse_clear])
def test_parsers_answer_rubbish_with_an_error(parse):
    @given(st.binary(max_size=300))
    def run(data):
        try:
            parse(data)
        except errors.KmsfsError:
            pass

    run()


@given(st.sampled_from(sorted(OPERATIONS)), st.dictionaries(
    st.sampled_from(["KeyId", "Plaintext", "Name", "Value", "Names", "Operations", "Limit", "Policy", "X"]),
    st.none() | st.integers() | texts | st.binary(max_size=9) | st.lists(texts, max_size=2) | contexts, max_size=4))
def test_requests_decode_or_are_refused(name, parameters):
    try:
        decode(OPERATIONS[name], parameters)
    except errors.InvalidRequest as error:
        assert error.detail
        value = parameters.get("Plaintext")
        if isinstance(value, str) and len(value) > 3:
            assert value not in error.detail


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 24), st.integers(12, 20))
def test_chunk_runs_cover_the_range(offset, length, log2):
    first, last = chunk_runs(offset, length, log2)
    if length:
        assert first << log2 <= offset and offset + length <= last << log2
        assert ((last - first) << log2) - length < 2 << log2
    else:
        assert first == last


@given(st.integers(0, 1 << 36))
def test_the_map_is_high_enough(chunks):
    height = map_height(chunks)
    assert max_file_bytes(0, height) >= chunks
    assert not height or max_file_bytes(0, height - 1) < chunks


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5), st.integers(0, 30)), max_size=60))
def test_the_allocator_never_hands_out_a_block_twice(calls):
    allocator = Allocator(2, 0)
    live, generation = {}, 1
    for take, blocks, pick in calls:
        if take or not live:
            start = allocator.allocate(blocks)
            mine = set(range(start, start + blocks))
            assert min(mine) >= 2 and not any(mine & other for other in live.values())
            live[start] = mine
        else:
            start = sorted(live)[pick % len(live)]
            allocator.release(start, len(live.pop(start)), generation)
        if pick % 7 == 0:
            allocator.header_written()
            generation += 1
        if pick % 11 == 0:
            allocator.durable(generation - 1)
    assert allocator.live == sum(map(len, live.values()))


@given(st.text(alphabet="ab*?", max_size=8), st.text(alphabet="ab", max_size=8))
def test_wildcards_agree_with_a_regular_expression(pattern, text):
    import re

    regex = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    assert matches(pattern, text) == bool(re.fullmatch(regex, text))


@given(st.binary(min_size=1, max_size=255).filter(lambda name: b"\0" not in name and b"/" not in name))
def test_names_invert_and_do_not_move(name):
    keys = volume_keys()
    disk, sidecar = keys.seal_name(b"d" * 16, name)
    assert len(disk) <= 255 and "/" not in disk
    assert keys.open_name(b"d" * 16, disk, sidecar) == name
    with pytest.raises(errors.InvalidName):
        keys.open_name(b"e" * 16, disk, sidecar)
