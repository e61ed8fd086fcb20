"""Generate docs/reference/{operations,errors,cli}.md from the declarations: `python tests/arch/make_reference.py`."""

from pathlib import Path
from typing import get_type_hints

from kmsfs.api.registry import OPERATIONS
from kmsfs.errors import all_errors

FOLDER = Path(__file__).parents[2] / "docs" / "reference"


def fields(shape):
    wire = dict(zip(shape.__struct_fields__, shape.__struct_encode_fields__, strict=True))
    required = len(shape.__struct_fields__) - len(shape.__struct_defaults__)
    from msgspec import NODEFAULT

    out = []
    for position, name in enumerate(shape.__struct_fields__):
        default = shape.__struct_defaults__[position - required] if position >= required else NODEFAULT
        out.append(f"`{wire[name]}`" + ("*" if default is NODEFAULT else ""))
    get_type_hints(shape)
    return ", ".join(out) or "–"


def operations():
    lines = [
        "# Operations", "", "Generated from the declarations in `kmsfs/api/catalogue/`; a test keeps it so. A star marks a required",
        "field. Names, parameters and errors are AWS's where the service is `kms` or `ssm`.", "",
    ]  # fmt: skip
    for name, op in sorted(OPERATIONS.items()):
        states = ", ".join(sorted(state.value for state in op.key_states)) if op.resource.value not in ("none", "parameter", "secret", "iam") else "–"
        lines += [
            f"## {name}", "", op.summary, "",
            f"* service `{op.service}`, action `{op.action}`, acts on: {op.resource.value}",
            f"* key states: {states}; grantable: {'yes' if op.grantable else 'no'}; changes state: {'yes' if op.mutates else 'no'}",
            f"* request: {fields(op.request)}",
            f"* response: {fields(op.response)}",
            f"* audited fields: {', '.join(f'`{field}`' for field in op.audit) or '–'}",
            f"* errors: {', '.join(sorted({f'`{error.code}`' for error in op.errors})) or '–'}", "",
        ]  # fmt: skip
    return "\n".join(lines)


def errors():
    lines = [
        "# Errors", "", "Generated from `kmsfs/errors/`; a test keeps it so. Exit codes are by family and never reused.", "",
        "| error | code on the wire | exit | errno | retry | meaning |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    import errno

    for kind in all_errors():
        meaning = kind.__doc__.splitlines()[0]
        retry = "yes" if kind.retryable else "no"
        lines.append(f"| {kind.__name__} | {kind.code} | {int(kind.exit_code)} | {errno.errorcode[kind.errno]} | {retry} | {meaning} |")
    return "\n".join(lines) + "\n"


def commands():
    """One section a command: its help text as the parser has it."""
    import typer

    from kmsd.__main__ import app as daemon
    from kmsfs.cli.main import app

    lines = [
        "# Commands", "", "Generated from the command line itself; a test keeps it so. `--json`, `--quiet`, `--socket` and `--no-autostart`",
        "may stand before or after the command. Exit codes are in [errors](errors.md).", "",
    ]  # fmt: skip

    def section(command, words):
        if hasattr(command, "commands"):
            for name, inner in sorted(command.commands.items()):
                section(inner, [*words, name])
            return
        lines.extend([f"## {' '.join(words)}", "", " ".join((command.help or "").split()), ""])
        rows = []
        for item in command.params:
            if item.param_type_name == "argument":
                rows.append((item.name.upper(), "argument" + ("" if item.required else ", optional"), getattr(item, "help", None)))
            elif item.name != "help":
                rows.append(("`" + ", ".join([*item.opts, *item.secondary_opts]) + "`", "required" if item.required else "option", item.help))
        if rows:
            lines.extend(["| | | |", "|---|---|---|"])
            lines.extend(f"| {name} | {kind} | {' '.join((text or '').split()).replace('|', '/')} |" for name, kind, text in rows)
            lines.append("")

    section(typer.main.get_command(app), ["kmsfs"])
    section(typer.main.get_command(daemon), ["kmsd"])
    return "\n".join(lines)


PAGES = {"operations.md": operations, "errors.md": errors, "cli.md": commands}

if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for page, make in PAGES.items():
        (FOLDER / page).write_text(make())
