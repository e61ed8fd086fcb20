"""Plaintext secrets in a tree: found, shown by their first letters only, and moved."""

import json
import os
import subprocess
import sys

import pytest

from kmsfs.errors import ExitCode

TOKEN = "ghp_" + "abcdefghijklmnopqrstuvwxyz0123456789"
ACCESS = "AKIA" + "IOSFODNN7EXAMPLF"


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "app"
    (root / ".git").mkdir(parents=True)
    (root / ".git" / "config").write_text(f"token = {TOKEN}\n")
    jinja = "GREETING={{ name }} {% x %} {# y #}"
    (root / "settings.env").write_text(f'# settings\nexport API_TOKEN={TOKEN}\nDB_PASSWORD="correcthorse9battery"\nPORT=5432\n{jinja}\n')
    (root / "deep").mkdir()
    (root / "deep" / "code.py").write_text(f'key = "{ACCESS}"\nother = "x"\n')
    (root / "binary").write_bytes(b"\0" + TOKEN.encode())
    (root / "known.py").write_text(f'key = "{ACCESS}"  # pragma: allowlist secret\n')
    (root / "link").symlink_to(root / "settings.env")
    return root


@pytest.fixture
def kmsfs(daemon):
    def run(*words, stdin=""):
        environment = {**os.environ, "KMSFS_SOCKET": str(daemon.socket), "NO_COLOR": "1"}
        return subprocess.run([sys.executable, "-m", "kmsfs.cli", *words], env=environment, capture_output=True, text=True, timeout=120, input=stdin)

    return run


def test_what_is_found_and_what_is_shown(kmsfs, tree):
    done = kmsfs("--json", "scan", str(tree))
    assert done.returncode == ExitCode.WARNINGS_FOUND, done.stderr
    found = {(os.path.relpath(one["path"], tree), one["line"]) for one in json.loads(done.stdout)}
    assert found == {("settings.env", 2), ("settings.env", 3), ("deep/code.py", 1)}
    human = kmsfs("scan", str(tree))
    for text in (done.stdout, human.stdout, human.stderr):
        assert TOKEN not in text and ACCESS not in text and "correcthorse" not in text
    assert "gh… (40 characters)" in human.stdout
    (tree / "settings.env").unlink()
    assert kmsfs("scan", str(tree / "deep" / "code.py")).returncode == ExitCode.WARNINGS_FOUND
    (tree / "deep" / "code.py").unlink()
    assert kmsfs("scan", str(tree)).returncode == 0


def test_what_is_asked_for_wrongly(kmsfs, tree):
    assert kmsfs("scan", str(tree / "none")).returncode == ExitCode.USAGE
    assert kmsfs("scan", str(tree), "--template").returncode == ExitCode.USAGE


def test_moving_and_the_way_back(kmsfs, daemon, tree):
    before = (tree / "settings.env").read_text()
    done = kmsfs("scan", str(tree), "--move", "/scan", "--template", "--yes")
    assert done.returncode == ExitCode.WARNINGS_FOUND, done.stderr
    session = daemon.session()
    held = {p["Name"]: p["Value"] for p in session.call("GetParametersByPath", {"Path": "/scan", "Recursive": True, "WithDecryption": True})["Parameters"]}
    assert held == {"/scan/settings.env/API_TOKEN": TOKEN, "/scan/settings.env/DB_PASSWORD": "correcthorse9battery", "/scan/code.py/key": ACCESS}
    assert (tree / "settings.env").read_text() == before
    template = tree / "settings.env.j2"
    assert TOKEN not in template.read_text() and 'param("/scan/settings.env/API_TOKEN")' in template.read_text()
    out = tree.parent / "rendered"
    assert kmsfs("render", str(template), str(out)).returncode == 0
    assert out.read_text() == before
    # Again: what is there already stays; a template of somebody's is not overwritten.
    again = kmsfs("scan", str(tree), "--move", "/scan", "--template", "--yes")
    assert again.returncode == ExitCode.STORAGE
    session.close()


def test_each_is_asked_for(kmsfs, daemon, tree):
    done = kmsfs("scan", str(tree / "settings.env"), "--move", "/asked", stdin="n\ny\n")
    assert done.returncode == ExitCode.WARNINGS_FOUND
    names = [p["Name"] for p in daemon.session().call("GetParametersByPath", {"Path": "/asked", "Recursive": True})["Parameters"]]
    assert names == ["/asked/settings.env/DB_PASSWORD"]
