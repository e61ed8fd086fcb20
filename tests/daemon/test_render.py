"""Files from templates, and a path of the tree as files: what is written, what is refused, and what follows a change."""

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from kmsfs import errors
from kmsfs.render import places
from kmsfs.render.sources import Sources
from kmsfs.render.template import render
from support.waiting import soon


@pytest.fixture
def sources(daemon):
    session = daemon.session()
    yield Sources(session)
    session.close()


@pytest.fixture
def memory():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture
def tree(call):
    call("PutParameter", Name="/re/db/pass-word", Value="s3cret", Type="SecureString", Overwrite=True)
    call("PutParameter", Name="/re/port", Value="5432", Type="String", Overwrite=True)


def kmsfs(daemon, *words, **options):
    environment = {**os.environ, "KMSFS_SOCKET": str(daemon.socket)}
    command = [sys.executable, "-m", "kmsfs.cli", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60, **options)


# --- templates ------------------------------------------------------------------------------------------------


def test_what_a_template_can_read(call, sources, tree, tmp_path):
    call("CreateSecret", Name="re-db", SecretString=json.dumps({"user": "app", "password": "p'w"}))
    (tmp_path / "head").write_text("# head\n")
    template = tmp_path / "t"
    template.write_text(
        '{% include "head" %}url={{ param("/re/db/pass-word") }}@{{ param("/re/port:1") }}\n'
        '{% for name, value in tree("/re").items() %}{{ name }}={{ value | tojson }}\n{% endfor %}'
        '{{ secret_json("re-db").password }} {{ secret("re-db") | length }}\n'
    )
    assert render(template, sources) == (
        b'# head\nurl=s3cret@5432\nDB_PASS_WORD="s3cret"\nPORT="5432"\np\'w 34\n'
    )
    touched = [("ssm", "/re/x"), ("ssm", "/re"), ("ssm", "/other"), ("secretsmanager", "any"), ("kms", "k")]
    events = [{"kind": "change", "source": source, "name": name} for source, name in touched]
    assert [sources.touched_by(event) for event in events] == [True, False, False, True, False]
    assert sources.touched_by({"kind": "reset"})


@pytest.mark.parametrize(
    "text, says",
    [
        ("{{ param('/re/none') }}", "not found"),
        ("a\n{% if %}", "t, line 2"),
        ("{{ nothing }}", "'nothing' is undefined"),
        ("{{ tree('/re').NONE }}", "no attribute 'NONE'"),
        ("{{ param.__globals__ }}", "unsafe|no attribute"),
        ("{{ ''.__class__.__mro__ }}", "unsafe|no attribute"),
        ("{{ param('/re/db/pass-word') + 1 }}", "TypeError"),
        ("{% include '../../etc/passwd' %}", "etc/passwd"),
        ("{{ secret_json('re-text') }}", "no JSON"),
        ("{% for n in range(10000000) %}{% endfor %}", "OverflowError|[Rr]ange"),
    ],
)
def test_what_it_cannot(call, sources, tree, tmp_path, text, says):
    call("PutParameter", Name="/re/unused", Value="1", Type="String", Overwrite=True)
    if "re-text" in text:
        call("CreateSecret", Name="re-text", SecretString="s3cret")
    (tmp_path / "t").write_text(text)
    with pytest.raises(errors.KmsfsError, match=says) as caught:
        render(tmp_path / "t", sources)
    assert "s3cret" not in str(caught.value)


def test_a_missing_template_is_named(sources, tmp_path):
    with pytest.raises(errors.InvalidRequest, match="none"):
        render(tmp_path / "none", sources)


# --- files ----------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_only_if_it_changes(tmp_path):
    path = tmp_path / "f"
    assert places.replace_file(path, b"1", None) and stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.stat()
    assert not places.replace_file(path, b"1", None) and path.stat().st_ino == before.st_ino
    path.chmod(0o640)
    assert places.replace_file(path, b"2", None) and stat.S_IMODE(path.stat().st_mode) == 0o640
    assert places.replace_file(path, b"2", 0o600) and stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(errors.StorageError):
        places.replace_file(tmp_path / "none" / "f", b"", None)
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.root
def test_a_replaced_file_keeps_its_owner(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"1")
    os.chown(path, 1234, 4321)
    assert places.replace_file(path, b"2", None)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 4321)


def test_only_memory_takes_a_tree(tmp_path, memory):
    places.require_memory(memory)
    for wrong in (tmp_path, memory / "none"):
        with pytest.raises(errors.UsageError):
            places.require_memory(wrong)


