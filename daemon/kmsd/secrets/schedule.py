"""When a secret rotates by itself (Secrets Manager user guide, "Schedule expressions"). Pure."""

import re
from dataclasses import replace
from typing import Any

from kmsd.secrets.cron import next_fire
from kmsd.secrets.records import PENDING, Secret, without_stages
from kmsfs.errors import InvalidParameter

_RATE = re.compile(r"rate\((\d{1,4}) (hours?|days?)\)\Z")
_HOUR, _DAY = 3_600.0, 86_400.0
_SHORTEST = 4 * _HOUR
_LONGEST = 999 * _DAY


def next_rotation(rules: dict[str, Any] | None, now: float) -> float | None:
    """Return when a rotation is due after one at `now`, in seconds since the epoch; None if there is no schedule.

    Raises:
        InvalidParameter: if the rules are none that is offered: rate(n hours), rate(n days), cron(…), or a number of days.
    """
    expression = (rules or {}).get("schedule_expression")
    if expression is not None and expression.startswith("cron(") and (rules or {}).get("automatically_after_days") is None:
        return next_fire(expression, now)
    interval = _interval_of(rules)
    return now + interval if interval is not None else None


def _interval_of(rules: dict[str, Any] | None) -> float | None:
    if not rules:
        return None
    days, expression = rules.get("automatically_after_days"), rules.get("schedule_expression")
    if days is not None and expression is not None:
        raise InvalidParameter("You can specify either AutomaticallyAfterDays or ScheduleExpression, but not both.")
    if days is not None:
        return float(days) * _DAY
    if expression is None:
        return None
    match = _RATE.match(expression)
    seconds = int(match[1]) * (_HOUR if match[2].startswith("hour") else _DAY) if match else 0.0
    if not _SHORTEST <= seconds <= _LONGEST:
        raise InvalidParameter("Invalid ScheduleExpression: rate(n hours) from 4 hours on, rate(n days), up to 999 days, or cron(…).")
    return seconds


def rotation_ended(secret: Secret, now: float) -> Secret:
    """Return a secret whose pending version has become the current one; the pending stage has done its work."""
    return replace(
        secret, versions=without_stages(secret.versions, (PENDING,)), rotation_token=None, rotation_since=None, rotated=now,
        next_rotation=next_rotation(secret.rotation_rules, now) if secret.rotation_enabled else None,
    )  # fmt: skip
