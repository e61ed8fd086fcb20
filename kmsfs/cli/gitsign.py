"""kmsfs git-sign: git's commits and tags signed by a KMS key, which stays where it is; checked by anybody's ssh-keygen."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from kmsfs.aead.sshkeys import ALGORITHMS, dss_numbers, sha512, ssh_public_key
from kmsfs.cli.output import call, fail, say
from kmsfs.errors import KmsfsError, ShapeError, StorageError, UnsupportedOperation, UsageError
from kmsfs.formats.sshsig import armored, mpint, parse_public_key, signed_data

app = typer.Typer(no_args_is_help=True, help="Sign git's commits and tags by a KMS key, in SSH's format.")
PROGRAM = "kmsfs-git-sign"
_COMMENT = "kmsfs:"
_HINT = "kmsfs key create --spec ECC_NIST_EDWARDS25519 --usage SIGN_VERIFY makes one that SSH knows"
KeyId = Annotated[str, typer.Argument(metavar="KEY", help="Key id, ARN or alias of a key for signing.")]


@app.command("public-key")
def public_key(key: KeyId) -> None:
    """Print the key as SSH writes it, for a forge or an allowed_signers file. Example: kmsfs git-sign public-key alias/git"""
    print(_line(key))


@app.command("configure")
def configure(
    key: KeyId,
    everywhere: Annotated[bool, typer.Option("--global", help="For all your repositories, not the one you are in.")] = False,
) -> None:
    """Have git sign with a key from now on. Example: kmsfs git-sign configure alias/git"""
    program = shutil.which(PROGRAM, path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))
    if program is None:
        raise UsageError(f"{PROGRAM} is not installed beside kmsfs", hint="install kmsfs again")
    scope = "--global" if everywhere else "--local"
    for name, value in (
        ("gpg.format", "ssh"), ("gpg.ssh.program", program), ("user.signingkey", f"key::{_line(key)}"),
        ("commit.gpgsign", "true"), ("tag.gpgsign", "true"),
    ):  # fmt: skip
        try:
            done = subprocess.run(["git", "config", scope, name, value], capture_output=True, text=True, check=False)
        except OSError as error:
            raise UsageError(f"git cannot be run: {error.strerror}", hint="install git") from error
        if done.returncode:
            raise UsageError(f"git refuses: {done.stderr.strip()}", hint="run this in a repository, or with --global")
    say(f"git signs with {key} from now on; who checks needs the line of `kmsfs git-sign public-key {key}`")


def _line(key: str) -> str:
    """Return a key's public line, with a comment that names the key."""
    _algorithms(call("DescribeKey", KeyId=key)["KeyMetadata"])
    answer = call("GetPublicKey", KeyId=key)
    return f"{ssh_public_key(answer['PublicKey'])} {_COMMENT}{key}"


def _algorithms(answer: dict[str, Any]) -> tuple[str, str]:
    spec, usage = answer["KeySpec"], answer["KeyUsage"]
    if spec not in ALGORITHMS or usage != "SIGN_VERIFY":
        raise UnsupportedOperation(f"git cannot sign by a key of spec {spec} for {usage}", hint=_HINT)
    return ALGORITHMS[spec]


def sign(namespace: str, line: str, message: bytes) -> str:
    """Return the signature file over a message by the KMS key that a public line names.

    Raises:
        ShapeError: if the line is no public key, or names no KMS key.
        UsageError: if the KMS key is another one than the line has.
        KmsfsError: as Sign.
    """
    public, comment = parse_public_key(line)
    if not comment.startswith(_COMMENT):
        raise ShapeError("the signing key names no KMS key", hint="`kmsfs git-sign configure KEY` sets git up")
    key = comment.removeprefix(_COMMENT)
    answer = call("GetPublicKey", KeyId=key)
    kms_algorithm, ssh_algorithm = _algorithms(answer)
    if parse_public_key(ssh_public_key(answer["PublicKey"]))[0] != public:
        raise UsageError(f"{key} is another key than git was set up with", hint=f"kmsfs git-sign configure {key}")
    data = signed_data(namespace, sha512(message))
    made: bytes = call("Sign", KeyId=key, Message=data, MessageType="RAW", SigningAlgorithm=kms_algorithm)["Signature"]
    if ssh_algorithm.startswith("ecdsa"):
        made = b"".join(map(mpint, dss_numbers(made)))
    return armored(public, namespace, ssh_algorithm, made)


def _other(arguments: list[str]) -> NoReturn:
    """Checking needs no KMS key: OpenSSH does it."""
    program = shutil.which("ssh-keygen")
    if program is None:
        raise UsageError("ssh-keygen is missing: it checks signatures", hint="apt install openssh-client")
    os.execv(program, [program, *arguments])  # noqa: S606  (a fixed program, no shell)


def run() -> None:
    """Be git's gpg.ssh.program: `-Y sign -n NAMESPACE -f PUBLIC-KEY-FILE [-U] FILE` is done here, the rest by ssh-keygen."""
    arguments = sys.argv[1:]
    try:
        if arguments[:2] != ["-Y", "sign"]:
            _other(arguments)
        words = [word for word in arguments[2:] if word != "-U"]
        if len(words) != 5 or words[0] != "-n" or words[2] != "-f":
            raise UsageError(f"{PROGRAM} is called by git", hint="`kmsfs git-sign configure KEY` sets git up")
        namespace, key_file, file = words[1], Path(words[3]), Path(words[4])
        try:
            text = sign(namespace, key_file.read_text(encoding="utf-8"), file.read_bytes())
            file.with_name(f"{file.name}.sig").write_text(text, encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise StorageError(f"{key_file} or {file} cannot be used: {error}") from error
    except KmsfsError as error:
        raise SystemExit(fail(error)) from error
