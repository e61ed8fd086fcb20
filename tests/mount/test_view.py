"""The parameter tree as a file system: who sees what, values as they are, changes at once, and a daemon that is away."""

import errno
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from conftest import let_others_in
from kmsfs.cli import secretsview
from kmsfs.errors import AccessDenied, UsageError
from kmsfs.render.sources import Sources
from kmsfs.view.readers import Readers
from kmsfs.view.tree import VALUE_NAME, tree_of
from support.peers import as_user
from support.waiting import soon

pytestmark = [pytest.mark.fuse, pytest.mark.root]


def test_names_as_a_tree():
    tree = tree_of(["/a/b", "/a", "top", "/a/c/d", "/x/../y", "/x/" + "n" * 256, "/ab/c"], "/")
    assert tree.folders == {"": {"a", "top", "ab"}, "a": {"b", "c", VALUE_NAME}, "a/c": {"d"}, "ab": {"c"}}
    assert tree.files == {"a/b": "/a/b", f"a/{VALUE_NAME}": "/a", "top": "top", "a/c/d": "/a/c/d", "ab/c": "/ab/c"}
    below = tree_of(["/a/b", "/a", "top", "/a/c/d", "/ab/c"], "/a/")
    assert below.folders == {"": {"b", "c"}, "c": {"d"}} and below.files == {"b": "/a/b", "c/d": "/a/c/d"}
    assert tree_of([], "/none").folders == {"": set()}


class View:
    def __init__(self, socket, folder, *options):
        self.folder = folder
        self.environment = {**os.environ, "KMSFS_SOCKET": str(socket)}
        command = [sys.executable, "-m", "kmsfs.cli", "secrets", "mount", "--foreground", str(folder), *options]
        self.said = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(command, env=self.environment, stderr=self.said)
        deadline = time.monotonic() + 20
        while not os.path.ismount(folder):
            assert self.process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)

    def stop(self):
        if os.path.ismount(self.folder):
            command = [sys.executable, "-m", "kmsfs.cli", "umount", str(self.folder)]
            done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        assert self.process.wait(10) == 0
        self.said.close()


@pytest.fixture
def view(daemon, tmp_path):
    made = []

    def make(*options, socket=None):
        folder = tmp_path / f"view{len(made)}"
        folder.mkdir()
        made.append(View(socket or daemon.socket, folder, *options))
        return folder

    yield make
    for one in made:
        one.stop()


def put(call, name, value, kind="SecureString"):
    call("PutParameter", Name=name, Value=value, Type=kind, Overwrite=True)


def test_values_and_changes(view, call):
    put(call, "/vi/db/password", "pä$$\n")
    put(call, "/vi/list", "a,b", "StringList")
    folder = view("--path", "/vi")
    assert sorted(os.listdir(folder)) == ["db", "list"]
    assert (folder / "db" / "password").read_bytes() == "pä$$\n".encode()
    assert subprocess.run(["cat", str(folder / "list")], capture_output=True, text=True, check=True).stdout == "a,b"
    assert subprocess.run(["grep", "-r", "b", str(folder)], capture_output=True, text=True, check=True).stdout
    with (folder / "list").open("rb") as stream:
        assert os.fstat(stream.fileno()).st_size == 0
        assert os.pread(stream.fileno(), 2, 1) == b",b"
        put(call, "/vi/list", "new", "StringList")
        assert os.pread(stream.fileno(), 9, 0) == b"a,b"
    assert (folder / "list").read_text() == "new"
    put(call, "/vi/more/deep/er", "x")
    soon("x", (folder / "more" / "deep" / "er").read_text)
    call("DeleteParameter", Name="/vi/list")
    soon(errno.ENOENT, (folder / "list").read_text)
    assert sorted(os.listdir(folder)) == ["db", "more"]


def test_more_names_than_a_page_has(daemon, view, call):
    for number in range(60):
        put(call, f"/vi6/n{number}", "x", "String")
    names = sorted(f"n{number}" for number in range(60))
    assert sorted(os.listdir(view("--path", "/vi6"))) == names
    session = daemon.session()
    assert sorted(Sources(session).below("/vi6")) == [f"/vi6/{name}" for name in names]
    session.close()


