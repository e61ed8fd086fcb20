"""kmsfs report: one page, seen by a real browser, and served on loopback to whoever has its address."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from html.parser import HTMLParser

import pytest

from conftest import DaemonProcess
from kmsfs.errors import StorageError
from kmsfs.client.session import ClientSession
from kmsfs.report.collect import collect
from kmsfs.report.page import render_page
from kmsfs.report.timeline import STRETCHES, make_timeline
from support.peers import as_user

CHROMIUM = "/usr/bin/chromium"
EVIL = "<script>document.title='owned'</script><img src=x onerror=alert(1)>\" ' &amp;"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    made = DaemonProcess(tmp_path_factory.mktemp("kmsd"))
    assert made.init("--account", "111122223333").returncode == 0
    made.start()
    yield made
    made.stop()


def kmsfs(daemon, *words, code=0, **more):
    environment = {**os.environ, "KMSFS_SOCKET": str(daemon.socket), "NO_COLOR": "1"}
    done = subprocess.run([sys.executable, "-m", "kmsfs.cli", *map(str, words)], env=environment, capture_output=True, text=True, timeout=60, **more)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def things(daemon):
    """Keys in several states, one with a hostile description, and some calls that were refused."""
    call = daemon.session().call
    key = call("CreateKey", {"Description": EVIL, "Tags": [{"TagKey": "a", "TagValue": "b"}]})["KeyMetadata"]["KeyId"]
    call("CreateAlias", {"AliasName": "alias/shown", "TargetKeyId": key})
    call("EnableKeyRotation", {"KeyId": key, "RotationPeriodInDays": 90})
    doomed = call("CreateKey", {})["KeyMetadata"]["KeyId"]
    call("ScheduleKeyDeletion", {"KeyId": doomed, "PendingWindowInDays": 7})
    signer = call("CreateKey", {"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"})["KeyMetadata"]["KeyId"]
    call("PutParameter", {"Name": "/a", "Value": "v", "Type": "SecureString", "KeyId": key})
    call("CreateGrant", {"KeyId": key, "GranteePrincipal": "arn:kmsfs:iam::111122223333:uid/4321", "Operations": ["Decrypt"]})
    if os.getuid() == 0:
        with as_user(daemon, 4322) as other:
            for _ in range(3):
                try:
                    other("Encrypt", KeyId=key, Plaintext=b"x")
                except Exception:
                    continue
    return {"key": key, "doomed": doomed, "signer": signer}


class Page(HTMLParser):
    """What a page holds: its tags, and what they ask for from elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "action", "data")]


def test_the_file_is_whole_private_and_needs_nothing_from_elsewhere(daemon, things, tmp_path):
    target = tmp_path / "report.html"
    assert "open it in a browser" in kmsfs(daemon, "report", target)
    assert target.stat().st_mode & 0o777 == 0o600
    page = Page(target.read_text())
    assert not {"script", "img", "iframe", "link", "object"} & set(page.tags) and page.links == [] and "rect" in page.tags
    assert "File exists" in kmsfs(daemon, "report", target, code=int(StorageError.exit_code))
    text = kmsfs(daemon, "report", "-")
    assert "alias/shown" in text and "every 90 days" in text and things["signer"] in text




def test_the_document(daemon, things):
    found = json.loads(kmsfs(daemon, "--json", "report", "-"))
    keys = {key["id"]: key for key in found["keys"]}
    shown = keys[things["key"]]
    assert shown["aliases"] == ["alias/shown"] and shown["rotation_days"] == 90 and shown["parameters"] == 1 and shown["grants"] == 1
    who = {each["principal"].rpartition(":")[2] for each in shown["principals"]}
    assert f"uid/{os.getuid()}" in who and "uid/4321" in who
    assert keys[things["doomed"]]["state"] == "PendingDeletion" and keys[things["signer"]]["action"] == "kms:Sign"
    audit = found["audit"]
    assert audit["records"] == sum(s["ok"] + s["denied"] + s["failed"] for s in audit["stretches"]) > 0 and len(audit["stretches"]) == STRETCHES
    if os.getuid() == 0:
        assert ["arn:kmsfs:iam::111122223333:uid/4322", 3] in audit["refused"] and audit["denials"][0]["operation"] == "Encrypt"


class Asked:
    """A session whose calls a function answers."""

    pages = ClientSession.pages

    def __init__(self, answer):
        self.call = answer


@pytest.mark.root
def test_who_may_see_less_sees_less(daemon, things, tmp_path):
    """An ordinary user's report has his keys, and of a key that he may only decrypt with no more than that."""
    with as_user(daemon, 4321) as other:
        own = other("CreateKey")["KeyMetadata"]["KeyId"]
        found = collect(Asked(lambda operation, parameters: other(operation, **parameters)), tmp_path / "no-log", 1e9, 7, lambda _done: None)
    keys = {key["id"]: key for key in found["keys"]}
    assert own in keys and things["key"] not in keys and things["doomed"] not in keys
    assert "cannot read" in found["audit"]["unreadable"]
    assert "cannot be read" in render_page({**found, "mounts": []})


