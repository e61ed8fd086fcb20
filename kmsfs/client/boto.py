"""Clients with boto3's manners: snake-case methods, Pascal-case keywords, dicts back, `client.exceptions`."""

import datetime
from collections.abc import Callable, Iterator
from typing import Any

from kmsfs.api.registry import OPERATIONS
from kmsfs.client.session import ClientSession
from kmsfs.errors import KmsfsError, UsageError

_SERVICES = ("kms", "ssm", "secretsmanager", "sts", "iam", "kmsfs")
_DATES = frozenset(
    {
        "CreateDate", "CreatedDate", "CreationDate", "DeletedDate", "DeletionDate", "Expiration", "LastAccessedDate", "LastChangedDate",
        "KeyCreationDate", "LastModifiedDate", "LastRotatedDate", "LastUpdatedDate", "NextRotationDate", "Timestamp",
        "TrackingStartDate", "UpdateDate",
    }
)  # fmt: skip
_PAGED = {
    "list_keys": ("Marker", "NextMarker"),
    "list_aliases": ("Marker", "NextMarker"),
    "list_grants": ("Marker", "NextMarker"),
    "list_retirable_grants": ("Marker", "NextMarker"),
    "get_parameters_by_path": ("NextToken", "NextToken"),
    "get_parameter_history": ("NextToken", "NextToken"),
    "describe_parameters": ("NextToken", "NextToken"),
    "list_secrets": ("NextToken", "NextToken"),
    "list_secret_version_ids": ("NextToken", "NextToken"),
    "batch_get_secret_value": ("NextToken", "NextToken"),
}


class ClientError(Exception):
    """An operation failed. `response["Error"]` has Code and Message, as in botocore.exceptions.ClientError."""

    def __init__(self, code: str, message: str, operation: str, hint: str) -> None:
        super().__init__(f"An error occurred ({code}) when calling the {operation} operation: {message}")
        self.response = {
            "Error": {"Code": code, "Message": message},
            "ResponseMetadata": {"HTTPStatusCode": 400},
        }
        self.operation_name = operation
        self.hint = hint


class ClientExceptions:
    """Exception classes by AWS's error names: `client.exceptions.NotFoundException`."""

    def __init__(self) -> None:
        self._classes: dict[str, type[ClientError]] = {"ClientError": ClientError}

    def from_code(self, code: str) -> type[ClientError]:
        """Return the class of an error code, always the same one."""
        return self._classes.setdefault(code, type(code or "ClientError", (ClientError,), {}))

    def __getattr__(self, name: str) -> type[ClientError]:
        if name.startswith("_"):
            raise AttributeError(name)
        return self.from_code(name)


class Paginator:
    """Pages of one operation."""

    def __init__(self, method: Callable[..., dict[str, Any]], marker_in: str, marker_out: str) -> None:
        self._method = method
        self._in = marker_in
        self._out = marker_out

    def paginate(self, **parameters: Any) -> Iterator[dict[str, Any]]:
        """Yield pages until there are no more.

        Raises:
            ClientError: as the operation.
        """
        while True:
            page = self._method(**parameters)
            yield page
            following = page.get(self._out)
            if not following:
                return
            parameters[self._in] = following


class ServiceClient:
    """A client of one service. Thread-safe; its connections come back by themselves."""

    def __init__(self, service: str, session: ClientSession) -> None:
        self._session = session
        self.exceptions = ClientExceptions()
        self._methods = {op.method_name: op.wire_name for op in OPERATIONS.values() if op.service == service}

    def __getattr__(self, name: str) -> Callable[..., dict[str, Any]]:
        if name.startswith("_") or name not in self._methods:
            raise AttributeError(f"this service has no operation {name!r}")
        operation = self._methods[name]

        def method(**parameters: Any) -> dict[str, Any]:
            return self._call(operation, parameters)

        method.__name__ = name
        method.__doc__ = OPERATIONS[operation].summary
        return method

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._methods})

    def can_paginate(self, operation_name: str) -> bool:
        """Tell whether an operation has pages."""
        return operation_name in self._methods and operation_name in _PAGED

    def get_paginator(self, operation_name: str) -> Paginator:
        """Return a paginator of an operation.

        Raises:
            UsageError: if it has no pages.
        """
        if not self.can_paginate(operation_name):
            raise UsageError(f"{operation_name} has no pages")
        return Paginator(getattr(self, operation_name), *_PAGED[operation_name])

    def close(self) -> None:
        """Close idle connections."""
        self._session.close()

    def _call(self, operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
        try:
            result = self._session.call(operation, _plain(parameters))
        except KmsfsError as error:
            code = getattr(error, "wire_code", error.code)
            kind = self.exceptions.from_code(code)
            raise kind(code, error.detail, operation, error.hint) from error
        answer: dict[str, Any] = _with_dates(result)
        answer["ResponseMetadata"] = {"HTTPStatusCode": 200, "RetryAttempts": 0}
        return answer


def make_client(service: str, *, socket: str | None, autostart: bool, timeout: float = 30.0) -> ServiceClient:
    """Return a client.

    Raises:
        UsageError: if there is no such service.
    """
    if service not in _SERVICES:
        raise UsageError(f"no service {service!r}", hint=f"services are {', '.join(_SERVICES)}")
    return ServiceClient(service, ClientSession(socket=socket, autostart=autostart, timeout=timeout))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    return value


def _with_dates(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: datetime.datetime.fromtimestamp(item, datetime.UTC)
            if key in _DATES and isinstance(item, (int, float))
            else _with_dates(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_with_dates(item) for item in value]
    return value
