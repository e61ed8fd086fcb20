"""Pages of names: each costs what it shows, tells nothing of what is not shown, and nothing is left out or there twice."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kmsd.dispatch import paging
from kmsd.dispatch.paging import Names, page_of
from kmsfs.errors import InvalidMarker, InvalidNextToken

NAMES = st.lists(st.text("ab/-", min_size=1, max_size=6), unique=True, max_size=40)


def everything(names, limit, wanted=lambda _name: True, **bounds):
    found, marker, pages = [], None, 0
    while True:
        page, marker = names.page(limit, marker, wanted, **bounds)
        assert len(page) <= limit
        found += page
        pages += 1
        if marker is None:
            return found, pages


@given(NAMES, st.integers(1, 7), st.integers(0, 3), st.integers(1, 9))
def test_pages_hold_every_wanted_name_once_and_in_order(names, limit, modulus, looks):
    before, paging.LOOKS_MAX = paging.LOOKS_MAX, looks
    try:
        wanted = lambda name: not modulus or len(name) % modulus == 0  # noqa: E731
        found, _ = everything(Names(names), limit, wanted)
        assert found == [name for name in sorted(names) if wanted(name)]
    finally:
        paging.LOOKS_MAX = before


@given(NAMES, st.integers(1, 5), st.sampled_from(["", "a", "a/", "b"]), st.sampled_from([None, "a0", "b"]))
def test_bounds_leave_out_what_is_outside(names, limit, low, high):
    found, _ = everything(Names(names), limit, low=low, high=high)
    assert found == [name for name in sorted(names) if name >= low and (high is None or name < high)]


@given(NAMES, st.lists(st.text("ab/-", min_size=1, max_size=6), max_size=20))
def test_names_come_and_go(names, gone):
    index = Names()
    for name in names:
        index.add(name)
    for name in gone:
        index.discard(name)
    left = sorted(set(names) - set(gone))
    assert len(index) == len(left)
    assert [index[place] for place in range(len(index))] == left


def test_a_page_looks_at_one_name_more_than_it_shows():
    looked = []
    names = Names(f"{number:06d}" for number in range(100_000))
    page, marker = names.page(50, None, lambda name: not looked.append(name))
    assert (len(page), len(looked)) == (50, 51)
    looked.clear()
    following, _ = names.page(50, marker, lambda name: not looked.append(name))
    assert (following[0], len(looked)) == ("000050", 51)


def test_who_may_see_nothing_costs_little_and_learns_little():
    looked = []
    names = Names(f"{number * 7919 % 100_000:06x}-secret-name" for number in range(20_000))
    page, marker = names.page(50, None, lambda name: bool(looked.append(name)))
    assert page == []
    assert len(looked) == paging.LOOKS_MAX
    assert b"secret" not in base64.urlsafe_b64decode(marker)
    shown, pages = everything(names, 50, lambda _name: False)
    assert shown == []
    assert pages == 20_000 // paging.LOOKS_MAX


def test_the_last_page_has_no_marker():
    assert Names("abcd").page(4, None, lambda _name: True) == (list("abcd"), None)
    assert page_of(list("abcd"), 4, None) == (list("abcd"), None)
    # What follows is for nobody: the page is the last one.
    assert Names("abcd").page(2, None, lambda name: name < "c") == (["a", "b"], None)


@pytest.mark.parametrize("marker", ["", "x", "MA==", "/w==", "MWH/"])
def test_a_marker_of_somebody_elses_is_refused(marker):
    with pytest.raises(InvalidMarker):
        Names("ab").page(1, marker, lambda _name: True)
    with pytest.raises(InvalidNextToken):
        Names("ab").token_page(1, marker, lambda _name: True)
