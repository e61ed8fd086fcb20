"""Files that are read one after the other cost few calls, those of other KMS keys or with a policy's no cost nothing more."""

import json
import os
import subprocess

import pytest

from support.peers import let_others_in
from support.waiting import soon

pytestmark = [pytest.mark.fuse, pytest.mark.root]
COUNT = 200


@pytest.fixture
def talk(daemon):
    session = daemon.session()
    yield session
    session.close()


def make_files(folder, count=COUNT):
    for number in range(count):
        (folder / f"f{number}").write_bytes(b"content of %d" % number)


def read_files(folder, order):
    for number in order:
        assert (folder / f"f{number}").read_bytes() == b"content of %d" % number


class Journal:
    """What kmsd recorded since it was last asked."""

    def __init__(self, state):
        self._path = state / "audit" / "audit.jsonl"
        self._seen = 0

    def news(self, talk):
        # The daemon answers after it has recorded; what it has recorded is on the disk by then.
        talk.call("GetStatus", {})
        records = [json.loads(line) for line in self._path.read_text().splitlines()]
        found, self._seen = records[self._seen :], len(records)
        return [(record["op"], record.get("err"), record.get("ec", {}).get("kmsfs:file"), record["req"]) for record in found]


def spent(news):
    """Return (calls that a mount waited for, keys that it got): the items of one batch have one call id."""
    keys = [request for name, _, file, request in news if name == "Decrypt" and file is not None]
    return len(set(keys)), len(keys)


@pytest.fixture
def journal(daemon):
    return Journal(daemon.state)


@pytest.fixture
def mount(make_mount):
    """Mounts whose backing store gives out its inodes in turn, whatever other tests do beside: keys are fetched in that order."""
    made = []

    def make(*options):
        mounted = make_mount(*options)
        subprocess.run(["mount", "-t", "tmpfs", "none", mounted.cipher], check=True)
        made.append(mounted)
        return mounted.start()

    yield make
    for mounted in made:
        mounted.stop()
        subprocess.run(["umount", "-l", mounted.cipher], check=True)


@pytest.mark.parametrize("order", [range(COUNT), range(COUNT - 1, -1, -1)])
@pytest.mark.parametrize("transport", ["kernel", "fusepy"])
def test_a_directory_that_is_read_through_costs_few_calls(mount, journal, talk, order, transport):
    mounted = mount("--transport", transport)
    make_files(mounted.plain)
    mounted.again()
    journal.news(talk)
    read_files(mounted.plain, order)
    calls, keys = spent(journal.news(talk))
    assert calls <= 40 and COUNT <= keys <= COUNT + 40


def test_few_files_of_many_cost_little_more_than_themselves(mount, journal, talk):
    mounted = mount()
    make_files(mounted.plain)
    mounted.again()
    journal.news(talk)
    read_files(mounted.plain, (7, 150))
    assert spent(journal.news(talk)) == (2, 2)


def test_it_can_be_turned_off(mount, journal, talk):
    mounted = mount("--no-keys-ahead")
    make_files(mounted.plain, 40)
    mounted.again()
    journal.news(talk)
    read_files(mounted.plain, range(40))
    assert spent(journal.news(talk)) == (40, 40)


def test_files_under_other_keys_are_left_alone(mount, journal, talk):
    mounted = mount()
    key = talk.call("CreateKey", {})["KeyMetadata"]
    (mounted.plain / "a").mkdir()
    make_files(mounted.plain / "a", 40)
    os.setxattr(mounted.plain / "a", "user.kmsfs.key", key["KeyId"].encode())
    for number in range(0, 40, 2):
        path = mounted.plain / "a" / f"f{number}"
        path.unlink()
        path.write_bytes(b"content of %d" % number)
    mounted.again()
    talk.call("DisableKey", {"KeyId": key["KeyId"]})
    journal.news(talk)
    read_files(mounted.plain / "a", range(1, 40, 2))
    news = journal.news(talk)
    assert [error for name, error, *_ in news if name == "Decrypt" and error] == []
    assert spent(news)[1] == 20


