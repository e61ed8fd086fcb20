"""mount.kmsfs: what mount(8), fstab and systemd's .mount units call. `mount -t kmsfs SOURCE TARGET -o OPTIONS`."""

import sys

from kmsfs.cli.output import fail
from kmsfs.errors import KmsfsError, UsageError

_FLAGS = {
    "ro": "--read-only", "allow_other": "--allow-other", "recover": "--recover",
    "no_low_latency": "--no-low-latency", "no_keys_ahead": "--no-keys-ahead",
    "follow": "--follow",
}  # fmt: skip
_VALUES = {
    "key": "--key", "transport": "--transport", "memory": "--memory", "cache": "--cache", "chunk": "--chunk", "idle": "--idle",
    "uid": "--uid", "gid": "--gid",
}  # fmt: skip
_IGNORED = frozenset(
    {
        "rw", "auto", "noauto", "defaults", "nofail", "_netdev", "user", "users", "nouser", "exec", "noexec", "suid",
        "nosuid", "dev", "nodev", "relatime", "noatime", "default_permissions",
    }
)  # fmt: skip
"""Options of mount(8) itself, or what is so in any case."""


def translate(arguments: list[str]) -> list[str]:
    """Return the `kmsfs` command line of a mount helper's arguments (mount(8), "External helpers").

    Raises:
        UsageError: for an option that is not known, or arguments that are none of a mount helper.
    """
    words: list[str] = []
    options: list[str] = []
    rest = iter(arguments)
    for word in rest:
        if word == "-o":
            options += next(rest, "").split(",")
        elif word in ("-s", "-f", "-n", "-v"):
            continue
        elif word in ("-t", "-N"):
            next(rest, None)
        else:
            words.append(word)
    if len(words) != 2:
        raise UsageError("mount.kmsfs takes a cipher directory and a mountpoint")
    command = ["--quiet"]
    extra: list[str] = []
    for option in options:
        name, equals, value = option.partition("=")
        if name == "socket" and value:
            command += ["--socket", value]
        elif name in _FLAGS and not equals:
            extra.append(_FLAGS[name])
        elif name in _VALUES and value:
            extra += [_VALUES[name], value]
        elif name and name not in _IGNORED and not name.startswith(("x-", "comment")):
            raise UsageError(
                f"unknown mount option {name!r}",
                hint=f"known: {', '.join(sorted([*_FLAGS, *_VALUES, 'socket']))}",
            )
    return [*command, "--no-autostart", "mount", *extra, *words]


def run() -> None:
    """Run as a mount helper: exit code 0, or 32 as mount(8) has it for a mount that failed."""
    from kmsfs.cli.main import app

    try:
        app(args=translate(sys.argv[1:]), prog_name="kmsfs", standalone_mode=False)
    except KmsfsError as error:
        fail(error)
        sys.exit(32)
