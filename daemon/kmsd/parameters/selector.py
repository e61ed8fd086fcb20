"""Selectors: `name`, `name:3`, `name:label`, or the parameter's ARN with any of them."""

from dataclasses import dataclass

from kmsd.parameters.labels import is_label
from kmsfs.errors import ParameterNotFound, ParameterVersionNotFound
from kmsfs.ids import parameter_arn


@dataclass(frozen=True, slots=True)
class Selector:
    """A parsed selector; `suffix` is what follows the colon, colon included, to be echoed."""

    name: str
    version: int | None
    suffix: str | None
    label: str | None = None


def parse_selector(text: str, scope: str) -> Selector:
    """Read a selector.

    Raises:
        ParameterNotFound: if it is the ARN of something else, or has more than one colon.
        ParameterVersionNotFound: if the part after the colon is neither a version nor a label that exists.
    """
    if text.startswith("arn:"):
        prefix = parameter_arn(scope, "")
        if not text.startswith(prefix):
            raise ParameterNotFound
        rest = text.removeprefix(prefix)
        bare = rest.split(":")[0]
        text = "/" + rest if "/" in bare else rest
    name, colon, chosen = text.partition(":")
    if ":" in chosen:
        raise ParameterNotFound(f"Parameter {text[:256]} not found.")
    if not colon:
        return Selector(name, None, None)
    if is_label(chosen):
        return Selector(name, None, ":" + chosen, chosen)
    if not chosen.isascii() or not chosen.isdigit() or len(chosen) > 18:
        raise ParameterVersionNotFound(
            f"Systems Manager could not find version {chosen[:100]} of {name}. Verify the version and try again.",
            hint="versions are numbers from 1",
        )
    return Selector(name, int(chosen), ":" + chosen)
