"""Generate docs/man/{kmsfs.1,kmsd.8} from the command line itself: `python tests/arch/make_manual.py`."""

import re
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs" / "man"
_FILES = {
    "kmsfs": [
        ("$XDG_STATE_HOME/kmsfs, ~/.local/state/kmsfs", "State of the private daemon, logs of mounts; freshness records, which are root's in /var/lib/kmsfs."),
        ("/run/kmsd/kmsd.sock", "Socket of the system's daemon."),
        ("/etc/kmsfs/rotators, ~/.config/kmsfs/rotators", "Programs that rotate secrets."),
    ],
    "kmsd": [
        ("/var/lib/kmsd", "State of the system's daemon; its anchor in /var/lib/kmsd-anchor, its backups in /var/lib/kmsd-backups."),
        ("/etc/kmsd/guardrails.d", "Policies that nobody can loosen."),
    ],
}
_VARIABLES = {
    "kmsfs": [("KMSFS_SOCKET", "Socket of the daemon to talk to."), ("NO_COLOR", "Print no colours.")],
    "kmsd": [("KMSD_STATE", "Folder of the state."), ("KMSD_SOCKET", "Socket to listen on."), ("KMSD_GUARDRAILS", "Folder of guardrails."), ("KMSD_AWS_ENDPOINT", "Address for AWS's clients.")],
}


def roff(text):
    """Text as roff takes it: backslashes, hyphens, and a dot or quote at the beginning of a line."""
    text = " ".join((text or "").split()).replace("\\", "\\e").replace("-", "\\-")
    text = "".join(letter if ord(letter) < 128 else f"\\[u{ord(letter):04X}]" for letter in text)
    return re.sub(r"^([.'])", r"\\&\1", text)


def exit_codes():
    from kmsfs.errors import ExitCode

    meanings = {
        "OK": "all is well", "BUG": "a bug", "USAGE": "asked wrongly", "DENIED": "a policy says no", "NOT_FOUND": "there is no such thing",
        "CONFLICT": "not in this state", "INTEGRITY": "bytes are not what was written", "DAMAGE_FOUND": "damage was found",
        "UNSUPPORTED_FORMAT": "of a newer format", "WARNINGS_FOUND": "doctor has warnings", "UNAVAILABLE": "no daemon, or too busy",
        "STORAGE": "the disk or a program refuses", "SEALED": "the root key is missing", "PROTOCOL": "the other side speaks otherwise",
    }  # fmt: skip
    return [(str(int(code)), meanings[code.name]) for code in ExitCode]


def pairs(lines, title, rows):
    lines.append(f".SH {title}")
    for name, text in rows:
        lines += [".TP", f".B {roff(name)}", roff(text)]


def page(app, name, section, summary):
    import typer

    lines = [f'.TH {name.upper()} {section} "" "kmsfs" "kmsfs manual"', ".SH NAME", f"{name} \\- {roff(summary)}", ".SH SYNOPSIS", f".B {name}",
             "[\\fIOPTION\\fR]... \\fICOMMAND\\fR [\\fIARGUMENT\\fR]..."]  # fmt: skip
    lines += [".SH DESCRIPTION", roff(typer.main.get_command(app).help), ".SH COMMANDS"]

    def walk(command, words):
        if hasattr(command, "commands"):
            for inner_name, inner in sorted(command.commands.items()):
                if not inner.hidden:
                    walk(inner, [*words, inner_name])
            return
        arguments = " ".join(f"\\fI{roff(i.metavar or i.name.upper())}\\fR" for i in command.params if i.param_type_name == "argument")
        lines.extend([f".SS {roff(' '.join(words))} {arguments}".rstrip(), roff(command.help)])
        for item in command.params:
            if item.param_type_name == "option" and item.name != "help":
                lines.extend([".TP", f".B {roff(', '.join([*item.opts, *item.secondary_opts]))}", roff(item.help)])

    walk(typer.main.get_command(app), [name])
    pairs(lines, "FILES", _FILES[name])
    pairs(lines, "ENVIRONMENT", _VARIABLES[name])
    pairs(lines, "EXIT STATUS", exit_codes())
    other = {"kmsfs": "kmsd (8)", "kmsd": "kmsfs (1)"}[name]
    lines += [".SH SEE ALSO", f".BR {other}", ""]
    return "\n".join(lines)


def kmsfs():
    from kmsfs.cli.main import app

    return page(app, "kmsfs", 1, "keys, secrets and encrypted directories")


def kmsd():
    from kmsd.__main__ import app

    return page(app, "kmsd", 8, "the key daemon of kmsfs")


PAGES = {"kmsfs.1": kmsfs, "kmsd.8": kmsd}

if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, make in PAGES.items():
        (FOLDER / name).write_text(make())
