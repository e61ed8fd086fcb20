"""Tiers and their limits (Systems Manager user guide, "Managing parameter tiers")."""

from dataclasses import dataclass, fields, replace

from kmsfs.errors import InvalidRequest, UsageError
from kmsfs.quantity import ADVANCED_VALUE_MAX_BYTES, KIB, STANDARD_VALUE_MAX_BYTES


@dataclass(frozen=True, slots=True)
class ParameterLimits:
    """How many parameters a region has at most, and how many bytes a value, by tier: AWS's, or what the operator raised them to."""

    standard_parameters: int = 10_000
    advanced_parameters: int = 100_000
    standard_value: int = STANDARD_VALUE_MAX_BYTES
    """Of a String or StringList: AWS KMS encrypts 4,096 bytes, so a standard SecureString never has more."""
    advanced_value: int = ADVANCED_VALUE_MAX_BYTES

    def parameters(self, tier: str) -> int:
        """Return how many parameters of a tier there may be."""
        return self.advanced_parameters if tier == "Advanced" else self.standard_parameters

    def value(self, tier: str, *, secure: bool) -> int:
        """Return how many bytes a value may have."""
        if tier == "Advanced":
            return self.advanced_value
        return STANDARD_VALUE_MAX_BYTES if secure else self.standard_value


AWS_LIMITS = ParameterLimits()
_RAISED_TO = {"parameters": 10_000_000, "value": 64 * KIB}


def parse_limits(texts: list[str]) -> ParameterLimits:
    """Return the limits that `NAME=NUMBER` texts raise.

    Raises:
        UsageError: if there is no such limit, or the number is below AWS's or above what a daemon can hold.
    """
    limits = AWS_LIMITS
    names = {one.name.replace("_", "-"): one.name for one in fields(ParameterLimits)}
    for text in texts:
        label, _, number = text.partition("=")
        if label not in names or not (number.isascii() and number.isdigit()):
            raise UsageError(f"{text!r} is no limit", hint=f"NAME=NUMBER, the name one of {', '.join(names)}")
        low, high = getattr(AWS_LIMITS, names[label]), _RAISED_TO[label.partition("-")[2]]
        if not low <= int(number) <= high:
            raise UsageError(f"{text!r} is out of range", hint=f"{label} can be raised from {low} to at most {high}")
        limits = replace(limits, **{names[label]: int(number)})
    if limits.standard_value > limits.advanced_value:
        raise UsageError("standard-value is above advanced-value", hint="raise both")
    return limits


def settle_tier(
    asked: str | None,
    present: str | None,
    value_bytes: int,
    limits: ParameterLimits = AWS_LIMITS,
    *,
    secure: bool = False,
    policies: bool = False,
) -> str:
    """Return the tier that a put gets: what was asked, what it has, promoted by Intelligent-Tiering.

    Raises:
        InvalidRequest: if an advanced parameter is to become standard, or the value exceeds the tier's limit.
    """
    standard_max = limits.value("Standard", secure=secure)
    if asked == "Intelligent-Tiering":
        large = present == "Advanced" or policies or value_bytes > standard_max
        tier = "Advanced" if large else "Standard"
    else:
        tier = asked or present or "Standard"
    if present == "Advanced" and tier == "Standard":
        raise InvalidRequest(
            "This parameter uses the advanced-parameter tier. You can't downgrade a parameter from the "
            "advanced-parameter tier to the standard-parameter tier."
        )
    if policies and tier == "Standard":
        raise InvalidRequest(
            "Parameter policies are for advanced parameters: upgrade the parameter to use the advanced-parameter tier."
        )
    if value_bytes > limits.advanced_value:
        raise InvalidRequest(f"A parameter value has at most {limits.advanced_value} bytes.")
    if tier == "Standard" and value_bytes > standard_max:
        raise InvalidRequest(
            f"Standard tier parameters support a maximum parameter value of {standard_max} characters. To create a larger "
            "parameter value, upgrade the parameter to use the advanced-parameter tier."
        )
    return tier
