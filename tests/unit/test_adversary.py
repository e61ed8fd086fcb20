"""Whoever writes the cipher directory: every flipped bit and every splice is an error, never wrong plaintext."""

import os

import pytest

from kmsd.keys.material import decrypt, encrypt
from kmsfs import errors
from kmsfs.backing.memory import MemoryFile
from kmsfs.envelope import content
from kmsfs.envelope.kf1file import Kf1File
from kmsfs.formats.blob import parse_blob
from kmsfs.formats.fileheader import SLOT_BYTES
from kmsfs.formats.volume import VolumeConfig, parse_config
from kmsfs.secret import KeyMaterial
from support.fakes import FakeProvider, make_tools, volume_keys


def build(data, tools, commits=1):
    disk = MemoryFile()
    file = Kf1File.create(tools, disk, tools.provider.fresh())
    for _ in range(commits):
        content.write(file, data, 0)
        file.commit()
        file.make_durable()
    return disk


def read_all(disk, tools):
    file = Kf1File.open(tools, disk)
    return bytes(content.read(file, file.size, 0))


def flipped(data, bit):
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return changed


def test_every_bit_of_a_header_counts():
    tools = make_tools()
    disk = build(b"small secret", tools)
    original = bytes(disk.content)
    for bit in range(SLOT_BYTES * 8):
        with pytest.raises(errors.IntegrityError):
            read_all(MemoryFile(flipped(original, bit)), tools)


def test_every_byte_of_nodes_and_chunks_counts():
    tools = make_tools(chunk_log2=12)
    data = os.urandom(80 * 4096 + 100)
    disk = build(data, tools)
    original = bytes(disk.content)
    assert read_all(disk, tools) == data
    for position in [*range(8192, len(original), 61), *range(len(original) - 4096, len(original))]:
        broken = bytearray(original)
        broken[position] ^= 0x10
        try:
            # Padding after a short chunk belongs to nobody.
            assert read_all(MemoryFile(broken), tools) == data
        except errors.IntegrityError:
            continue
        assert position % 4096 >= 100 or position >= len(original) - 4096


def test_every_bit_of_a_node_counts():
    tools = make_tools(chunk_log2=12)
    disk = build(os.urandom(80 * 4096), tools)
    original = bytes(disk.content)
    [node] = [at for at in range(0, len(original), 4096) if original[at : at + 4] == b"KFN1"]
    for bit in range(node * 8, (node + 4096) * 8):
        with pytest.raises(errors.IntegrityError):
            read_all(MemoryFile(flipped(original, bit)), tools)


