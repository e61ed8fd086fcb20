"""Labels of parameter versions, purely (Systems Manager user guide, "Working with parameter labels")."""

import re

from kmsd.parameters.records import ParameterFacts
from kmsfs.errors import ParameterMaxVersionLimit, ParameterVersionLabelLimit

LABELS_PER_VERSION_MAX = 10
_LABEL = re.compile(r"[A-Za-z_.-][A-Za-z0-9_.-]{0,99}\Z")


def is_label(text: str) -> bool:
    """Whether AWS lets this be a label: no leading digit, nor `aws` or `ssm` in any case."""
    return bool(_LABEL.match(text)) and not text.lower().startswith(("aws", "ssm"))


def labels_of(facts: ParameterFacts, version: int) -> list[str]:
    """Return the labels of one version, sorted."""
    return sorted(label for label, at in facts.labels.items() if at == version)


def attach(facts: ParameterFacts, version: int, wanted: list[str]) -> tuple[dict[str, int], list[str]]:
    """Return (labels after attaching, invalid ones). A label moves if another version has it.

    Raises:
        ParameterVersionLabelLimit: if the version would have more than ten.
    """
    good = [label for label in dict.fromkeys(wanted) if is_label(label)]
    labels = {**facts.labels, **dict.fromkeys(good, version)}
    if sum(at == version for at in labels.values()) > LABELS_PER_VERSION_MAX:
        raise ParameterVersionLabelLimit(
            "A parameter version can have maximum 10 labels.Move one or more labels to another version and try again."
        )
    return labels, [label for label in dict.fromkeys(wanted) if label not in good]


def detach(
    facts: ParameterFacts, version: int, wanted: list[str]
) -> tuple[dict[str, int], list[str], list[str]]:
    """Return (labels after detaching, removed ones, those that this version does not have)."""
    removed = [label for label in dict.fromkeys(wanted) if facts.labels.get(label) == version]
    left = {label: at for label, at in facts.labels.items() if label not in removed}
    return left, removed, [label for label in dict.fromkeys(wanted) if label not in removed]


def require_droppable(facts: ParameterFacts, version: int) -> None:
    """Check that the oldest version may make room for a new one.

    Raises:
        ParameterMaxVersionLimit: if it carries a label.
    """
    if version in facts.labels.values():
        raise ParameterMaxVersionLimit(
            f"You attempted to create a new version of {facts.name} by calling the PutParameter API with the overwrite "
            f"flag. Version {version}, the oldest version, can't be deleted because it has a label associated with it. "
            "Move the label to another version of the parameter, and try again."
        )
