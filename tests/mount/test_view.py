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

from support.peers import let_others_in
from kmsfs.cli import secretsview
from kmsfs.errors import AccessDenied, UsageError
from kmsfs.render.sources import Sources
from kmsfs.view import onlookers
from kmsfs.view.announce import steps
from kmsfs.view.readers import Readers
from kmsfs.view.tree import VALUE_NAME, tree_of
from support.inotify import Watch
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
    pids = {
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if f"--foreground\0{folder}\0".encode() in path.read_bytes()
    }
    # The view, and what calls for inotify.
    assert len(pids) == 2
    for pid in pids:
        assert re.search(r"^Max core file size +0 +0 ", Path(f"/proc/{pid}/limits").read_text(), re.MULTILINE)
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


def test_steps_from_one_tree_to_another():
    old = tree_of(["/a", "/b/c", "/b/d", "/gone/deep/x", "/same"], "/")
    new = tree_of(["/a/x", "/b/c", "/new/deep/y", "/same"], "/")
    made = steps(old, new, {"/b/c"})
    assert made == [
        ("unlink", "a"), ("unlink", "b/d"), ("unlink", "gone/deep/x"), ("rmdir", "gone/deep"), ("rmdir", "gone"),
        ("mkdir", "a"), ("mkdir", "new"), ("mkdir", "new/deep"), ("create", "a/x"), ("create", "new/deep/y"), ("modify", "b/c"),
    ]  # fmt: skip
    for verb, path in made:
        old.apply(verb, path, f"/{path}")
    assert (old.folders, old.files) == (new.folders, new.files)


def test_inotify_tells_of_changes(view, call):
    put(call, "/vi7/db/password", "old")
    put(call, "/vi7/db/user", "u")
    folder = view("--path", "/vi7")
    password = folder / "db" / "password"
    assert password.read_text() == "old"
    watch = Watch(folder, folder / "db", password)
    put(call, "/vi7/db/password", "new")
    seen = watch.until(password, "CLOSE_WRITE")
    assert {path for path, _ in seen} == {str(password)} and password.read_text() == "new"
    # On the directory as on the file.
    assert [flags for _, flags in seen].count({"CLOSE_WRITE"}) == 2
    put(call, "/vi7/db/added", "x")
    watch.until(folder / "db" / "added", "CREATE")
    put(call, "/vi7/other/deep/y", "x")
    watch.until(folder / "other", "CREATE")
    deep = Watch(folder / "other" / "deep")
    call("DeleteParameter", Name="/vi7/db/password")
    seen = watch.until(password, "DELETE")
    assert (str(password), {"DELETE_SELF"}) in seen
    # A parameter that gets others below it is a directory from then on.
    put(call, "/vi7/db/user/name", "n")
    seen = watch.until(folder / "db" / "user", "CREATE")
    assert (str(folder / "db" / "user"), {"DELETE"}) in seen and (str(folder / "db" / "user"), {"CREATE", "ISDIR"}) in seen
    call("DeleteParameter", Name="/vi7/other/deep/y")
    assert (str(folder / "other"), {"DELETE", "ISDIR"}) in watch.until(folder / "other", "DELETE")
    assert (str(folder / "other" / "deep"), {"DELETE_SELF"}) in deep.events() or deep.events() == []
    # What is no change of a value or name is not told, and nobody else can make such calls.
    call("AddTagsToResource", ResourceType="Parameter", ResourceId="/vi7/db/added", Tags=[{"Key": "k", "Value": "v"}])
    for act in (
        lambda: os.utime(folder / "db" / "added"), lambda: os.mkdir(folder / "mine"), lambda: (folder / "db" / "added").unlink(),
        lambda: os.rmdir(folder / "db"), lambda: (folder / "db" / "added").write_text("mine"),
    ):  # fmt: skip
        with pytest.raises(OSError) as caught:
            act()
        assert caught.value.errno == errno.EROFS
    assert watch.events() == []
    assert sorted(os.listdir(folder / "db")) == ["added", "user"]
    watch.close()
    deep.close()


