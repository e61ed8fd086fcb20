"""Keys fetched ahead: how many, and what becomes of them."""

import os
from types import SimpleNamespace

import pytest

from kmsfs.envelope.caching import AHEAD_SECONDS, CachingProvider, NoGuard
from kmsfs.errors import DaemonUnreachable, KeyLease
from kmsfs.mount import keysahead
from kmsfs.mount.keysahead import KeysAhead, Window
from support.fakes import volume_keys


class Calls:
    def __init__(self, source, items):
        self.source, self.items, self.there, self.cancelled = source, items, False, False

    def ready(self):
        return self.there

    def finish(self):
        if self.source.gone:
            raise DaemonUnreachable("gone")
        return [None if wrapped in self.source.refused else wrapped.ljust(32, b"k") for wrapped in self.items]

    def cancel(self):
        self.cancelled = True


class Source:
    def __init__(self):
        self.batches, self.single, self.calls = [], [], []
        self.refused = set()
        self.gone = False

    def generate(self, contexts, key_id):
        return [(bytes(32), b"w") for _ in contexts]

    def decrypt(self, wrapped, context):
        self.single.append(wrapped)
        return wrapped.ljust(32, b"k")

    def begin_decrypts(self, items):
        self.batches.append([wrapped for wrapped, _ in items])
        made = Calls(self, [wrapped for wrapped, _ in items])
        self.calls.append(made)
        return made


def make_provider():
    source, now, lease = Source(), [0.0], [True]
    return source, now, lease, CachingProvider(b"v" * 16, source, lambda: now[0], bytes, lambda: lease[0], NoGuard())


FILES = [(bytes([65 + number]) * 16, b"w%d" % number) for number in range(4)]


def test_one_call_brings_them_all_and_their_use_is_counted():
    source, _, _, provider = make_provider()
    provider.fetch(FILES)
    assert [provider.holds(file_id) for file_id, _ in FILES] == [True] * 4
    provider.open(*FILES[0])
    assert provider.ahead_used == 0
    provider.open(*FILES[1])
    provider.open(*FILES[1])
    assert provider.ahead_used == 1 and source.single == [] and len(source.batches) == 1


def test_what_was_fetched_ahead_is_asked_again_after_ten_seconds():
    source, now, _, provider = make_provider()
    provider.fetch(FILES)
    provider.open(*FILES[1])
    held = provider._opened[FILES[2][0]].key
    now[0] = AHEAD_SECONDS + 1
    assert not provider.holds(FILES[2][0]) and held.reveal() == b""
    provider.open(*FILES[2])
    provider.open(*FILES[1])
    assert source.single == [FILES[2][1]]


def test_a_refused_one_is_left_to_its_own_call():
    source, _, _, provider = make_provider()
    source.refused = {FILES[0][1], FILES[2][1]}
    provider.fetch(FILES)
    assert [provider.holds(file_id) for file_id, _ in FILES] == [False, True, False, True]
    provider.open(*FILES[0])
    assert source.single == [FILES[0][1]]


def test_revocation_and_a_silent_daemon_take_them_too():
    source, _, lease, provider = make_provider()
    provider.fetch(FILES)
    held = provider._opened[FILES[3][0]].key
    provider.drop()
    assert held.reveal() == b"" and not provider.holds(FILES[3][0])
    source.gone = True
    provider.fetch(FILES)
    assert not any(provider.holds(file_id) for file_id, _ in FILES)
    lease[0] = False
    with pytest.raises(KeyLease):
        provider.fetch(FILES)
    assert not any(provider.holds(file_id) for file_id, _ in FILES)


def test_nothing_is_asked_under_a_key_whose_changes_are_not_heard_of():
    class Silent(NoGuard):
        def require_for(self, wrapped):
            raise KeyLease("silent")

    source = Source()
    provider = CachingProvider(b"v" * 16, source, lambda: 0.0, bytes, lambda: True, Silent())
    with pytest.raises(KeyLease):
        provider.fetch(FILES)
    assert source.batches == []


def test_a_key_in_use_is_not_replaced():
    _, _, _, provider = make_provider()
    keys = provider.open(*FILES[1])
    provider.fetch(FILES)
    assert provider.open(*FILES[1]) is keys and provider.ahead_used == 0


def batch(window, used_before, used, count=None):
    window.fetched(window.size if count is None else count)
    window.judge(used_before + used)


def test_the_window_doubles_while_keys_are_used_and_closes_while_they_are_not():
    window = Window()
    window.judge(0)
    assert window.size == 0
    window.try_again()
    used, sizes = 0, []
    for _ in range(4):
        sizes.append(window.size)
        batch(window, used, window.size)
        used += sizes[-1]
    assert [*sizes, window.size] == [4, 8, 16, 32, 32]
    patience = window.patience
    for expected in (16, 8, 4, 2, 0):
        batch(window, used, 0)
        assert window.size == expected
    assert window.patience == 2 * patience
    for _ in range(8):
        window.try_again()
        while window.size:
            batch(window, used, 0)
    assert window.patience == 96
    window.try_again()
    batch(window, used, 4)
    assert window.patience == patience


def test_a_middling_share_changes_nothing_and_a_batch_is_judged_once():
    window = Window()
    window.try_again()
    batch(window, 0, 2)
    assert window.size == 4
    window.judge(100)
    assert window.size == 4


