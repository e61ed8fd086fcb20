"""Values of other people's formats, as names and texts to be stored: dotenv, JSON, YAML, Vault, SOPS, and AWS itself."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import yaml

from kmsfs.errors import UsageError

_LINE = re.compile(r"\s*(?:export\s+)?(?P<name>[A-Za-z_][A-Za-z0-9_.-]*)\s*=\s*(?P<value>.*?)\s*\Z")
_LEAVES_MAX = 100_000
"""A small YAML file can stand for more values than any memory holds."""
_SOPS_SECONDS = 120


def read_values(style: str, text: str) -> dict[str, str]:
    """Return the values of a file by their names, levels parted by slashes.

    Raises:
        UsageError: if the format is unknown, or the text is not of it.
    """
    reader = _READERS.get(style)
    if reader is None:
        raise UsageError(f"unknown format {style!r}", hint=", ".join(_READERS))
    return reader(text)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError("the file is not JSON") from error


class _Loader(yaml.SafeLoader):
    """YAML without surprises: a key that is there twice is an error, not the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping."""
        names = [self.construct_object(name, deep=True) for name, _ in node.value]
        texts = [name if isinstance(name, str) else json.dumps(name) for name in names]
        if len(set(texts)) < len(texts):
            raise UsageError("the file has a name twice in one place")
        made = super().construct_mapping(node, deep)
        return dict(zip(texts, made.values(), strict=True))


def _yaml(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506  (a SafeLoader)
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the file is not YAML: {str(error).splitlines()[0]}") from error


def as_yaml(document: dict[str, str]) -> str:
    """Return names and values as YAML."""
    text: str = yaml.safe_dump(document, allow_unicode=True)
    return text


def _flat(document: Any, prefix: str = "") -> dict[str, str]:
    """Return the leaves of nested objects by path; a value that is no text becomes JSON."""
    if not isinstance(document, dict):
        raise UsageError("the file holds no object of names and values")
    found: dict[str, str] = {}
    for name, value in document.items():
        place = f"{prefix}{name}"
        if isinstance(value, dict):
            found |= _flat(value, place + "/")
        else:
            found[place] = value if isinstance(value, str) else json.dumps(value, default=str)
        if len(found) > _LEAVES_MAX:
            raise UsageError(f"the file stands for more than {_LEAVES_MAX} values")
    return found


def _vault(text: str) -> dict[str, str]:
    """Read what `vault kv get -format=json PATH` prints, of either version of its key-value engine."""
    document = _json(text)
    data = document.get("data") if isinstance(document, dict) else None
    if isinstance(data, dict) and isinstance(data.get("data"), dict) and "metadata" in data:
        data = data["data"]
    if not isinstance(data, dict):
        raise UsageError("the file is not what `vault kv get -format=json PATH` prints")
    return _flat(data)


def _sops(text: str) -> dict[str, str]:
    """Read a file of SOPS, JSON or YAML, decrypted by the program `sops`, which knows where its keys are."""
    kind = "json" if text.lstrip()[:1] == "{" else "yaml"
    document = _yaml(text) if kind == "yaml" else _json(text)
    if not isinstance(document, dict) or not isinstance(document.get("sops"), dict):
        raise UsageError("the file is none of SOPS: it has no `sops` section", hint=f"--format {kind}")
    program = shutil.which("sops")
    if program is None:
        raise UsageError("the program `sops` is not installed", hint="it decrypts the file with the keys that you have for it")
    command = [program, "decrypt", "--input-type", kind, "--output-type", "json", "/dev/stdin"]
    try:
        done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=_SOPS_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"sops could not be run: {error}") from error
    if done.returncode:
        raise UsageError(f"sops could not decrypt the file: {done.stderr.decode(errors='replace').strip()[-300:]}")
    return _flat(_json(done.stdout.decode()))


def _dotenv(text: str) -> dict[str, str]:
    """Read KEY=VALUE lines: comments, `export`, single quotes as they are, double quotes with escapes."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.match(line)
        if match is None:
            raise UsageError(f"line {number} is not NAME=VALUE")
        value = match["value"]
        if value[:1] == '"':
            try:
                value = json.loads(value)
            except ValueError as error:
                raise UsageError(f"line {number} has an open or broken quote") from error
        elif value[:1] == "'":
            if len(value) < 2 or value[-1] != "'":
                raise UsageError(f"line {number} has an open quote")
            value = value[1:-1]
        else:
            value = value.split(" #", 1)[0].rstrip()
        found[match["name"]] = value
    return found


_READERS: dict[str, Callable[[str], dict[str, str]]] = {
    "dotenv": _dotenv,
    "json": lambda text: _flat(_json(text)),
    "yaml": lambda text: _flat(_yaml(text)),
    "vault": _vault,
    "sops": _sops,
}
FORMATS = tuple(_READERS)


def read_aws(path: str) -> dict[str, tuple[str, str]]:
    """Return (type, value) of every parameter below a path of AWS's Parameter Store, by the rest of its name.

    Who asks, and where, is what AWS's SDK takes from its environment and its files.

    Raises:
        UsageError: if boto3 is not installed, or AWS refuses.
    """
    try:
        import boto3
        import botocore.exceptions
    except ImportError as error:
        raise UsageError("boto3 is not installed", hint="pip install boto3") from error
    prefix = path.rstrip("/") + "/"
    found = {}
    try:
        pages = boto3.client("ssm").get_paginator("get_parameters_by_path")
        for page in pages.paginate(Path=path, Recursive=True, WithDecryption=True):
            for parameter in page["Parameters"]:
                found[parameter["Name"].removeprefix(prefix)] = (parameter["Type"], parameter["Value"])
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        raise UsageError(f"AWS could not be asked: {error}") from error
    return found
