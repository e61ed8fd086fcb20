"""The rules of alarms: what a file of them says, checked before anything is watched."""

import fnmatch
import re
import tomllib
from dataclasses import dataclass
from enum import Enum
from typing import Any
from urllib.parse import urlsplit

from kmsfs.errors import UsageError

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_MAIL = re.compile(r"[A-Za-z0-9._%+][A-Za-z0-9._%+-]*(@[A-Za-z0-9.-]+)?")


class Kind(Enum):
    """What an alarm is about."""

    DENIED = "denied"
    """A call that a policy refused."""
    CALLS = "calls"
    """A call that was answered."""
    PENDING_DELETION = "pending-deletion"
    """A use, refused, of a key that waits for its deletion."""
    NEW_PRINCIPAL = "new-principal"
    """A principal's first successful use of a key, as far as the log goes back."""
    GAP = "gap"
    """A record that is missing, was changed, or is no record."""
    UNSIGNED = "unsigned"
    """No signed digest of the log for as long as `within`."""


class Per(Enum):
    """What is counted together."""

    ALL = "all"
    PRINCIPAL = "principal"
    KEY = "key"


@dataclass(frozen=True, slots=True)
class Actions:
    """What is done, besides a line of output."""

    run: tuple[str, ...] = ()
    webhook: str = ""
    mail: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """One alarm: more than `more_than` such records within `within_seconds`, and not again for `quiet_seconds`.

    `operation`, `key` and `principal` are patterns in which `*` and `?` stand for anything: an operation's name, a key's
    id, and a principal's end (`uid/1000`, `user/bob`).
    """

    name: str
    kind: Kind
    more_than: int = 0
    within_seconds: float = 60.0
    quiet_seconds: float = 600.0
    per: Per = Per.ALL
    operation: str = "*"
    key: str = "*"
    principal: str = "*"
    actions: Actions = Actions()

    def is_about(self, operation: str, key: str, principal: str) -> bool:
        """Whether the patterns fit."""
        return (
            fnmatch.fnmatchcase(operation, self.operation)
            and fnmatch.fnmatchcase(key, self.key)
            and fnmatch.fnmatchcase(principal, self.principal)
        )


DEFAULT_RULES = (
    Rule("many denials", Kind.DENIED, 20, 60.0, per=Per.PRINCIPAL),
    Rule("key in its deletion window used", Kind.PENDING_DELETION, per=Per.KEY),
    Rule("first use of a key by a principal", Kind.NEW_PRINCIPAL, quiet_seconds=0.0),
    Rule("gap in the audit log", Kind.GAP),
    Rule("audit log not signed", Kind.UNSIGNED, within_seconds=3 * 3_600.0, quiet_seconds=3_600.0),
)
"""What is watched where no file says otherwise."""

_FIELDS = {
    "name", "on", "more_than", "within", "quiet", "per", "operation", "key", "principal", "run", "webhook", "mail",
}  # fmt: skip


def parse_rules(text: str) -> tuple[Rule, ...]:
    """Return the rules of a TOML file: tables `[[alarm]]`.

    Raises:
        UsageError: naming the alarm and what is wrong with it; unknown fields are refused.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the rules are no TOML: {error}") from error
    tables = document.pop("alarm", None)
    if document or not isinstance(tables, list) or not tables:
        raise UsageError("a file of rules has tables [[alarm]] and nothing else")
    rules = tuple(_rule(table) for table in tables)
    names = [rule.name for rule in rules]
    if len(set(names)) < len(names):
        raise UsageError("two alarms have one name")
    return rules


def _rule(table: Any) -> Rule:
    if not isinstance(table, dict) or not isinstance(table.get("name"), str) or not table["name"]:
        raise UsageError("each [[alarm]] has a name")
    name = table["name"]
    unknown = table.keys() - _FIELDS
    if unknown:
        raise UsageError(f"alarm {name!r} has unknown fields: {', '.join(sorted(unknown))}")
    try:
        kind, per = Kind(table["on"]), Per(table.get("per", "all"))
    except (KeyError, ValueError) as error:
        raise UsageError(
            f"alarm {name!r}: `on` is one of {_choices(Kind)}, `per` one of {_choices(Per)}"
        ) from error
    more_than = table.get("more_than", 0)
    if type(more_than) is not int or not 0 <= more_than <= 1_000_000:
        raise UsageError(f"alarm {name!r}: `more_than` is a number from 0 to 1000000")
    return Rule(
        name, kind, more_than, _seconds(table, "within", "60s"), _seconds(table, "quiet", "10m"), per,
        _text(table, "operation", "*"), _text(table, "key", "*"), _text(table, "principal", "*"), _actions(table),
    )  # fmt: skip


def _actions(table: dict[str, Any]) -> Actions:
    name, run = table["name"], table.get("run", [])
    if not isinstance(run, list) or not all(isinstance(word, str) and "\0" not in word for word in run):
        raise UsageError(f"alarm {name!r}: `run` is a list of words, the program first; there is no shell")
    webhook, mail = _text(table, "webhook", ""), _text(table, "mail", "")
    try:
        parts = urlsplit(webhook)
        loopback = parts.scheme == "http" and parts.hostname in _LOOPBACK
    except ValueError:
        loopback = False
    if webhook and not loopback:
        raise UsageError(f"alarm {name!r}: `webhook` is an http:// address on loopback")
    if mail and not _MAIL.fullmatch(mail):
        raise UsageError(f"alarm {name!r}: `mail` is one address")
    return Actions(tuple(run), webhook, mail)


def _seconds(table: dict[str, Any], field: str, default: str) -> float:
    text = table.get(field, default)
    if isinstance(text, str) and text[-1:] in _UNITS and text[:-1].isdecimal() and len(text) < 9:
        return float(int(text[:-1]) * _UNITS[text[-1]])
    raise UsageError(f"alarm {table['name']!r}: `{field}` is a time such as 30s, 10m, 2h or 1d")


def _text(table: dict[str, Any], field: str, default: str) -> str:
    value = table.get(field, default)
    if not isinstance(value, str):
        raise UsageError(f"alarm {table['name']!r}: `{field}` is a text")
    return value


def _choices(kind: type[Enum]) -> str:
    return ", ".join(str(one.value) for one in kind)