def test_files_change_together(memory):
    assert places.publish(memory, {"a": b"1", "d/e/f": b"1"})
    assert not places.publish(memory, {"a": b"1", "d/e/f": b"1"})
    stop = threading.Event()
    torn = []

    def look():
        while not stop.is_set():
            try:
                folder = os.open(memory / "..data", os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                # Where the link led to was removed between the two steps of following it.
                continue
            try:
                seen = []
                for name in ("a", "d/e/f"):
                    descriptor = os.open(name, os.O_RDONLY, dir_fd=folder)
                    seen.append(os.read(descriptor, 10))
                    os.close(descriptor)
                if len(set(seen)) > 1:
                    torn.append(seen)
            except FileNotFoundError:
                continue
            finally:
                os.close(folder)

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(200):
        assert places.publish(memory, {"a": b"%d" % number, "d/e/f": b"%d" % number})
    stop.set()
    reader.join()
    assert torn == []
    (memory / "..left").mkdir()
    assert places.publish(memory, {"d/x": b""})
    assert sorted(os.listdir(memory))[-1] == "d" and len(os.listdir(memory)) == 3
    assert stat.S_IMODE((memory / "d" / "x").stat().st_mode) == 0o600
    assert places.publish(memory, {}) and not places.publish(memory, {})


@pytest.mark.parametrize("names", [("a", "a/b"), ("../x",), ("..data/x",), ("a/../b",), ("a//b",), ("./a",)])
def test_names_that_lead_elsewhere_or_collide(memory, names):
    with pytest.raises(errors.InvalidRequest):
        places.publish(memory, dict.fromkeys(names, b""))
    assert os.listdir(memory) == []


def test_what_is_in_the_way_stays(memory):
    (memory / "a").write_text("mine")
    with pytest.raises(errors.StorageError):
        places.publish(memory, {"a": b"theirs"})
    assert (memory / "a").read_text() == "mine"


# --- the commands ---------------------------------------------------------------------------------------------


def test_render_once(daemon, tree, tmp_path):
    (tmp_path / "t").write_text('{{ param("/re/port") }}\n')
    mark = tmp_path / "ran"
    words = ("render", tmp_path / "t", tmp_path / "out", "--run", f"touch {mark}")
    done = kmsfs(daemon, "--json", *words)
    assert json.loads(done.stdout)["Changed"] and (tmp_path / "out").read_text() == "5432\n" and mark.exists(), done.stderr
    mark.unlink()
    assert json.loads(kmsfs(daemon, "--json", *words).stdout)["Changed"] is False and not mark.exists()
    failing = kmsfs(daemon, "render", tmp_path / "t", tmp_path / "new", "--run", "false")
    assert failing.returncode and "false ended with 1" in failing.stderr
    assert kmsfs(daemon, "render", tmp_path / "t", tmp_path / "new", "--mode", "9").returncode == 2


def begin(daemon, *words, said):
    environment = {**os.environ, "KMSFS_SOCKET": str(daemon.socket)}
    return subprocess.Popen([sys.executable, "-m", "kmsfs.cli", *map(str, words)], env=environment, stderr=said)


def test_render_follows(daemon, call, tree, tmp_path):
    (tmp_path / "t").write_text('{{ param("/re/port") }}')
    out, log, count = tmp_path / "out", tmp_path / "log", tmp_path / "count"
    (tmp_path / "note").write_text(f"#!/bin/sh\necho x >> {count}\n")
    (tmp_path / "note").chmod(0o755)
    with log.open("w") as said:
        process = begin(daemon, "render", tmp_path / "t", out, "--follow", "--run", tmp_path / "note", said=said)
        try:
            soon("5432", out.read_text)
            soon("x\n", count.read_text)
            for number in range(5):
                call("PutParameter", Name="/re/port", Value=str(number), Overwrite=True)
            soon("4", out.read_text)
            call("PutParameter", Name="/re/unused", Value="x", Type="String", Overwrite=True)
            call("DeleteParameter", Name="/re/port")
            soon(True, lambda: "stays as it is" in log.read_text())
            assert out.read_text() == "4"
            call("PutParameter", Name="/re/port", Value="back", Type="String")
            soon("back", out.read_text)
            soon(True, lambda: 3 <= count.read_text().count("x") <= 5)
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0


def test_sync_follows_and_outlives_the_daemon(fresh_daemon, memory, tmp_path):
    fresh_daemon.start()
    session = fresh_daemon.session()
    put = lambda name, value: session.call("PutParameter", {"Name": name, "Value": value, "Type": "SecureString", "Overwrite": True})
    put("/app/db/password", "1")
    put("/app/port", "2")
    with (tmp_path / "log").open("w") as said:
        process = begin(fresh_daemon, "secrets", "sync", "/app", memory, "-f", said=said)
        try:
            soon("1", (memory / "db" / "password").read_text)
            put("/app/db/password", "3")
            soon("3", (memory / "db" / "password").read_text)
            session.call("DeleteParameter", {"Name": "/app/port"})
            soon(False, (memory / "port").exists)
            session.close()
            fresh_daemon.stop()
            assert (memory / "db" / "password").read_text() == "3"
            fresh_daemon.start()
            session = fresh_daemon.session()
            put("/app/new", "4")
            soon("4", (memory / "new").read_text)
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
            session.close()


def test_sync_refuses_a_disk(daemon, tree, tmp_path):
    done = kmsfs(daemon, "secrets", "sync", "/re", tmp_path)
    assert done.returncode == 2 and "not in memory" in done.stderr and os.listdir(tmp_path) == []