def test_every_bit_of_a_chunk_counts():
    tools = make_tools(chunk_log2=12)
    data = os.urandom(2 * 4096)
    disk = build(data, tools)
    file = Kf1File.open(tools, disk)
    for bit in range(8 * 2 * 4096, 8 * 3 * 4096):
        disk.content[bit // 8] ^= 1 << bit % 8
        with pytest.raises(errors.IntegrityError):
            content.read(file, 4096, 0)
        disk.content[bit // 8] ^= 1 << bit % 8
    assert bytes(content.read(file, 2 * 4096, 0)) == data


@pytest.fixture
def pair():
    tools = make_tools(chunk_log2=12)
    return tools, build(b"A" * 20_000, tools), build(b"B" * 20_000, tools)


@pytest.mark.parametrize("block", [0, 2, 3, 4])
def test_blocks_of_another_file_are_refused(pair, block):
    tools, one, other = pair
    mixed = MemoryFile(bytes(one.content))
    mixed.content[block * 4096 : (block + 1) * 4096] = other.content[block * 4096 : (block + 1) * 4096]
    with pytest.raises(errors.IntegrityError):
        read_all(mixed, tools)


def test_swapped_zeroed_truncated_and_extended_chunks(pair):
    tools, one, _ = pair
    raw = bytes(one.content)
    swapped = bytearray(raw)
    swapped[2 * 4096 : 3 * 4096], swapped[3 * 4096 : 4 * 4096] = raw[3 * 4096 : 4 * 4096], raw[2 * 4096 : 3 * 4096]
    zeroed = bytearray(raw)
    zeroed[2 * 4096 : 3 * 4096] = bytes(4096)
    for broken in (swapped, zeroed, bytearray(raw[: 3 * 4096]), bytearray(raw[:5000]), bytearray(100), bytearray()):
        with pytest.raises(errors.IntegrityError):
            read_all(MemoryFile(broken), tools)
    assert read_all(MemoryFile(raw + os.urandom(4096)), tools) == b"A" * 20_000


def test_an_older_chunk_is_not_taken_for_the_present_one():
    tools = make_tools(chunk_log2=12)
    disk = MemoryFile()
    file = Kf1File.create(tools, disk, tools.provider.fresh())
    content.write(file, b"old!" * 1024, 0)
    content.write(file, b"keep" * 1024, 4096)
    file.commit()
    file.make_durable()
    before = bytes(disk.content)
    content.write(file, b"new!" * 1024, 0)
    file.commit()
    file.make_durable()
    now = bytearray(disk.content)
    new_block = next(at for at in range(8192, len(now), 4096) if now[at : at + 4096] != before[at : at + 4096])
    now[new_block : new_block + 4096] = before[8192 : 8192 + 4096]
    with pytest.raises(errors.IntegrityError):
        read_all(MemoryFile(now), tools)


def test_rolling_back_by_destroying_the_newer_slot_is_noticed_on_a_clean_volume():
    tools = make_tools()
    disk = build(b"x" * 5000, tools, commits=2)
    raw = bytearray(disk.content)
    for slot in (0, 1):
        broken = bytearray(raw)
        broken[slot * SLOT_BYTES + 700] ^= 1
        with pytest.raises(errors.IntegrityError):
            read_all(MemoryFile(broken), tools)
        recovering = make_tools(tools.keys, tools.provider)
        recovering.rules.tolerate_other_slot = True
        assert read_all(MemoryFile(broken), recovering) == b"x" * 5000


def test_a_file_of_another_volume_is_refused():
    provider = FakeProvider()
    disk = build(b"secret", make_tools(provider=provider))
    with pytest.raises(errors.IntegrityError):
        read_all(disk, make_tools(provider=provider))


def test_every_bit_of_a_blob_counts():
    key = "00000000-0000-4000-8000-000000000001"
    material = KeyMaterial(os.urandom(32))
    data = encrypt(material, key, 1, b"k" * 32, {"a": "b"}, os.urandom)
    assert len(data) == 132
    assert decrypt(material, parse_blob(data), {"a": "b"}) == b"k" * 32
    for bit in range(len(data) * 8):
        with pytest.raises(errors.InvalidCiphertext):
            decrypt(material, parse_blob(bytes(flipped(data, bit))), {"a": "b"})
    for context in ({}, {"a": "c"}, {"ab": ""}, {"a": "b", "c": ""}):
        with pytest.raises(errors.InvalidCiphertext):
            decrypt(material, parse_blob(data), context)
    with pytest.raises(errors.InvalidCiphertext):
        decrypt(KeyMaterial(bytes(32)), parse_blob(data), {"a": "b"})


def test_every_bit_of_names_and_directory_ids_counts():
    keys = volume_keys()
    for name in (b"a", b"x" * 100, b"y" * 200):
        disk, sidecar = keys.seal_name(b"d" * 16, name)
        for position in range(len(disk)):
            for bit in range(8):
                changed = bytearray(disk.encode())
                changed[position] ^= 1 << bit
                with pytest.raises(errors.InvalidName):
                    keys.open_name(b"d" * 16, changed.decode("latin-1"), sidecar)
    target = keys.seal_dir_id(b"i" * 16, [b"t" * 8])
    assert len(target) == 59
    for bit in range(len(target) * 8):
        changed = bytes(flipped(target.encode(), bit)).decode("latin-1")
        with pytest.raises(errors.CorruptVolume):
            keys.open_dir_id(changed)
    link = keys.seal_link(b"/etc/passwd", os.urandom)
    for bit in range(len(link) * 8):
        with pytest.raises(errors.CorruptFile):
            keys.open_link(bytes(flipped(link.encode(), bit)).decode("latin-1"))


def test_every_bit_of_a_volume_configuration_counts():
    keys = volume_keys()
    config = VolumeConfig(keys.volume_id, "arn:kmsfs:kms:local:1:key/x", b"w" * 132, b"r" * 16, 14, "enforce")
    data = config.encode(keys.config_mac(config.signed_bytes()))
    parsed, mac = parse_config(data)
    assert parsed == config
    keys.check_config(parsed.signed_bytes(), mac)
    accepted = 0
    for bit in range(len(data) * 8):
        try:
            parsed, mac = parse_config(bytes(flipped(data, bit)))
            keys.check_config(parsed.signed_bytes(), mac)
        except errors.IntegrityError:
            continue
        # White space, and the case of the MAC's hexadecimal digits, say the same.
        assert parsed == config
        accepted += 1
    assert accepted < len(data)


def test_a_failed_open_leaves_no_plaintext_in_the_buffer():
    from kmsfs.aead.gcm import GcmKey

    key = GcmKey(os.urandom(32))
    plain = b"SECRET!!" * 1024
    sealed = bytearray(len(plain) + 16)
    pins = key.seal_run(os.urandom, memoryview(plain), 4096, [b"0", b"1"], memoryview(sealed))
    out = bytearray(len(plain))
    sealed[0] ^= 1
    with pytest.raises(errors.AuthenticationFailed):
        key.open_run(pins, memoryview(sealed), 4096, [b"0", b"1"], memoryview(out))
    assert out == bytes(len(plain))


def test_denied_and_disabled_keys_give_no_content():
    tools = make_tools()
    disk = build(b"secret", tools)
    tools.provider.denied = True
    with pytest.raises(errors.AccessDenied):
        read_all(disk, tools)
    assert Kf1File.open(tools, disk).size == 6
