"""kmsfs age, and age-plugin-kmsfs: age's file keys wrapped by a KMS key (C2SP, age-plugin.md).

A file's key is encrypted by KMS under the context {"kmsfs:age": "v1"}: a key policy can tell it from other uses.
"""

import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from kmsfs.cli.output import call, fail, show
from kmsfs.errors import KmsfsError, ShapeError, UsageError
from kmsfs.formats import bech32
from kmsfs.formats.stanza import Stanza, read_stanza

app = typer.Typer(no_args_is_help=True, help="Encrypt files for age by a KMS key.")
_RECIPIENT, _IDENTITY = "age1kmsfs", "age-plugin-kmsfs-"
_STANZA = "kmsfs"
_CONTEXT = {"kmsfs:age": "v1"}
_ANY = ""
"""The key of an identity that opens whatever its user may decrypt; `age -j kmsfs` makes the same."""


@app.command("recipient")
def recipient(key: Annotated[str, typer.Argument(metavar="KEY", help="Key id, ARN or alias.")]) -> None:
    """Print what age encrypts to. Example: age -r "$(kmsfs age recipient alias/backups)" -o x.age x; age -d -j kmsfs x.age"""
    arn = call("DescribeKey", KeyId=key)["KeyMetadata"]["Arn"]
    answer = {"recipient": bech32.encode(_RECIPIENT, arn.encode()), "identity": bech32.encode(_IDENTITY, _ANY.encode()).upper()}
    show(answer, lambda: print(answer["recipient"]))


class Conversation:
    """Stanzas in and out, with whoever started the plugin."""

    def __init__(self) -> None:
        self._in, self._out = sys.stdin.buffer, sys.stdout.buffer

    def received(self) -> Iterator[Stanza]:
        """Yield what comes until `done`.

        Raises:
            ShapeError: if it ends before.
        """
        while (stanza := read_stanza(self._in.readline)) is not None:
            if stanza.kind == "done":
                return
            yield stanza
        raise ShapeError("age ended the conversation early")

    def say(self, kind: str, *arguments: str, body: bytes = b"") -> None:
        """Send a stanza and wait for its answer: whatever it is, what comes next is the same."""
        self._out.write(Stanza(kind, arguments, body).encode())
        self._out.flush()
        read_stanza(self._in.readline)

    def end(self) -> None:
        """Say that it is over: nothing answers that."""
        self._out.write(Stanza("done").encode())
        self._out.flush()


def _read(text: str, prefix: str) -> str:
    """Return what a recipient or identity holds.

    Raises:
        ShapeError: if it is not one of ours.
    """
    found, data = bech32.decode(text)
    if found != prefix:
        raise ShapeError("this is another plugin's")
    try:
        return data.decode("ascii")
    except UnicodeDecodeError as error:
        raise ShapeError("this names no KMS key") from error


def _check_identity(text: str) -> None:
    """Check that an identity is the one there is.

    Raises:
        ShapeError: if it is not.
    """
    if _read(text, _IDENTITY) != _ANY:
        raise ShapeError("this identity is of a newer kmsfs")


def wrap(talk: Conversation) -> None:
    """Be `recipient-v1`: wrap each file's key for each recipient.

    Raises:
        ShapeError: if the conversation is not one.
    """
    recipients: list[str] = []
    files: list[bytes] = []
    problems: list[tuple[str, int, str]] = []
    identities = 0
    for stanza in talk.received():
        if stanza.kind == "add-recipient" and len(stanza.arguments) == 1:
            recipients.append(stanza.arguments[0])
        elif stanza.kind == "add-identity":
            problems.append(("identity", identities, "an identity of kmsfs names no key to encrypt by: use `kmsfs age recipient KEY`"))
            identities += 1
        elif stanza.kind == "wrap-file-key":
            files.append(stanza.body)
    wrapped: list[tuple[int, bytes]] = []
    for place, text in enumerate(recipients):
        try:
            key = _read(text, _RECIPIENT)
            for number, file_key in enumerate(files):
                answer = call("Encrypt", KeyId=key, Plaintext=file_key, EncryptionContext=_CONTEXT)
                wrapped.append((number, answer["CiphertextBlob"]))
        except KmsfsError as error:
            problems.append(("recipient", place, error.detail))
    for kind, place, said in problems:
        talk.say("error", kind, str(place), body=said.encode())
    if not problems:
        for number, blob in wrapped:
            talk.say("recipient-stanza", str(number), _STANZA, body=blob)
    talk.end()


def unwrap(talk: Conversation) -> None:
    """Be `identity-v1`: open each file's key where the caller may.

    Raises:
        ShapeError: if the conversation is not one.
    """
    identities: list[str] = []
    files: dict[str, list[Stanza]] = {}
    for stanza in talk.received():
        if stanza.kind == "add-identity" and len(stanza.arguments) == 1:
            identities.append(stanza.arguments[0])
        elif stanza.kind == "recipient-stanza" and len(stanza.arguments) >= 2:
            files.setdefault(stanza.arguments[0], []).append(stanza)
    good = True
    for place, text in enumerate(identities):
        try:
            _check_identity(text)
        except KmsfsError as error:
            good = False
            talk.say("error", "identity", str(place), body=error.detail.encode())
    for file, stanzas in files.items() if good else ():
        _open(talk, file, stanzas)
    talk.end()


def _open(talk: Conversation, file: str, stanzas: list[Stanza]) -> None:
    """Send the key of a file, by the first stanza that opens; or why none of ours does."""
    refused: list[tuple[int, str]] = []
    for place, stanza in enumerate(stanzas):
        if stanza.arguments[1:] == (_STANZA,):
            try:
                plain: bytes = call("Decrypt", CiphertextBlob=stanza.body, EncryptionContext=_CONTEXT)["Plaintext"]
            except KmsfsError as error:
                refused.append((place, error.detail))
            else:
                talk.say("file-key", file, body=plain)
                return
    for place, said in refused:
        talk.say("error", "stanza", file, str(place), body=said.encode())


def run() -> None:
    """Be the program that age starts."""
    machines = {"recipient-v1": wrap, "identity-v1": unwrap}
    try:
        chosen = [word.removeprefix("--age-plugin=") for word in sys.argv[1:] if word.startswith("--age-plugin=")]
        if len(chosen) != 1 or chosen[0] not in machines:
            raise UsageError("age-plugin-kmsfs is started by age", hint="`kmsfs age recipient KEY` prints what age encrypts to")
        machines[chosen[0]](Conversation())
    except KmsfsError as error:
        raise SystemExit(fail(error)) from error
