"""Generate docs/reference/operations.md and errors.md from the declarations: `python tests/arch/make_reference.py`."""

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
        states = ", ".join(sorted(state.value for state in op.key_states)) if op.resource.value not in ("none", "parameter") else "–"
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
        "# Errors", "", "Generated from `kmsfs/errors.py`; a test keeps it so. Exit codes are by family and never reused.", "",
        "| error | code on the wire | exit | errno | retry | meaning |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    import errno

    for kind in all_errors():
        meaning = kind.__doc__.splitlines()[0]
        retry = "yes" if kind.retryable else "no"
        lines.append(f"| {kind.__name__} | {kind.code} | {int(kind.exit_code)} | {errno.errorcode[kind.errno]} | {retry} | {meaning} |")
    return "\n".join(lines) + "\n"


PAGES = {"operations.md": operations, "errors.md": errors}

if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for page, make in PAGES.items():
        (FOLDER / page).write_text(make())