def test_a_directory_of_files_under_other_keys_is_not_read_through(tmp_path, monkeypatch):
    for number in range(200):
        (tmp_path / f"n{number}").touch()
    looks = []
    monkeypatch.setattr(keysahead, "parse_blob", lambda _wrapped: SimpleNamespace(owner=b"o"))
    monkeypatch.setattr(KeysAhead, "_wrapped_key", lambda _self, _folder, name, _owner: looks.append(name))
    ahead = KeysAhead(volume_keys(), lambda: 0.0)
    inodes = sorted(path.stat().st_ino for path in tmp_path.iterdir())
    folder = os.open(tmp_path, os.O_RDONLY)
    for inode in inodes[:3]:
        assert ahead.beside(1, folder, inode, b"w", 0) == []
    assert len(looks) == 2 * ahead.window.size == 8
    os.close(folder)


# --- asked for while nobody waits -----------------------------------------------------------------------------


def test_keys_that_are_under_way_are_waited_for_only_when_one_is_needed():
    source, _, _, provider = make_provider()
    provider.fetch_soon(FILES)
    assert provider.awaits and not provider.take_coming(wait=False)
    assert not provider.holds(b"x" * 16) and provider.awaits
    assert provider.holds(FILES[2][0]) and not provider.awaits
    for file in FILES:
        provider.open(*file)
    assert provider.ahead_used == 4 and source.single == [] and len(source.batches) == 1


def test_keys_that_came_are_taken_without_waiting():
    source, _, _, provider = make_provider()
    provider.fetch_soon(FILES)
    source.calls[0].there = True
    assert provider.take_coming(wait=False) and not provider.awaits
    assert not provider.take_coming(wait=True)


def test_the_ten_seconds_run_from_the_question():
    source, now, _, provider = make_provider()
    provider.fetch_soon(FILES)
    now[0] = AHEAD_SECONDS + 1
    assert not provider.holds(FILES[0][0])


def test_revocation_takes_what_is_under_way():
    source, _, _, provider = make_provider()
    provider.fetch_soon(FILES)
    provider.drop()
    assert source.calls[0].cancelled and not provider.awaits and not provider.holds(FILES[0][0])


def test_a_dead_connection_leaves_each_file_to_its_own_call():
    source, _, _, provider = make_provider()
    provider.fetch_soon(FILES)
    source.gone = True
    assert not provider.holds(FILES[0][0])
    provider.open(*FILES[0])
    assert source.single == [FILES[0][1]]


def test_a_second_question_takes_the_first_answer_before():
    source, _, _, provider = make_provider()
    provider.fetch_soon(FILES[:2])
    provider.fetch_soon(FILES[2:])
    assert provider._held(FILES[0][0], 0.0) is not None and provider.awaits


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A directory of 200 files that is read in the order of inodes: `open(n)` is what a mount does, `idle()` its waits."""
    for number in range(200):
        (tmp_path / f"n{number}").touch()
    names = {f"n{number}": bytes([number]) * 16 for number in range(200)}
    looks = []

    def wrapped_key(_self, _folder, name, _owner):
        looks.append(name)
        return names[name], b"w" + names[name]

    monkeypatch.setattr(keysahead, "parse_blob", lambda _wrapped: SimpleNamespace(owner=b"o"))
    monkeypatch.setattr(KeysAhead, "_wrapped_key", wrapped_key)
    source, _, _, provider = make_provider()
    ahead = KeysAhead(volume_keys(), lambda: 0.0)
    files = sorted((path.stat().st_ino, names[path.name]) for path in tmp_path.iterdir())
    folder = os.open(tmp_path, os.O_RDONLY)
    made = SimpleNamespace(source=source, looks=looks, missed=0)

    def open_file(number):
        inode, file_id = files[number]
        if not provider.holds(file_id):
            made.missed += 1
            beside = ahead.beside(1, folder, inode, b"w" + file_id, provider.ahead_used)
            if beside:
                provider.fetch([(file_id, b"w" + file_id), *beside])
        provider.open(file_id, b"w" + file_id)

    def idle(steps=100):
        for _ in range(steps):
            if not ahead.look_further(1, folder, provider.ahead_used):
                wanted = ahead.take_further(provider.ahead_used)
                if wanted:
                    provider.fetch_soon(wanted)

    made.open, made.idle, made.ahead = open_file, idle, ahead
    yield made
    os.close(folder)


def asked(course):
    return [wrapped for batch in course.source.batches for wrapped in batch] + course.source.single


def test_once_it_reads_through_no_open_waits_for_a_question(course):
    for number in range(200):
        course.open(number)
        course.idle()
    assert course.missed == 3
    assert len(asked(course)) == len(set(asked(course))) == 200
    assert max(len(batch) for batch in course.source.batches) == 32


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_with_little_time_to_look_ahead_nothing_is_lost_on_the_way(course, steps):
    for number in range(200):
        course.open(number)
        course.idle(steps)
    assert len(asked(course)) == len(set(asked(course))) == 200
    assert course.missed < 15 and len(course.looks) == len(set(course.looks))


def test_who_stops_has_at_most_one_more_batch_asked_for(course):
    for number in range(6):
        course.open(number)
        course.idle()
    before = len(course.source.batches)
    course.idle()
    course.idle()
    assert len(course.source.batches) == before
    assert len(asked(course)) <= 6 + 4 + 8


def test_another_directory_is_not_gone_on_with(course):
    for number in range(4):
        course.open(number)
    looks = len(course.looks)
    assert not course.ahead.look_further(2, -1, 0)
    assert len(course.looks) == looks