def test_nothing_can_be_changed(view, call):
    put(call, "/vi/a", "x")
    folder = view("--path", "/vi")
    for act in (
        lambda: (folder / "a").write_text("y"),
        lambda: (folder / "new").write_text("y"),
        (folder / "a").unlink,
        (folder / "d").mkdir,
        lambda: (folder / "a").rename(folder / "b"),
        lambda: os.truncate(folder / "a", 0),
    ):
        with pytest.raises(OSError) as caught:
            act()
        assert caught.value.errno in (errno.EROFS, errno.ENOENT, errno.ENOSYS)
    assert (folder / "a").read_text() == "x"


def cat(uid, path):
    command = ["setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups", "cat", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_everybody_sees_what_is_his(daemon, view, call, tmp_path):
    with as_user(daemon, 4321) as other:
        other("PutParameter", Name="/vi2/theirs", Value="t", Type="SecureString")
    put(call, "/vi2/ours", "o")
    let_others_in(tmp_path)
    folder = view("--path", "/vi2", "--allow-other")
    # The account's administrator sees all of it; nobody else is shown what the kernel has seen for him.
    assert sorted(os.listdir(folder)) == ["ours", "theirs"] and (folder / "ours").read_text() == "o"
    assert cat(4321, folder / "theirs").stdout == "t"
    refused = cat(4321, folder / "ours")
    assert refused.returncode and not refused.stdout and "No such file" in refused.stderr
    assert cat(9999, folder / "theirs").returncode
    records = [json.loads(line) for line in (daemon.state / "audit" / "audit.jsonl").read_text().splitlines()]
    assert any(record["op"] == "GetParameter" and record["uid"] == 4321 and record["res"] == "ok" for record in records)


def test_a_view_leaves_no_core_and_only_root_lets_others_in(daemon, view, tmp_path, monkeypatch, call):
    folder = view("--path", "/vi")
    [pid] = {
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if f"--foreground\0{folder}\0".encode() in path.read_bytes()
    }
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    with pytest.raises(UsageError, match="only root"):
        secretsview.mount(tmp_path / "v", "/", allow_other=True)
    with pytest.raises(AccessDenied):
        Readers(None, str(daemon.socket)).session_of((1234, 1234, ()))


def test_a_key_that_is_disabled_closes_the_file(view, call):
    key = call("CreateKey")["KeyMetadata"]["KeyId"]
    call("PutParameter", Name="/vi3/a", Value="x", Type="SecureString", KeyId=key)
    folder = view("--path", "/vi3")
    assert (folder / "a").read_text() == "x"
    call("DisableKey", KeyId=key)
    with pytest.raises(OSError):
        (folder / "a").read_text()
    assert os.listdir(folder) == ["a"]


def test_the_daemon_may_come_and_go(fresh_daemon, view):
    fresh_daemon.start()
    session = fresh_daemon.session()
    session.call("PutParameter", {"Name": "/a", "Value": "x", "Type": "String"})
    folder = view(socket=fresh_daemon.socket)
    assert (folder / "a").read_text() == "x"
    session.close()
    fresh_daemon.stop()
    with pytest.raises(OSError):
        (folder / "a").read_text()
    assert folder.is_dir()
    fresh_daemon.start()
    soon("x", (folder / "a").read_text)


def kmsfs(daemon, *words):
    environment = {**os.environ, "KMSFS_SOCKET": str(daemon.socket)}
    command = [sys.executable, "-m", "kmsfs.cli", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_in_the_background_and_bad_places(daemon, call, tmp_path):
    put(call, "/vi4/a", "x")
    folder, file = tmp_path / "v", tmp_path / "file"
    file.touch()
    for words, says in (
        ((file,), "File exists"),
        ((tmp_path, "--path", "vi4"), "begins with a slash"),
    ):
        (tmp_path / "other").mkdir(exist_ok=True)
        place = tmp_path / "other" if words[0] == tmp_path else words[0]
        done = kmsfs(daemon, "secrets", "mount", place, *words[1:])
        assert done.returncode == 2 and says in done.stderr
    done = kmsfs(daemon, "secrets", "mount", folder, "--path", "/vi4")
    assert done.returncode == 0 and "unmount with" in done.stderr, done.stderr
    assert (folder / "a").read_text() == "x"
    full = kmsfs(daemon, "secrets", "mount", folder)
    assert full.returncode == 2
    done = kmsfs(daemon, "umount", folder)
    assert done.returncode == 0 and not os.path.ismount(folder), done.stderr
    assert kmsfs(daemon, "umount", folder).returncode == 2
