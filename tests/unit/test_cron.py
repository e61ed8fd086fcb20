"""AWS's cron() expressions, against dates that were worked out by hand."""

import datetime

import pytest

from kmsd.secrets.cron import next_fire
from kmsfs.errors import InvalidParameter

NOW = datetime.datetime(2026, 11, 25, 8, 20, tzinfo=datetime.UTC)  # a Wednesday


@pytest.mark.parametrize(
    "expression, due",
    [
        ("0 8 1 * ? *", "2026-12-01 08"), ("0 8/4 * * ? *", "2026-11-25 12"), ("0 /6 * * ? *", "2026-11-25 12"),
        ("0 0 L * ? *", "2026-11-30 00"), ("0 6 ? * FRI#1 *", "2026-12-04 06"), ("0 6 ? * 6L *", "2026-11-27 06"),
        ("0 6 ? * MON-FRI *", "2026-11-26 06"), ("0 6 ? * 2-6 *", "2026-11-26 06"), ("0 6 ? JAN,JUL 1 *", "2027-01-03 06"),
        ("0 8 1/10 * ? *", "2026-12-01 08"), ("0 8 ? * SUN,WED *", "2026-11-29 08"), ("0 8 ? * L *", "2026-11-28 08"),
        ("0 8 29 2 ? *", "2028-02-29 08"), ("0 8,20 * * ? *", "2026-11-25 20"), ("0 8 ? 3/6 sun#2 *", "2027-03-14 08"),
    ],
)  # fmt: skip
def test_the_next_time(expression, due):
    found = datetime.datetime.fromtimestamp(next_fire(f"cron({expression})", NOW.timestamp()), datetime.UTC)
    assert found.strftime("%Y-%m-%d %H") == due and (found.minute, found.second) == (0, 0)


@pytest.mark.parametrize(
    "expression",
    [
        "", "0 8 1 * ?", "5 8 1 * ? *", "* 8 1 * ? *", "0 8 * * * *", "0 8 ? * ? *", "0 25 1 * ? *", "0 8 1 * ? 2027", "0 8 ? * 8 *", "0 8 ? * 0 *",
        "0 8 ? * MONDAY *", "0 8 1W * ? *", "0 8 @ * ? *", "0 h 1 * ? *", "0 r 1 * ? *", "0 8 r * ? *", "0 8 ? * 2#6 *", "0 8 1 13 ? *", "0 8 1 FOO ? *",
        "0 8 32 * ? *", "0 8 30 2 ? *", "0  8 1 * ? *", "0 8 1 * ? *) ", "0 8 1 * ? * *", "0 8 ? * #1 *", "0 8 -1 * ? *", "0 8 1//2 * ? *",
        "0 * * * ? *", "0 1,2 1 * ? *", "0 22-2 ? * MON *", "0 23 L * ? *,0",
    ],
)  # fmt: skip
def test_what_is_none_or_too_often(expression):
    with pytest.raises(InvalidParameter):
        next_fire(f"cron({expression})", NOW.timestamp())
