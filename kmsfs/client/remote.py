"""Errors that arrive over the socket, as the exceptions of kmsfs.errors."""

from typing import Any

from kmsfs.errors import KmsfsError, Unavailable, all_errors


def _index() -> dict[str, type[KmsfsError]]:
    found: dict[str, type[KmsfsError]] = {}
    for kind in sorted(all_errors(), key=lambda kind: kind.audience != "caller"):
        found.setdefault(kind.code, kind)
    return found


_BY_CODE = _index()


def to_exception(error: dict[str, Any]) -> KmsfsError:
    """Return the exception for an error answer; an unknown code becomes a plain KmsfsError with that code."""
    code = str(error.get("code", ""))
    kind = _BY_CODE.get(code, Unavailable if error.get("retryable") else KmsfsError)
    exception = KmsfsError.__new__(kind)
    KmsfsError.__init__(exception, str(error.get("message", "")), hint=str(error.get("hint", "")))
    exception.wire_code = code  # type: ignore[attr-defined]
    return exception
