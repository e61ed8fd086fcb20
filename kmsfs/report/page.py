"""A report as one self-contained page of HTML: no script, nothing from elsewhere."""

import datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_CHART_WIDTH, _CHART_HEIGHT = 840, 160
_DAY = 86_400
_SOON_DAYS = 30


def render_page(report: dict[str, Any], *, refresh_seconds: int = 0) -> str:
    """Return the page of a report's document; it loads itself anew after so many seconds, if that is not 0."""
    place = Environment(loader=PackageLoader("kmsfs.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    place.filters.update(when=_when, day=_day, age=lambda at: _age(report["generated"] - at), short=_short)
    return place.get_template("page.html").render(
        report=report, bars=_bars(report["audit"]), width=_CHART_WIDTH, height=_CHART_HEIGHT, refresh_seconds=refresh_seconds,
        attention=_attention(report),
    )  # fmt: skip


def _bars(audit: dict[str, Any]) -> list[dict[str, Any]]:
    """The chart's rectangles: for each stretch what went well, what failed and what was refused, on top of each other."""
    if audit["unreadable"]:
        return []
    step = _CHART_WIDTH / len(audit["stretches"])
    drawn = []
    for number, stretch in enumerate(audit["stretches"]):
        top = float(_CHART_HEIGHT)
        parts = []
        for kind in ("ok", "failed", "denied"):
            # What there is is seen, be it little: a refusal among a million calls is what one looks for.
            height = max(stretch[kind] / audit["highest"] * _CHART_HEIGHT, 2.0) if stretch[kind] else 0.0
            top -= height
            parts.append({"kind": kind, "y": round(max(top, 0.0), 1), "height": round(height, 1)})
        title = f"{_when(stretch['start'])}: {stretch['ok']} ok, {stretch['failed']} failed, {stretch['denied']} denied"
        drawn.append({"x": round(number * step, 1), "width": round(max(step - 1, 1), 1), "parts": parts, "title": title})
    return drawn


def _attention(report: dict[str, Any]) -> list[str]:
    """What whoever reads should look at first."""
    said = []
    for key in report["keys"]:
        name = (key["aliases"] or [key["id"]])[0]
        if key["state"] == "PendingDeletion":
            said.append(f"{name} is deleted on {_day(key['deletion'])}; until then kmsfs key cancel-deletion keeps it.")
        elif key["state"] not in ("Enabled", "Disabled"):
            said.append(f"{name} is {key['state']}.")
        if key["next_rotation"] and key["next_rotation"] < report["generated"] + _SOON_DAYS * _DAY:
            said.append(f"{name} gets new material on {_day(key['next_rotation'])}.")
        if any(each["principal"] == "*" for each in key["principals"] or ()):
            said.append(f"Everybody on this machine may use {name}.")
    refused = sum(count for _, count in report["audit"].get("refused", ()))
    if refused:
        said.append(f"{refused} calls were denied in this time.")
    return said


def _when(at: float | None) -> str:
    return "" if at is None else datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def _day(at: float | None) -> str:
    return "" if at is None else datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%d")


def _age(seconds: float) -> str:
    days = int(seconds // _DAY)
    return f"{days} days" if days != 1 else "1 day"


def _short(principal: str) -> str:
    """A principal without what is the same for all: `uid/1000` of arn:kmsfs:iam::ACCOUNT:uid/1000."""
    return principal.split(":", 5)[-1]
