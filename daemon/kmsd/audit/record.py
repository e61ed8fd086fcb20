"""Operation and outcome to record: only fields that the declaration opts in are logged."""

from typing import Any

from kmsfs.api.operation import Operation, Shape

_MAX_TEXT = 2048


def request_fields(operation: Operation, request: Shape | None) -> dict[str, Any]:
    """Return the opted-in request fields under their wire names; absent ones are left out."""
    if request is None:
        return {}
    fields: dict[str, Any] = {}
    for name in operation.audit:
        value = getattr(request, name)
        if value is not None and name != "encryption_context":
            fields[name] = value[:_MAX_TEXT] if isinstance(value, str) else value
    return fields


def context_of(operation: Operation, request: Shape | None) -> dict[str, str] | None:
    """Return the encryption context to log, in clear as AWS does, or None."""
    if request is None or "encryption_context" not in operation.audit:
        return None
    context: dict[str, str] = getattr(request, "encryption_context", {})
    return context or None