def test_a_damaged_neighbour_is_nobody_elses_trouble(mount, journal, talk):
    mounted = mount()
    make_files(mounted.plain, 40)
    mounted.stop()
    disk = sorted((path.stat().st_ino, path) for path in mounted.cipher.iterdir() if path.name[0] == "n")
    for _, path in disk[10:20]:
        path.write_bytes(os.urandom(4096))
    mounted.start()
    good = 0
    for number in range(40):
        try:
            read_files(mounted.plain, [number])
            good += 1
        except OSError:
            continue
    assert good == 30


def test_a_header_that_was_read_ahead_is_read_again_if_the_file_has_changed(mount):
    mounted = mount()
    make_files(mounted.plain, 12)
    disk = {path.stat().st_ino: path for path in mounted.cipher.iterdir() if path.name[0] == "n"}
    paths = [disk[(mounted.plain / f"f{number}").stat().st_ino] for number in range(12)]
    mounted.again()
    read_files(mounted.plain, range(3))
    for path in paths[3:]:
        with path.open("r+b") as stream:
            stream.seek(2000)
            stream.write(b"rubbish")
    for number in range(3, 12):
        with pytest.raises(OSError):
            (mounted.plain / f"f{number}").read_bytes()


@pytest.mark.parametrize("transport", ["kernel", "fusepy"])
def test_the_log_names_the_user_of_a_mount_that_others_may_enter(make_mount, daemon, talk, tmp_path, transport):
    let_others_in(tmp_path)
    mounted = make_mount("--allow-other", "--transport", transport).start()
    mounted.plain.chmod(0o755)
    for name in ("a", "b"):
        (mounted.plain / name).write_text(name)
        (mounted.plain / name).chmod(0o644)
    mounted.again()
    journal = Journal(daemon.state)
    journal.news(talk)
    script = ["setpriv", "--reuid", "4321", "--regid", "4321", "--clear-groups", "cat", str(mounted.plain / "a")]
    assert subprocess.run(script, capture_output=True, text=True, check=True).stdout == "a"
    (mounted.plain / "b").read_text()
    records = [json.loads(line) for line in (daemon.state / "audit" / "audit.jsonl").read_text().splitlines()]
    opened = [record for record in records if record["op"] == "Decrypt" and "kmsfs:file" in record.get("ec", {})]
    assert [(record["uid"], record["ctx_uid"]) for record in opened[-2:]] == [(0, 4321), (0, 0)]


def test_the_log_names_the_user_of_keys_that_were_asked_for_meanwhile(make_mount, daemon, talk, tmp_path):
    let_others_in(tmp_path)
    mounted = make_mount("--allow-other").start()
    mounted.plain.chmod(0o755)
    make_files(mounted.plain, 60)
    for path in mounted.plain.iterdir():
        path.chmod(0o644)
    mounted.again()
    journal = Journal(daemon.state)
    journal.news(talk)
    paths = [str(mounted.plain / f"f{number}") for number in range(60)]
    subprocess.run(["setpriv", "--reuid", "4321", "--regid", "4321", "--clear-groups", "cat", *paths], capture_output=True, check=True)
    records = [json.loads(line) for line in (daemon.state / "audit" / "audit.jsonl").read_text().splitlines()]
    opened = [record for record in records if record["op"] == "Decrypt" and "kmsfs:file" in record.get("ec", {})]
    assert len(opened) >= 60 and {record["ctx_uid"] for record in opened[-60:]} == {4321}


def test_revoking_while_keys_are_on_their_way_takes_them(mount, talk):
    mounted = mount()
    make_files(mounted.plain)
    mounted.again()
    read_files(mounted.plain, range(50))
    key = talk.call("DescribeKey", {"KeyId": "alias/kmsfs/default"})["KeyMetadata"]["KeyId"]
    talk.call("DisableKey", {"KeyId": key})
    soon(False, lambda: opens(mounted.plain / "f60"))
    assert not any(opens(mounted.plain / f"f{number}") for number in range(51, 130))
    talk.call("EnableKey", {"KeyId": key})
    soon(True, lambda: opens(mounted.plain / "f60"))
    read_files(mounted.plain, range(COUNT))


def opens(path):
    try:
        path.read_bytes()
    except OSError:
        return False
    return True
