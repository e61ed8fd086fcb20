"""The folder of guardrails: only its owner and root can have written what is read from it."""

import os
import stat
from pathlib import Path

from kmsd.authz.guardrails import compile_guardrail
from kmsd.authz.policy import KeyPolicy
from kmsfs.errors import StorageError, UsageError

SYSTEM_FOLDER = Path("/etc/kmsd/guardrails.d")
_SUFFIX = ".json"
_HINT = "kmsd does not go without its guardrails"


def load_guardrails(folder: Path) -> dict[str, KeyPolicy]:
    """Return the compiled guardrails of a folder: each file that ends in .json, by name.

    Raises:
        UsageError: if others could have written one.
        StorageError: if the folder or a file cannot be read.
        MalformedPolicy, LimitExceeded: naming the file that is no guardrail.
    """
    try:
        _require_own(folder)
        paths = sorted(path for path in folder.iterdir() if path.suffix == _SUFFIX and not path.name.startswith("."))
        found = {}
        for path in paths:
            _require_own(path)
            found[path.stem] = compile_guardrail(path.name, _text_of(path))
    except OSError as error:
        raise StorageError(f"cannot read the guardrails in {folder}: {error}", hint=_HINT) from error
    return found


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise StorageError(f"the guardrail {path} is no text", hint=_HINT) from error


def _require_own(path: Path) -> None:
    facts = path.stat()
    if facts.st_uid not in (0, os.geteuid()) or stat.S_IMODE(facts.st_mode) & 0o022:
        raise UsageError(f"{path} can be changed by others, so it is no guardrail", hint=f"chown root {path}; chmod go-w {path}")
