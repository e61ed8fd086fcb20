"""Parameter filters of DescribeParameters and GetParametersByPath, purely, with AWS's texts.

Source: Systems Manager API reference, "ParameterStringFilter".
"""

from collections.abc import Callable, Iterable, Sequence

from kmsd.parameters.labels import labels_of
from kmsd.parameters.path import below, check_path
from kmsd.parameters.records import ParameterFacts
from kmsfs.api.shapes.parameters import OldFilter, StringFilter
from kmsfs.errors import InvalidFilter, InvalidFilterOption, InvalidFilterValue, ShapeError

Test = Callable[[ParameterFacts], bool]

_LISTED = ("Path", "Name", "Type", "KeyId", "Tier")
"""The keys that AWS's text lists, of those that count."""
_KEYS = "tag:.+|Name|Type|KeyId|Path|Label|Tier|DataType"
_FIELDS: dict[str, Callable[[ParameterFacts], str | None]] = {
    "Name": lambda facts: facts.name,
    "Type": lambda facts: facts.type,
    "KeyId": lambda facts: facts.key,
    "Tier": lambda facts: facts.tier,
    "DataType": lambda facts: facts.data_type,
}
_VALUES = {
    "Type": ("String", "StringList", "SecureString"),
    "Tier": ("Standard", "Advanced", "Intelligent-Tiering"),
}
_OPTIONS = {
    "Name": ("BeginsWith", "Equals", "Contains"), "Path": ("Recursive", "OneLevel"), "KeyId": ("BeginsWith", "Equals"),
    "Type": ("BeginsWith", "Equals"), "Tier": ("Equals",), "DataType": ("BeginsWith", "Equals"), "Label": ("Equals",),
}  # fmt: skip
_COMPARE: dict[str, Callable[[str, str], bool]] = {
    "Equals": lambda actual, wanted: actual == wanted,
    "BeginsWith": lambda actual, wanted: actual.startswith(wanted),
    "Contains": lambda actual, wanted: wanted in actual,
}


def make_test(filters: Sequence[StringFilter], allowed: frozenset[str]) -> Test:
    """Return a test that every filter holds.

    Raises:
        ShapeError: for a key that no filter has.
        InvalidFilter: for a key that does not count here, or one that is there twice.
        InvalidFilterOption, InvalidFilterValue: for an option or value that the key does not take.
        InvalidName: for a Path filter that is no path.
    """
    seen: set[str] = set()
    tests = []
    for position, item in enumerate(filters):
        if item.key in seen:
            raise InvalidFilter(
                f"The following filter is duplicated in the request: {item.key}. A request can contain only one "
                "occurrence of a specific filter."
            )
        seen.add(item.key)
        tests.append(_one(item, position, allowed))
    return lambda facts: all(test(facts) for test in tests)


def make_old_test(filters: Iterable[OldFilter]) -> Test:
    """Return a test that every filter of the older form holds."""
    listed = list(filters)

    def holds(facts: ParameterFacts) -> bool:
        return all(_old_holds(item, facts) for item in listed)

    return holds


def _old_holds(item: OldFilter, facts: ParameterFacts) -> bool:
    actual = _FIELDS[item.key](facts)
    if actual is None:
        return False
    if item.key == "Name":
        return actual.startswith(tuple(item.values))
    return actual in item.values


def _one(item: StringFilter, position: int, allowed: frozenset[str]) -> Test:
    if item.key.startswith("tag:") and len(item.key) > 4 and "Name" in allowed:
        return _tag_test(item)
    if item.key not in _OPTIONS and not (item.key.startswith("tag:") and len(item.key) > 4):
        raise ShapeError(
            f"1 validation error detected: Value '{item.key}' at 'parameterFilters.{position + 1}.member.key' failed "
            f"to satisfy constraint: Member must satisfy regular expression pattern: {_KEYS}"
        )
    if item.key not in allowed:
        raise InvalidFilter(
            f"The following filter key is not valid: {item.key}. Valid filter keys include: "
            f"[{', '.join(key for key in _LISTED if key in allowed)}]."
        )
    option = item.option or ("OneLevel" if item.key == "Path" else "Equals")
    if option not in _OPTIONS[item.key]:
        raise InvalidFilterOption(
            f"The following filter option is not valid: {option}. Valid options include: "
            f"[{', '.join(option for option in _OPTIONS[item.key] if option != 'Contains')}]."
        )
    if not item.values:
        raise InvalidFilterValue(
            f"The following filter values are missing : null for filter key {item.key}"
        )
    _check_values(item)
    if item.key == "Label":
        return lambda facts: any(label in item.values for label in labels_of(facts, facts.version))
    if item.key == "Path":
        return _path_test(item.values, recursive=option == "Recursive")
    field, test = _FIELDS[item.key], _COMPARE[option]
    named = item.key == "Name"
    values = ["/" + value.lstrip("/") if named and option != "Contains" else value for value in item.values]

    def holds(facts: ParameterFacts) -> bool:
        actual = field(facts) or ""
        # A name of one level may have its slash or not; a filter finds it either way.
        return any(test("/" + actual.lstrip("/") if named else actual, value) for value in values)

    return holds


def _check_values(item: StringFilter) -> None:
    known = _VALUES.get(item.key)
    for value in item.values:
        if known is not None and value not in known:
            raise InvalidFilterOption(
                f"The following filter value is not valid: {value}. Valid values include: [{', '.join(known)}]."
            )
        if item.key in ("Path", "Name") and value.lower().lstrip("/").startswith(("aws", "ssm")):
            first = value.lower().lstrip("/").split("/")[0]
            if first in ("aws", "ssm"):
                raise ShapeError(
                    'Filters for common parameters can\'t be prefixed with "aws" or "ssm" (case-insensitive).'
                )


def _tag_test(item: StringFilter) -> Test:
    name, wanted = item.key.removeprefix("tag:"), item.values
    if item.option not in (None, "Equals", "BeginsWith"):
        raise InvalidFilterOption(
            f"The following filter option is not valid: {item.option}. Valid options include: [BeginsWith, Equals]."
        )
    test = _COMPARE[item.option or "Equals"]
    return lambda facts: name in facts.tags and (not wanted or any(test(facts.tags[name], value) for value in wanted))


def _path_test(values: list[str], *, recursive: bool) -> Test:
    paths = [check_path(value) for value in values]
    return lambda facts: any(below(facts.name, path, recursive=recursive) for path in paths)
