"""Tiers and their limits (Systems Manager user guide, "Managing parameter tiers")."""

from kmsfs.errors import InvalidRequest
from kmsfs.quantity import ADVANCED_VALUE_MAX_BYTES, STANDARD_VALUE_MAX_BYTES

STANDARD_PARAMETERS_MAX = 10_000
ADVANCED_PARAMETERS_MAX = 100_000


def settle_tier(asked: str | None, present: str | None, value_bytes: int, *, policies: bool = False) -> str:
    """Return the tier that a put gets: what was asked, what it has, promoted by Intelligent-Tiering.

    Raises:
        InvalidRequest: if an advanced parameter is to become standard, or the value exceeds the tier's limit.
    """
    if asked == "Intelligent-Tiering":
        large = present == "Advanced" or policies or value_bytes > STANDARD_VALUE_MAX_BYTES
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
    if value_bytes > ADVANCED_VALUE_MAX_BYTES:
        raise InvalidRequest(f"A parameter value has at most {ADVANCED_VALUE_MAX_BYTES} bytes.")
    if tier == "Standard" and value_bytes > STANDARD_VALUE_MAX_BYTES:
        raise InvalidRequest(
            "Standard tier parameters support a maximum parameter value of 4096 characters. To create a larger "
            "parameter value, upgrade the parameter to use the advanced-parameter tier."
        )
    return tier