def test_inotify_tells_of_a_file_that_somebody_reads(view, call):
    put(call, "/vi8/d/a", "old")
    folder = view("--path", "/vi8")
    watch = Watch(folder / "d")
    with (folder / "d" / "a").open() as stream:
        call("DeleteParameter", Name="/vi8/d/a")
        watch.until(folder / "d" / "a", "DELETE")
        soon([], lambda: os.listdir(folder))
        assert stream.read() == "old"
    put(call, "/vi8/d/a", "new")
    soon("new", (folder / "d" / "a").read_text)
    watch.close()


def test_inotify_goes_on_after_the_daemon_was_away(fresh_daemon, view):
    fresh_daemon.start()
    session = fresh_daemon.session()
    change = lambda value: session.call("PutParameter", {"Name": "/d/a", "Value": value, "Type": "String", "Overwrite": True})  # noqa: E731
    change("1")
    folder = view(socket=fresh_daemon.socket)
    watch = Watch(folder / "d" / "a")
    change("2")
    watch.until(folder / "d" / "a", "CLOSE_WRITE")
    session.close()
    fresh_daemon.stop()
    fresh_daemon.start()
    # What happened meanwhile is not known: read again.
    watch.until(folder / "d" / "a", "CLOSE_WRITE")
    session = fresh_daemon.session()
    change("3")
    watch.until(folder / "d" / "a", "CLOSE_WRITE")
    assert (folder / "d" / "a").read_text() == "3"
    session.close()
    watch.close()


def test_inotify_names_nothing_that_a_reader_cannot_see(daemon, view, call, tmp_path):
    with as_user(daemon, 4321) as other:
        put(call, "/vi9/shared/ours", "o")
        other("PutParameter", Name="/vi9/shared/theirs", Value="t", Type="String")
        other("PutParameter", Name="/vi9/only/theirs", Value="t", Type="String")
        let_others_in(tmp_path)
        folder = view("--path", "/vi9", "--allow-other")
        shared, only = folder / "shared", folder / "only"
        assert cat(4321, shared / "theirs").stdout == "t"
        # The watch stands for the other user's, who was shown both directories: inotify asks nobody who watches.
        watch = Watch(folder, shared, only)
        put(call, "/vi9/shared/secret-name", "x")
        seen = watch.until(shared, "ATTRIB")
        assert not any("secret-name" in path for path, _ in seen)
        put(call, "/vi9/shared/ours", "new")
        assert {path for path, _ in watch.until(shared, "ATTRIB")} == {str(shared)}
        # What he sees is named, as everybody who was shown the directory sees it.
        other("PutParameter", Name="/vi9/only/theirs", Value="t2", Type="String", Overwrite=True)
        watch.until(only / "theirs", "CLOSE_WRITE")
        other("PutParameter", Name="/vi9/only/more", Value="t2", Type="String")
        watch.until(only / "more", "CREATE")
        other("DeleteParameter", Name="/vi9/only/more")
        watch.until(only / "more", "DELETE")
        # Who was shown a directory may watch it still when he finds it no longer.
        put(call, "/vi9/only/ours", "x")
        other("DeleteParameter", Name="/vi9/only/theirs")
        assert cat(4321, only / "theirs").returncode
        watch.events()
        put(call, "/vi9/only/later", "x")
        assert {path for path, _ in watch.until(only, "ATTRIB")} == {str(only)}
        call("DeleteParameters", Names=["/vi9/only/later", "/vi9/only/ours"])
        soon(["shared"], lambda: sorted(os.listdir(folder)))
        watch.events()
        # The topmost directory is found by anybody, and names nothing.
        put(call, "/vi9/top", "x")
        assert {path for path, _ in watch.until(folder, "ATTRIB")} == {str(folder)}
        assert sorted(os.listdir(folder)) == ["shared", "top"]
        watch.close()


def test_beyond_so_many_users_no_name_is_told(monkeypatch):
    monkeypatch.setattr(onlookers, "_USERS_MAX", 2)
    watched = onlookers.Onlookers(None, "/")
    tree = tree_of(["/d/a"], "/")
    for uid in range(2):
        watched.note((uid, uid, ()), tree)
    assert not watched.may_not_know("d", "d/a", "/d/a") and watched.may_not_know("", "d", "/d/a")
    # Nobody knows what the third one may be watching.
    watched.note((2, 2, ()), tree)
    assert watched.may_not_know("d", "d/a", "/d/a")
