"""AWS's cron() expressions (Secrets Manager user guide, "Schedule expressions"), in UTC. Pure.

`cron(Minutes Hours Day-of-month Month Day-of-week Year)`: minutes are 0, the year is `*`, one of the two days is `?`. croniter
knows the calendar; here is what is AWS's: days of the week from 1 (Sunday) to 7, `?`, `L` behind the day, steps without a start.
"""

import datetime
import itertools
import re

from kmsfs.errors import InvalidParameter

_CRON = re.compile(r"cron\((\S+) (\S+) (\S+) (\S+) (\S+) (\S+)\)\Z")
_DAYS = {name: number for number, name in enumerate(("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"), start=1)}
_NAMES = "JAN|FEB|MAR|APR|MAY|JUN|JUL|AUG|SEP|OCT|NOV|DEC"
_HOURS = re.compile(r"[0-9,*/-]+\Z")
_DAY = re.compile(r"(L|[0-9,*/-]+)\Z")
_MONTH = re.compile(rf"([0-9,*/-]|{_NAMES})+\Z")
_SHORTEST_SECONDS = 4 * 3600.0
_LOOKED_AHEAD = 64
"""Fire times that are looked at for two that are closer than four hours."""


def next_fire(expression: str, now: float) -> float:
    """Return when an expression's next time is, in seconds since the epoch.

    Raises:
        InvalidParameter: if it is none, never comes, or comes more often than every four hours.
    """
    # Few daemons have a schedule, and all of them start.
    from croniter import CroniterBadDateError, CroniterError, croniter

    translated = _translate(expression)
    moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
    try:
        times = croniter(translated, moment)
        found = [times.get_next(float) for _ in range(_LOOKED_AHEAD)]
    except CroniterBadDateError as error:
        raise InvalidParameter(f"{expression} never comes.") from error
    except (CroniterError, ValueError) as error:
        raise InvalidParameter(_no(expression)) from error
    if any(later - earlier < _SHORTEST_SECONDS for earlier, later in itertools.pairwise(found)):
        raise InvalidParameter("A secret rotates at most every four hours.")
    return float(found[0])


def _translate(expression: str) -> str:
    match = _CRON.match(expression)
    if match is None:
        raise InvalidParameter(_no(expression))
    minutes, hours, day, month, weekday, year = (part.upper() for part in match.groups())
    known = _HOURS.match(hours) and (day == "?" or _DAY.match(day)) and _MONTH.match(month)
    if minutes != "0" or year != "*" or (day == "?") == (weekday == "?") or not known:
        raise InvalidParameter(_no(expression))
    fields = [_steps(hours, 23), "*" if day == "?" else _steps(day, 31), _steps(month, 12), "*" if weekday == "?" else _weekday(weekday)]
    return " ".join(["0", *fields]).lower()


def _steps(field: str, last: int) -> str:
    """Spell `5/2` and `/2` as croniter does: a step needs a range."""
    return ",".join(
        f"{start or '*'}-{last}/{step}" if slash and start.isdigit() else f"{start or '*'}{slash}{step}"
        for start, slash, step in (part.partition("/") for part in field.split(","))
    )


def _weekday(field: str) -> str:
    """Spell days of the week as croniter does: from 0 (Sunday), and `L5` for AWS's `6L`."""
    parts = []
    for part in re.split(r"([,#-])", field):
        number = str(_DAYS.get(part.removesuffix("L"), part.removesuffix("L")))
        if part.endswith("L"):
            parts.append(f"L{_from_zero(number or '7')}")
        elif part in (",", "#", "-", "*") or (parts and parts[-1] == "#"):
            parts.append(part)
        else:
            parts.append(_from_zero(number))
    return "".join(parts)


def _from_zero(day: str) -> str:
    if day not in "1234567" or len(day) != 1:
        raise InvalidParameter(f"{day} is no day of the week: they are 1 (Sunday) to 7, or SUN to SAT.")
    return str(int(day) - 1)


def _no(expression: str) -> str:
    return (
        f"Invalid ScheduleExpression {expression[:100]}: cron(0 HOURS DAY-OF-MONTH MONTH DAY-OF-WEEK *), in UTC, with ? for one of the two days."
    )