def test_a_timeline_counts_what_lies_in_its_time():
    def record(ts, **more):
        return {"seq": 1, "ts": ts, "op": "Encrypt", "req": "r", "uid": 7, **more}

    records = [record(99.0), record(100.0), record(150.0, err="AccessDeniedException", by="no-allow"), record(184.0, err="NotFoundException"),
               record(185.0), record(160.0, req="-")]  # fmt: skip
    made = make_timeline(records, "0" * 12, 100.0, 184.0)
    assert made.records == 3 and made.stretches[0].ok == 1 and made.stretches[50].denied == 1 and made.stretches[-1].failed == 1
    assert made.operations == [("Encrypt", 3)] and made.refused == [("arn:kmsfs:iam::000000000000:uid/7", 1)] and made.highest == 1


def test_an_empty_daemon_has_a_page_too():
    answers = {"GetStatus": {"Account": "0" * 12, "Version": "0", "Principal": "p", "RootKeySource": "keyfile", "UptimeSeconds": 1.0, "StateDirectory": "/nonexistent"},
               "ListAliases": {"Aliases": []}, "ListKeys": {"Keys": []}}  # fmt: skip
    made = {**collect(Asked(lambda operation, _parameters: answers[operation]), None, 1e9, 7, print), "mounts": []}
    page = render_page(made)
    assert "no key that you may see" in page and "cannot be read" in page


def browse(*arguments):
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=3000", "--enable-logging=stderr", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.skipif(not os.path.exists(CHROMIUM), reason="no browser here: .ci/run installs chromium")
def test_a_real_browser_shows_it(daemon, things, tmp_path):
    target, shot = tmp_path / "report.html", tmp_path / "shot.png"
    kmsfs(daemon, "report", target)
    seen = browse(f"--user-data-dir={tmp_path}/profile", "--dump-dom", f"file://{target}")
    assert "<title>kmsfs report" in seen.stdout and "owned" not in re.findall(r"<title>(.*?)</title>", seen.stdout)[0]
    assert "&lt;script&gt;" in seen.stdout and "<script>" not in seen.stdout  # the hostile description is text
    assert "alias/shown" in seen.stdout and "is deleted on" in seen.stdout
    assert "CONSOLE" not in seen.stderr and "Refused to" not in seen.stderr, seen.stderr
    browse(f"--user-data-dir={tmp_path}/profile", f"--screenshot={shot}", "--window-size=1200,2000", f"file://{target}")
    assert shot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and shot.stat().st_size > 20_000
    if "KMSFS_SHOT" in os.environ:
        shutil.copy(shot, os.environ["KMSFS_SHOT"])


@pytest.fixture
def served(daemon, things):
    environment = {**os.environ, "KMSFS_SOCKET": str(daemon.socket)}
    process = subprocess.Popen([sys.executable, "-m", "kmsfs.cli", "report", "--serve", "127.0.0.1:0"], env=environment, stdout=subprocess.PIPE, text=True)
    address = process.stdout.readline().strip()
    yield address
    process.send_signal(signal.SIGINT)
    process.wait(20)
    process.stdout.close()


def ask(address, **headers):
    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *arguments):
            return None

    method = headers.pop("method", "GET")
    request = urllib.request.Request(address, headers=headers, method=method)
    try:
        with urllib.request.build_opener(Stay).open(request, timeout=30) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()


def test_the_page_is_for_who_has_its_address(served, things):
    place, _, key = served.partition("/?key=")
    status, headers, _ = ask(served)
    cookie = headers["Set-Cookie"].split(";")[0]
    assert status == 303 and headers["Location"] == "/" and "HttpOnly" in headers["Set-Cookie"] and "SameSite=Strict" in headers["Set-Cookie"]
    status, headers, text = ask(place + "/", Cookie=cookie)
    assert status == 200 and things["key"] in text and headers["Cache-Control"] == "no-store" and "http-equiv=\"refresh\"" in text
    for bad in ({}, {"Cookie": "kmsfs-report=x"}, {"Cookie": ";;=\"["}, {"Cookie": "other=" + key}):
        assert ask(place + "/", **bad)[0] == 403
    assert ask(f"{place}/?key=x")[0] == 403
    # A page from elsewhere that has its own name point to loopback does not get in.
    assert ask(place + "/", Cookie=cookie, Host="evil.example")[0] == 400
    assert ask(place + "/keys", Cookie=cookie)[0] == 404 and ask(place + "/", Cookie=cookie, method="POST")[0] == 404
    status, _, text = ask(place + "/", Cookie=cookie, method="HEAD")
    assert status == 200 and text == ""


def test_the_page_tells_when_the_daemon_is_away(make_daemon, tmp_path):
    other = make_daemon()
    environment = {**os.environ, "KMSFS_SOCKET": str(other.socket)}
    process = subprocess.Popen([sys.executable, "-m", "kmsfs.cli", "--no-autostart", "report", "--serve", "127.0.0.1:0"], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        address = process.stdout.readline().strip()
        place = address.partition("/?key=")[0]
        cookie = ask(address)[1]["Set-Cookie"].split(";")[0]
        assert ask(place + "/", Cookie=cookie)[0] == 200
        other.stop()
        assert ask(place + "/", Cookie=cookie)[0] == 503
        other.start()
        assert ask(place + "/", Cookie=cookie)[0] == 200
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)
        process.stdout.close()


def test_wrong_uses_are_said(daemon):
    assert "goes into a FILE" in kmsfs(daemon, "report", code=2)
    assert "goes into a FILE" in kmsfs(daemon, "report", "x.html", "--serve", "127.0.0.1:1", code=2)
    assert "not on loopback" in kmsfs(daemon, "report", "--serve", "0.0.0.0:1", code=2)
