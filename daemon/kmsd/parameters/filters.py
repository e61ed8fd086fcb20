"""Parameter filters of DescribeParameters and GetParametersByPath, purely."""

from collections.abc import Callable, Iterable

from kmsd.parameters.labels import labels_of
from kmsd.parameters.path import below, check_path
from kmsd.parameters.records import ParameterFacts
from kmsfs.api.shapes.parameters import StringFilter
from kmsfs.errors import InvalidFilter

_FIELDS: dict[str, Callable[[ParameterFacts], str | None]] = {
    "Name": lambda facts: facts.name,
    "Type": lambda facts: facts.type,
    "KeyId": lambda facts: facts.key,
    "Tier": lambda facts: facts.tier,
    "DataType": lambda facts: facts.data_type,
}


def make_test(filters: Iterable[StringFilter], allowed: frozenset[str]) -> Callable[[ParameterFacts], bool]:
    """Return a test that every filter holds.

    Raises:
        InvalidFilter: for an unknown key or option.
        InvalidName: for a Path filter that is no path.
    """
    tests = [_one(item, allowed) for item in filters]
    return lambda facts: all(test(facts) for test in tests)


def _one(item: StringFilter, allowed: frozenset[str]) -> Callable[[ParameterFacts], bool]:
    if item.key.startswith("tag:") and "Name" in allowed:
        name, wanted = item.key.removeprefix("tag:"), item.values
        if item.option not in (None, "Equals"):
            raise InvalidFilter(
                f"The filter key {item.key[:64]} does not take the option {item.option[:20]}."
            )
        return lambda facts: name in facts.tags and (not wanted or facts.tags[name] in wanted)
    if item.key not in allowed:
        raise InvalidFilter(
            f"The following filter key is not valid: {item.key[:64]}. Valid: {', '.join(sorted(allowed))}"
        )
    if item.key == "Label":
        return lambda facts: any(label in item.values for label in labels_of(facts, facts.version))
    if item.key == "Path":
        if item.option not in (None, "OneLevel", "Recursive"):
            raise InvalidFilter("The Path filter takes the options OneLevel and Recursive.")
        paths = [check_path(value) for value in item.values]
        recursive = item.option == "Recursive"
        return lambda facts: any(below(facts.name, path, recursive=recursive) for path in paths)
    field = _FIELDS[item.key]
    option, values = item.option or "Equals", item.values
    compare: dict[str, Callable[[str, str], bool]] = {
        "Equals": lambda actual, wanted: actual == wanted,
        "BeginsWith": lambda actual, wanted: actual.startswith(wanted),
        "Contains": lambda actual, wanted: wanted in actual,
    }
    if option not in compare or (option == "Contains" and item.key != "Name"):
        raise InvalidFilter(f"The filter key {item.key} does not take the option {option[:20]}.")
    test = compare[option]
    return lambda facts: any(test(field(facts) or "", value) for value in values)
