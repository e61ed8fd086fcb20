"""The house rules: sizes, doors, banned calls, docs that match the code."""

import ast
import importlib.util
import re
import subprocess
import shutil
import struct
import sys
import tomllib
from pathlib import Path

import pytest

from kmsd.backup.archive import HEADER_BYTES as ARCHIVE_HEADER_BYTES
from kmsd.root.keyring import HEADER_BYTES
from kmsfs.api.registry import KMS_ACTIONS, OPERATIONS
from kmsfs.errors import KmsfsError
from kmsfs.formats import fileheader, freshness, listing
from kmsfs.formats.blob import parse_blob
from kmsfs.formats.context import canonical
from kmsfs.formats.frame import decode_request, encode_request
from kmsfs.aead.derived import kdf_of, open_derived

ROOT = Path(__file__).parents[2]
PRODUCT = sorted([*(ROOT / "kmsfs").rglob("*.py"), *(ROOT / "daemon").rglob("*.py")])
DOCS = ROOT / "docs"


def functions(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def test_sizes():
    lengths = []
    for path in PRODUCT:
        assert path.read_text().count("\n") <= 600, path
        for function in functions(path):
            length = function.end_lineno - function.lineno + 1
            assert length <= 80, f"{path}:{function.lineno} {function.name} has {length} lines"
            lengths.append(length)
    assert sorted(lengths)[len(lengths) * 9 // 10] <= 40


def test_no_asserts_no_stubs_no_unfinished_marks():
    for path in PRODUCT:
        text = path.read_text()
        tree = ast.parse(text)
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree)), path
        assert "NotImplementedError" not in text, path
        assert not re.search(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b", text), path
        assert not {"utils.py", "helpers.py", "common_utils.py"} & {path.name}


def test_the_top_level_holds_nothing_else():
    names = {p.name for p in ROOT.iterdir() if not p.name.startswith(".")}
    allowed = {"pyproject.toml", "README.md", "LICENSE", "kmsfs", "daemon", "tests", "systemd", "docs", "build", "dist"}
    assert names <= allowed, names - allowed
    assert not (ROOT / "daemon" / "__init__.py").exists()


def test_peer_credentials_have_one_door():
    for path in PRODUCT:
        if path.name != "peer.py":
            assert "getsockopt" not in path.read_text(), f"{path}: only server/peer.py says who calls"


def test_handlers_neither_validate_nor_authorise():
    for path in (ROOT / "daemon" / "kmsd").rglob("service.py"):
        assert "ShapeError" not in path.read_text(), f"{path}: shapes are declared in kmsfs/api"


def test_yaml_is_read_as_plain_values_only():
    """ADR 0018: by a SafeLoader, in the command line's own process, what the user hands over."""
    text = (ROOT / "kmsfs" / "cli" / "importing.py").read_text()
    used = {node.attr for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "yaml"}
    assert used == {"SafeLoader", "MappingNode", "YAMLError", "load", "safe_dump"}
    assert text.count("yaml.load(") == 1 and "yaml.load(text, _Loader)" in text


def test_no_dangerous_modules():
    for path in PRODUCT:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            assert not {"pickle", "marshal", "shelve"} & set(names), path
            assert "yaml" not in names or path.name == "importing.py", f"{path}: ADR 0018 lets one module read YAML"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), path


def test_declarations_are_whole():
    for operation in OPERATIONS.values():
        assert operation.summary.endswith(".")
        assert all(issubclass(error, KmsfsError) for error in operation.errors)
        encoded = dict(zip(operation.request.__struct_fields__, operation.request.__struct_encode_fields__, strict=True))
        for field in operation.audit:
            assert field in encoded, f"{operation.name} audits {field}, which it does not have"
            assert encoded[field] not in operation.secret
        for secret in operation.secret:
            assert secret in encoded.values()
        assert operation.action.startswith(("kms:", "ssm:", "secretsmanager:", "sts:", "iam:", "organizations:", "kmsfs:"))
    assert {"kms:Decrypt", "kms:ReEncryptFrom", "kms:ReEncryptTo"} <= KMS_ACTIONS


