"""kmsfs scan: plaintext secrets in a tree, and their way into the parameter tree."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from kmsfs.cli.output import SETTINGS, call, say, show, table
from kmsfs.errors import ExitCode, ParameterAlreadyExists, StorageError, UsageError

_SKIPPED_FOLDERS = frozenset({".git", ".hg", ".svn", "node_modules", "__pycache__", ".venv"})
_FILE_MAX_BYTES = 4 << 20
_LOOK_BYTES = 8192
_WORD = r"[^\s\"'`,;=<>(){}\[\]]"
"""What a token is made of: a detector may name only a part of one."""
_NAME = re.compile(r"[\"']?(?P<name>[A-Za-z_][A-Za-z0-9_.-]*)[\"']?\s*[:=]")
_UNFIT = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True)
class Finding:
    """A line that looks as if it held a secret: the file, the line's number, what kind, and the secret itself."""

    path: Path
    line: int
    kind: str
    secret: str

    def document(self) -> dict[str, Any]:
        """Return it without the secret."""
        return {"path": os.fspath(self.path), "line": self.line, "kind": self.kind, "secret": self.masked}

    @property
    def masked(self) -> str:
        """The secret's first letters, for who knows it."""
        return f"{self.secret[:2]}… ({len(self.secret)} characters)" if len(self.secret) > 8 else f"({len(self.secret)} characters)"


def scan(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder, or a file.")],
    move: Annotated[
        str | None, typer.Option(metavar="PATH", help="Offer to store each as a SecureString below this path of the parameter tree.")
    ] = None,
    *,
    template: Annotated[
        bool, typer.Option("--template", help="With --move: write FILE.j2 beside each file, for `kmsfs render`, with the names in place of the secrets.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --move: store all without asking.")] = False,
) -> None:
    """Find plaintext secrets in a tree by detect-secrets. Example: kmsfs scan ~/app --move /app. Exit code 23 if there are any.

    No file is changed. A line that says `pragma: allowlist secret` is passed over.
    """
    if template and move is None:
        raise UsageError("--template goes with --move")
    found = list(_scan(folder))
    show([finding.document() for finding in found], lambda: _print(found))
    if move is not None:
        _move(found, move, template=template, yes=yes)
    raise typer.Exit(ExitCode.WARNINGS_FOUND if found else ExitCode.OK)


def _print(found: list[Finding]) -> None:
    if found:
        table(("where", "what", "secret"), [(f"{one.path}:{one.line}", one.kind, one.masked) for one in found])
    say(f"{len(found)} line(s) look as if they held a secret")


def _scan(folder: Path) -> Iterator[Finding]:
    try:
        from detect_secrets.core.secrets_collection import SecretsCollection
        from detect_secrets.settings import default_settings
    except ImportError as error:
        raise UsageError("detect-secrets is not installed", hint="pip install 'kmsfs[scan]'") from error
    if not folder.exists():
        raise UsageError(f"{folder} is not there")
    with default_settings():
        for path in _files(folder):
            lines = _lines(path)
            if lines is None:
                continue
            collection = SecretsCollection()
            collection.scan_file(os.fspath(path))
            seen = set()
            for _, secret in sorted(collection, key=lambda item: (item[1].line_number, item[1].type)):
                line = lines[secret.line_number - 1] if secret.line_number <= len(lines) else ""
                whole = _whole(line, secret.secret_value or "")
                if whole and (secret.line_number, whole) not in seen:
                    seen.add((secret.line_number, whole))
                    yield Finding(path, secret.line_number, secret.type, whole)


def _files(folder: Path) -> Iterator[Path]:
    if folder.is_file():
        yield folder
        return
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - _SKIPPED_FOLDERS)
        for name in sorted(names):
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
                yield path


def _lines(path: Path) -> list[str] | None:
    """Return a text file's lines; nothing of one that is none, too big or not ours to read."""
    try:
        if path.stat().st_size > _FILE_MAX_BYTES:
            say(f"{path} is too big and was passed over")
            return None
        raw = path.read_bytes()
    except OSError as error:
        say(f"{path} was passed over: {error.strerror}")
        return None
    return None if b"\0" in raw[:_LOOK_BYTES] else raw.decode(errors="replace").splitlines()


def _whole(line: str, part: str) -> str:
    """Return the whole token of which a detector names a part: half a secret must not be taken for it."""
    if not part:
        return ""
    at = line.find(part)
    if at < 0 or any(character in part for character in " \t"):
        return part
    begin, end = at, at + len(part)
    while begin > 0 and re.match(_WORD, line[begin - 1]):
        begin -= 1
    while end < len(line) and re.match(_WORD, line[end]):
        end += 1
    return line[begin:end]


def _move(found: list[Finding], below: str, *, template: bool, yes: bool) -> None:
    stored: dict[Path, list[tuple[str, str]]] = {}
    names: dict[str, str] = {}
    for finding in found:
        name = _name_of(finding, below, names)
        if not yes and not typer.confirm(f"{finding.path}:{finding.line} {finding.kind}: store it as {name}?", err=True):
            continue
        names[name] = finding.secret
        _store(name, finding.secret)
        stored.setdefault(finding.path, []).append((finding.secret, name))
        say(f"{finding.path}:{finding.line} is {name} now; take it out of the file, and change it if others have seen it")
    if template:
        for path, secrets in stored.items():
            _write_template(path, secrets)


def _name_of(finding: Finding, below: str, taken: dict[str, str]) -> str:
    """Return a parameter's name: the file's, and what stands before the secret in its line."""
    lines = _lines(finding.path) or []
    line = lines[finding.line - 1] if finding.line <= len(lines) else ""
    before = _NAME.match(line.strip().removeprefix("export ").strip()) if finding.secret in line else None
    last = before["name"] if before is not None else f"line{finding.line}"
    base = f"{below.rstrip('/')}/{_UNFIT.sub('-', finding.path.name).strip('-.') or 'file'}/{last}"
    name, number = base, 2
    while taken.get(name, finding.secret) != finding.secret:
        name, number = f"{base}-{number}", number + 1
    return name


def _store(name: str, secret: str) -> None:
    try:
        call("PutParameter", Name=name, Value=secret, Type="SecureString")
    except ParameterAlreadyExists:
        held = call("GetParameter", Name=name, WithDecryption=True)["Parameter"]["Value"]
        if held != secret:
            raise


def _write_template(path: Path, secrets: list[tuple[str, str]]) -> None:
    target = path.with_name(path.name + ".j2")
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as source:
        text = source.read()
    names = dict(secrets)
    # Longest first: one secret may be a part of another. What means something to Jinja is said as a text.
    wanted = re.compile("|".join([*map(re.escape, sorted(names, key=len, reverse=True)), r"{{|{%|{#"]))
    text = wanted.sub(
        lambda found: f"{{{{ param({json.dumps(names[found[0]])}) }}}}" if found[0] in names else f'{{{{ "{found[0]}" }}}}', text
    )
    try:
        with target.open("x", encoding="utf-8", errors="surrogateescape", newline="") as stream:
            stream.write(text)
    except OSError as error:
        raise StorageError(f"cannot write {target}: {error.strerror}") from error
    if not SETTINGS.as_json:
        say(f"kmsfs render {target} {path}")
