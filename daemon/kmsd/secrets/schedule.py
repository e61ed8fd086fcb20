"""When a secret rotates by itself (Secrets Manager user guide, "Schedule expressions"). Pure."""

import re
from dataclasses import replace
from typing import Any

from kmsd.secrets.records import PENDING, Secret, without_stages
from kmsfs.errors import InvalidParameter

_RATE = re.compile(r"rate\((\d{1,4}) (hours?|days?)\)\Z")
_HOUR, _DAY = 3_600.0, 86_400.0
_SHORTEST = 4 * _HOUR
_LONGEST = 999 * _DAY


def interval_of(rules: dict[str, Any] | None) -> float | None:
    """Return the seconds between two rotations; None if there is no schedule.

    Raises:
        InvalidParameter: if the rules are none that is offered: rate(n hours), rate(n days), or a number of days.
    """
    if not rules:
        return None
    days, expression = rules.get("automatically_after_days"), rules.get("schedule_expression")
    if days is not None and expression is not None:
        raise InvalidParameter("You can specify either AutomaticallyAfterDays or ScheduleExpression, but not both.")
    if days is not None:
        return float(days) * _DAY
    if expression is None:
        return None
    if expression.startswith("cron("):
        raise InvalidParameter("cron() schedules are not offered here: use rate(n hours) or rate(n days).")
    match = _RATE.match(expression)
    seconds = int(match[1]) * (_HOUR if match[2].startswith("hour") else _DAY) if match else 0.0
    if not _SHORTEST <= seconds <= _LONGEST:
        raise InvalidParameter("Invalid ScheduleExpression: rate(n hours) from 4 hours on, or rate(n days), up to 999 days.")
    return seconds


def rotation_ended(secret: Secret, now: float) -> Secret:
    """Return a secret whose pending version has become the current one; the pending stage has done its work."""
    interval = interval_of(secret.rotation_rules)
    return replace(
        secret, versions=without_stages(secret.versions, (PENDING,)), rotation_token=None, rotation_since=None, rotated=now,
        next_rotation=now + interval if interval is not None and secret.rotation_enabled else None,
    )  # fmt: skip
