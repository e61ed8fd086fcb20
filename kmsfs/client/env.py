"""`env("DB_PASSWORD")` out of the parameter tree, in the manner of django-environ."""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from kmsfs.client.tree import read_tree, variable_name
from kmsfs.errors import InvalidRequest, ParameterNotFound

_T = TypeVar("_T")
_TRUE = frozenset({"1", "true", "yes", "on", "y", "t", "ok"})
_FALSE = frozenset({"0", "false", "no", "off", "n", "f", ""})
_NO_DEFAULT: Any = object()


class Env:
    """Settings of a program by the names of variables: `/app/prod/db/password` is DB_PASSWORD below `/app/prod`.

    The tree is read at the first use. A variable of the process wins over the tree, so that one machine can differ;
    `environ={}` shuts that off.
    """

    def __init__(self, path: str, *, client: Any = None, environ: Mapping[str, str] | None = None) -> None:
        self._path = path
        self._client = client
        self._environ = os.environ if environ is None else environ
        self._held: dict[str, str] | None = None

    def __call__(self, name: str, default: Any = _NO_DEFAULT) -> Any:
        """Return a setting's text, or the default if it is not there.

        Raises:
            ParameterNotFound: if it is not there and has no default.
            InvalidRequest: if two parameters have that name.
            ClientError: if the tree cannot be read.
        """
        return self._get(name, default, str)

    def bool(self, name: str, default: Any = _NO_DEFAULT) -> Any:
        """Return a setting that says yes or no, in one of the usual words; raises as a call, InvalidRequest for others."""
        return self._get(name, default, _truth)

    def int(self, name: str, default: Any = _NO_DEFAULT) -> Any:
        """Return a whole number; raises as a call, InvalidRequest if it is none."""
        return self._get(name, default, int)

    def float(self, name: str, default: Any = _NO_DEFAULT) -> Any:
        """Return a number; raises as a call, InvalidRequest if it is none."""
        return self._get(name, default, float)

    def list(self, name: str, default: Any = _NO_DEFAULT) -> Any:
        """Return the parts between commas; raises as a call."""
        return self._get(name, default, lambda text: [part.strip() for part in text.split(",") if part.strip()])

    def json(self, name: str, default: Any = _NO_DEFAULT) -> Any:
        """Return what a JSON text says; raises as a call, InvalidRequest if it is none."""
        return self._get(name, default, json.loads)

    def refresh(self) -> None:
        """Forget what was read: the next use reads the tree again."""
        self._held = None

    def __repr__(self) -> str:
        return f"Env({self._path!r})"

    def _get(self, name: str, default: Any, cast: Callable[[str], _T]) -> Any:
        text = self._environ.get(name)
        if text is None:
            text = self._read().get(name)
        if text is None:
            if default is _NO_DEFAULT:
                raise ParameterNotFound(
                    f"no parameter below {self._path} gives the setting {name}",
                    hint=f"kmsfs param put {self._path.rstrip('/')}/… --value-file -",
                )
            return default
        try:
            return cast(text)
        except ValueError:
            # The value may be a secret: neither it nor the error that quotes it is told.
            raise InvalidRequest(f"the setting {name} is not of the kind that was asked for") from None

    def _read(self) -> dict[str, str]:
        if self._held is None:
            held: dict[str, str] = {}
            for setting in read_tree(self._path, self._client):
                name = variable_name(setting.name, self._path)
                if name in held:
                    raise InvalidRequest(f"two parameters below {self._path} give the setting {name}")
                held[name] = setting.value if isinstance(setting.value, str) else ",".join(setting.value)
            self._held = held
        return self._held


def _truth(text: str) -> bool:
    word = text.strip().lower()
    if word not in _TRUE | _FALSE:
        raise ValueError
    return word in _TRUE
