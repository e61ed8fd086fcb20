"""Names of units and credentials as systemd gives them, and as parameters have them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.credentials.names import belongs_to, escaped, parse_peer, places_of
from kmsd.parameters.path import check_name
from kmsfs.errors import InvalidRequest
from kmsfs.ids import check_principal, unit_principal

units = st.from_regex(r"[0-9A-Za-z:_.\\@-]{1,60}", fullmatch=True)


def test_a_peer_name_says_unit_and_credential():
    assert parse_peer(b"\0adf9d86b6eda275e/unit/foobar.service/credx") == ("foobar.service", "credx")
    assert parse_peer("\0a1/unit/db@main.service/tls.key") == ("db@main.service", "tls.key")


@pytest.mark.parametrize(
    "address",
    [
        b"", b"\0", "/run/x.sock", b"/a1/unit/a.service/x", b"\0a1/unit/a.service/", b"\0a1/unit//x", b"\0/unit/a.service/x",
        b"\0a1/unit/a.service/x/y", b"\0a1/unit/a/b.service/x", b"\0a1/unit/a.service/x\n", b"\0a1/unit/a.service/\xff", b"\0a1/unit/" + b"a" * 300 + b"/x",
    ],
)  # fmt: skip
def test_other_peer_names_say_nothing(address):
    with pytest.raises(InvalidRequest):
        parse_peer(address)


def test_places_are_parameters_names():
    assert places_of("app.service", "db-password") == ["/systemd/app.service/db-password"]
    assert places_of("db@main.service", "key") == ["/systemd/db_40main.service/key", "/systemd/db_40.service/key"]
    assert escaped("my_db.service") == "my_db.service" and escaped("a_40b") == "a_5F40b"


@given(units, units)
def test_units_stay_apart(left, right):
    assert (escaped(left) == escaped(right)) == (left == right)
    for place in places_of(left, right):
        assert check_name(place) == place and belongs_to(left, place)
    if left.partition("@")[0] != right.partition("@")[0]:
        assert not any(belongs_to(left, place) for place in places_of(right, "x"))
    assert check_principal(unit_principal("1" * 12, left)) == unit_principal("1" * 12, left)


def test_nothing_else_belongs_to_a_unit():
    for other in ("/systemd/app.service", "/systemd/app.service/a/b", "/app.service/a", "app.service", "/systemd/app.servic/a", "/systemd/app.service2/a"):
        assert not belongs_to("app.service", other)