def test_generated_pages_are_fresh():
    spec = importlib.util.spec_from_file_location("make_reference", Path(__file__).with_name("make_reference.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for page, make in module.PAGES.items():
        assert (DOCS / "reference" / page).read_text() == make(), f"run tests/arch/make_reference.py: {page} is old"


def test_plots_are_of_the_tables():
    spec = importlib.util.spec_from_file_location("make_plots", Path(__file__).with_name("make_plots.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.plots()
    assert set(made) == {path.name for path in (DOCS / "plots").iterdir()}
    for name, text in made.items():
        assert (DOCS / "plots" / name).read_text() == text, f"run tests/arch/make_plots.py: {name} is old"


def test_manual_pages_are_fresh_and_groff_reads_them():
    spec = importlib.util.spec_from_file_location("make_manual", Path(__file__).with_name("make_manual.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for page, make in module.PAGES.items():
        assert (DOCS / "man" / page).read_text() == make(), f"run tests/arch/make_manual.py: {page} is old"
        if shutil.which("groff"):
            done = subprocess.run(["groff", "-man", "-Tutf8", "-ww", str(DOCS / "man" / page)], capture_output=True, text=True)
            assert done.returncode == 0 and done.stderr == ""
            assert "EXIT STATUS" in re.sub(r".\x08|\x1b\[[0-9;]*m", "", done.stdout)


# --- format pages ---------------------------------------------------------------------------------------------


def example(page, name):
    text = (DOCS / "formats" / page).read_text()
    return bytes.fromhex(re.search(rf"```hex {name}\n(.*?)```", text, re.S)[1].replace("\n", ""))


def table_after(page, heading):
    text = (DOCS / "formats" / page).read_text().split(heading, 1)[1]
    rows = []
    for line in text.splitlines():
        if re.match(r"\| \d+ \| \d+ \|", line):
            rows.append(tuple(int(cell) for cell in line.split("|")[1:3]))
        elif rows and not line.startswith("|"):
            break
    return rows


@pytest.mark.parametrize(
    ("page", "heading", "total"),
    [
        ("file-v1.md", "## Header slot", fileheader.SLOT_BYTES),
        ("file-v1.md", "## Attribute box", fileheader.ATTR_PLAIN_BYTES),
        ("file-v1.md", "An **entry**", fileheader.ENTRY_BYTES),
        ("blob-v1.md", "# Ciphertext blob", 84),
        ("store-v1.md", "## Keyring", HEADER_BYTES + 12),
        ("backup-v1.md", "## Head", ARCHIVE_HEADER_BYTES),
        ("freshness-v1.md", "## Rows", freshness.ROW_BYTES),
        ("freshness-v1.md", "`facts` has one row", freshness.FACTS_BYTES),
    ],
)
def test_field_tables_add_up(page, heading, total):
    rows = table_after(page, heading)
    offset = 0
    for at, length in rows:
        assert at == offset
        offset += length
    assert offset == total


def test_worked_examples():
    clear = fileheader.Clear(
        fileheader.FileSuite(1), 14, 1, bytes(range(16)), bytes(range(16, 32)), 7, 6, 3, bytes(range(32)),
        bytes(range(28)), b"w" * 132,
    )  # fmt: skip
    assert example("file-v1.md", "clear") == clear.pack()[:144]
    packed = example("file-v1.md", "attributes").ljust(432, b"\0")
    attributes = fileheader.parse_attributes(packed)
    assert (attributes.size, attributes.mtime_ns, attributes.name, attributes.extra_homes) == (5, 1, b"name", [b"h" * 16])
    assert attributes.pack() == packed
    word, epoch, pin = fileheader.ENTRY.unpack(example("file-v1.md", "entry"))
    assert (fileheader.split_location(word), epoch, pin) == ((2, 5), 0, bytes(range(28)))
    assert example("blob-v1.md", "context") == canonical({"a": "bc"})
    blob = parse_blob(example("blob-v1.md", "blob"))
    assert open_derived(kdf_of(bytes(32)), blob.head, blob.body, canonical({"a": "bc"})) == b"hello"
    assert freshness.parse_row(example("freshness-v1.md", "row")) == (7, bytes(range(1, 17)))
    listed = listing.parse_listing(example("listing-v1.md", "listing"))
    assert listed == [listing.ListedFile("nAA", b"a", 7, 8, 4096, bytes(range(16)), 5, 9, 10, 2, 0, 0, 0)]
    assert listing.pack_listing(listed) == example("listing-v1.md", "listing")
    raw = example("frame-v1.md", "frame")
    assert raw == encode_request(1, "DescribeKey", {"KeyId": "alias/a"})
    assert decode_request(raw[4:]).operation == "DescribeKey" and struct.unpack(">I", raw[:4])[0] == len(raw) - 4


def test_format_pages_name_their_version():
    for page, version in (("file-v1.md", fileheader.FORMAT_VERSION), ("blob-v1.md", 1), ("frame-v1.md", 1), ("freshness-v1.md", 1), ("listing-v1.md", listing.LISTING_VERSION), ("backup-v1.md", 1)):
        text = (DOCS / "formats" / page).read_text()
        assert f"Version {version}" in text
        assert re.search(r"## Changelog\n\n\* (\d+)", text)[1] == str(version)


def test_decisions_are_indexed():
    index = (DOCS / "adr" / "index.md").read_text()
    numbers = []
    for path in sorted((DOCS / "adr").glob("0*.md")):
        text = path.read_text()
        assert re.search(r"^Status: \w+$", text, re.M) and re.search(r"^Date: \d{4}-\d\d-\d\d$", text, re.M), path
        assert path.name in index
        numbers.append(int(path.name[:4]))
    assert numbers == list(range(1, len(numbers) + 1))


def test_links_in_the_docs_lead_somewhere():
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_readme_runs_what_ci_runs():
    readme = (ROOT / "README.md").read_text()
    for name in ("install", "test"):
        assert re.search(rf"<!-- command:{name} -->\n```sh\n.+?```\n<!-- end -->", readme, re.S)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for tool in ("ruff", "mypy", "pytest", "import-linter"):
        assert any(tool in dependency for dependency in project["project"]["optional-dependencies"]["test"])


def test_the_documentation_is_a_whole_site(tmp_path):
    """Every page in its place, every link and anchor there: warnings are errors."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", ROOT / ".mkdocs.yml", "-d", tmp_path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "guides" / "systemd.html").is_file() and (tmp_path / "search" / "search_index.json").is_file()


LATER = {"uvicorn", "prometheus_client", "croniter", "segno", "psycopg", "yaml", "pydantic", "jinja2", "sqlalchemy.dialects.postgresql", "detect_secrets", "boto3"}


@pytest.mark.parametrize(
    ("program", "more"),
    [("from kmsd.__main__ import main; main()", set()), ("from kmsfs.cli.main import run; run()", {"sqlalchemy", "cryptography", "asyncio", "watchdog"})],
)
def test_what_not_every_start_needs_is_loaded_later(program, more, tmp_path):
    """Each is tens of milliseconds, at each start of a daemon or a command."""
    words = ["serve", "--state", tmp_path / "none"] if "kmsd" in program else ["--socket", tmp_path / "none", "key", "list"]
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", program, *words], capture_output=True, text=True, check=False)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert "hint: " in done.stderr.splitlines()[-1] and {"kmsfs.errors", "typer"} <= loaded, done.stderr[-1000:]
    assert not loaded & (LATER | more)
