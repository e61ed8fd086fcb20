"""Operators that read their values: networks, dates, numbers, bytes; and what is refused because it cannot be read."""

import base64
import json
import time
from dataclasses import replace

import pytest

from kmsd.authz.conditions import Condition, refuse_unreadable
from kmsd.authz.decide import Question, decide
from kmsd.authz.guardrails import compile_guardrail
from kmsd.authz.identity import compile_identity_policy, compile_new_identity_policy
from kmsd.authz.policy import compile_new_policy, compile_policy
from kmsd.authz.principal import make_caller
from kmsfs.errors import MalformedPolicy

ACCOUNT = "1" * 12
BYTES = base64.b64encode(b"\x00\xffbytes").decode()


def holds(operator, actual, *wanted, if_exists=False):
    return Condition(operator, "key", wanted, "", if_exists).holds({} if actual is None else {"key": actual})


@pytest.mark.parametrize(
    ("actual", "wanted", "expected"),
    [
        ("203.0.113.7", ["203.0.113.0/24"], True),
        ("203.0.114.7", ["203.0.113.0/24"], False),
        ("203.0.113.7", ["203.0.113.7"], True),
        ("203.0.113.8", ["203.0.113.7"], False),
        # Bits behind the prefix do not count.
        ("203.0.113.200", ["203.0.113.7/24"], True),
        ("203.0.113.7", ["10.0.0.0/8", "203.0.113.0/24"], True),
        ("127.0.0.1", ["0.0.0.0/0"], True),
        ("::1", ["0.0.0.0/0"], False),
        ("2001:db8:1234:5678::1", ["2001:DB8:1234:5678::/64"], True),
        ("2001:db8:1234:5679::1", ["2001:DB8:1234:5678::/64"], False),
        ("10.0.0.1", ["::/0"], False),
        ("no address", ["0.0.0.0/0", "::/0"], False),
        (["10.0.0.1", "203.0.113.7"], ["203.0.113.0/24"], True),
    ],
)
def test_networks(actual, wanted, expected):
    assert holds("IpAddress", actual, *wanted) is expected
    if isinstance(actual, str):
        assert holds("NotIpAddress", actual, *wanted) is not expected


def test_a_request_without_an_address_is_in_no_network():
    """One over the Unix socket: a Deny of all but some networks denies it, as AWS documents it of keys that are absent."""
    assert not holds("IpAddress", None, "0.0.0.0/0") and holds("NotIpAddress", None, "0.0.0.0/0")
    assert holds("IpAddress", None, "0.0.0.0/0", if_exists=True)


def test_bytes_are_compared_as_such():
    assert holds("BinaryEquals", BYTES, BYTES) and not holds("BinaryEquals", BYTES, base64.b64encode(b"other").decode())
    assert not holds("BinaryEquals", "no base64!", "no base64!")


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
def test_a_date_without_a_zone_is_utc(monkeypatch, zone):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert holds("DateEquals", "0", "1970-01-01T00:00:00") and holds("DateEquals", "0", "1970-01-01")
        assert holds("DateEquals", "0", "1970-01-01T00:00:00Z") and holds("DateEquals", "3600", "1970-01-01T00:00:00-01:00")
    finally:
        monkeypatch.undo()
        time.tzset()


UNREADABLE = [
    ("IpAddress", "10.0.0.0/33"), ("NotIpAddress", "10.0.0"), ("IpAddress", "localhost"), ("IpAddress", ""),
    ("DateLessThan", "tomorrow"), ("DateGreaterThanEquals", "2026-13-01T00:00:00Z"), ("DateNotEquals", ""),
    ("NumericEquals", "ten"), ("NumericLessThan", "nan"), ("NumericNotEquals", ""),
    ("Bool", "yes"), ("Null", "no"), ("BinaryEquals", "=x"),
]  # fmt: skip
READABLE = [
    ("IpAddress", "10.0.0.0/8"), ("NotIpAddress", "::1"), ("DateLessThan", "2026-01-31T00:00:00Z"), ("DateGreaterThan", "1767225600"),
    ("DateEquals", "2026-01-31"), ("NumericEquals", "10"), ("NumericLessThan", "1.5"), ("Bool", "True"), ("Null", "false"), ("BinaryEquals", BYTES),
    ("StringEquals", "anything"), ("ArnLike", "*"),
]  # fmt: skip


@pytest.mark.parametrize(("operator", "value"), [*UNREADABLE, *READABLE])
@pytest.mark.parametrize("suffix", ["", "IfExists"])
def test_what_would_never_be_met_is_not_stored(operator, value, suffix):
    if operator == "Null" and suffix:
        return
    condition = {operator + suffix: {"aws:Key": ["${aws:username}", value]}} if operator == "StringEquals" else {operator + suffix: {"aws:Key": value}}
    said = {"Effect": "Deny", "Action": "kms:*", "Resource": "*", "Condition": condition}
    with_principal = json.dumps({"Version": "2012-10-17", "Statement": [{**said, "Principal": "*"}]})
    without = json.dumps({"Version": "2012-10-17", "Statement": [said]})
    # What an earlier version stored is read as it was.
    compile_policy(with_principal)
    compile_identity_policy("", without)
    checks = [lambda: compile_new_policy(with_principal), lambda: compile_guardrail("g", with_principal), lambda: compile_new_identity_policy("", without)]
    for check in checks:
        if (operator, value) in READABLE:
            check()
        else:
            with pytest.raises(MalformedPolicy, match="cannot be read: it takes") as refused:
                check()
            assert operator in refused.value.detail and "aws:Key" in refused.value.detail


def test_a_value_with_a_variable_is_read_when_somebody_asks():
    condition = Condition("NumericLessThan", "key", ("${aws:PrincipalTag/limit}",), "", False)
    refuse_unreadable((condition,), variables=True)
    with pytest.raises(MalformedPolicy):
        refuse_unreadable((condition,), variables=False)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"Version": "2008-10-17"}, "Policy document must be version 2012-10-17 or greater."),
        ({"Resource": "key/x"}, 'Resource key/x must be in ARN format or "*".'),
        ({"Resource": ["*", "arn:aws:kms"]}, 'Resource arn:aws:kms must be in ARN format or "*".'),
    ],
)
def test_what_iam_refuses_today(more, words):
    document = {"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "kms:*", "Resource": "*"}}
    compile_new_identity_policy("", json.dumps(document))
    if "Version" in more:
        document |= more
    else:
        document["Statement"] |= more
    with pytest.raises(MalformedPolicy) as refused:
        compile_new_identity_policy("", json.dumps(document))
    assert refused.value.detail == words
    compile_identity_policy("", json.dumps(document))


def test_where_a_request_came_from_counts():
    from_office = {"IpAddress": {"aws:sourceip": "203.0.113.0/24"}}
    document = compile_policy(
        json.dumps({"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*", "Condition": from_office}})
    )
    local = make_caller(ACCOUNT, 1000, 1000, 1, ())
    question = Question("kms:Decrypt", "arn:kmsfs:kms:local:111111111111:key/x")
    assert not decide(local, question, document, ()).allowed
    assert decide(replace(local, address="203.0.113.9"), question, document, ()).allowed
    assert not decide(replace(local, address="198.51.100.9"), question, document, ()).allowed
