"""kmsfs volume key: which KMS key new files of a directory get."""

import errno
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from kmsfs.cli.output import facts, say, session, show
from kmsfs.errors import AccessDenied, KmsfsError, StorageError, UsageError
from kmsfs.mount.attributes import EFFECTIVE_KEY_ATTRIBUTE, KEY_ATTRIBUTE

app = typer.Typer(no_args_is_help=True, help="KMS keys of directories on a mounted volume.")
Place = Annotated[Path, typer.Argument(metavar="PATH", help="A directory of a mounted volume.")]


@app.command("set")
def set_key(
    path: Place,
    key: Annotated[str, typer.Argument(metavar="KEY", help="Key id, ARN or alias.")],
    existing: Annotated[
        bool,
        typer.Option("--existing", help="Also where there are files: they keep their key until `kmsfs rewrap`."),
    ] = False,
) -> None:
    """Give a directory and what will be below it a KMS key of its own: that key's policy says who reads it."""
    _require_mounted(path)
    if not path.is_dir():
        raise UsageError(f"{path} is no directory", hint="keys are given to directories")
    if not existing and any(path.iterdir()):
        raise UsageError(
            f"{path} is not empty: what is there would keep its key",
            hint="--existing gives the key to new files; after unmounting, `kmsfs rewrap CIPHERDIR` moves the others",
        )
    metadata = session().call("DescribeKey", {"KeyId": key})["KeyMetadata"]
    try:
        os.setxattr(path, KEY_ATTRIBUTE, metadata["KeyId"].encode())
    except OSError as error:
        raise _refusal(path, error) from error
    shown = {"Path": os.fspath(path), "KeyId": metadata["KeyId"], "KeyArn": metadata["Arn"]}
    show(shown, lambda: say(f"new files below {path} are under {metadata['Arn']}"))


@app.command()
def unset(path: Place) -> None:
    """Take a directory's own key away: new files get the key of the directory above. Others keep theirs."""
    _require_mounted(path)
    try:
        os.removexattr(path, KEY_ATTRIBUTE)
    except OSError as error:
        raise _refusal(path, error) from error
    show({"Path": os.fspath(path)}, lambda: say(f"{path} has no KMS key of its own any more"))


@app.command("show")
def show_key(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A directory or file of a mounted volume.")],
) -> None:
    """Tell which KMS key new files of a directory get, or a file is under."""
    key_id = _require_mounted(path)
    try:
        own = bool(os.getxattr(path, KEY_ATTRIBUTE))
    except OSError:
        own = False
    shown: dict[str, Any] = {"Path": os.fspath(path), "KeyId": key_id, "Own": own}
    try:
        shown["KeyArn"] = session().call("DescribeKey", {"KeyId": key_id})["KeyMetadata"]["Arn"]
    except KmsfsError as error:
        shown["Access"] = f"refused: {error.detail}"
    show(shown, lambda: facts(shown.items()))


def _require_mounted(path: Path) -> str:
    """Return the id of the KMS key at a place on a mount.

    Raises:
        UsageError: if it is on none.
        AccessDenied, StorageError: if it cannot be read.
    """
    try:
        return os.getxattr(path, EFFECTIVE_KEY_ATTRIBUTE).decode()
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENODATA):
            raise UsageError(
                f"{path} is not a directory or file of a mounted volume", hint="mount it: kmsfs mount CIPHERDIR MOUNTPOINT"
            ) from error
        raise _refusal(path, error) from error


def _refusal(path: Path, error: OSError) -> KmsfsError:
    if error.errno == errno.EPERM:
        return AccessDenied(f"{path}: only who mounted the volume, and root, may do that")
    if error.errno == errno.EACCES:
        return AccessDenied(
            f"{path}: the mount may not use that KMS key",
            hint="its user needs kms:GenerateDataKey and kms:Decrypt: kmsfs who-can kms:GenerateDataKey KEY",
        )
    if error.errno == errno.ENODATA:
        return UsageError(f"{path} has no KMS key of its own")
    return StorageError(f"{path}: {error.strerror}", os_errno=error.errno or errno.EIO)
