"""kmsfs doctor: each thing that is wrong is said, with why and how to mend it; what is right is not complained of."""

import json
import os

import pytest

from kmsfs.doctor.daemon import examine_daemon
from kmsfs.doctor.finding import Level
from kmsfs.doctor.machine import examine_machine
from kmsfs.errors import AccessDenied, DaemonUnreachable

NOW = 2_000_000_000.0
DAY = 86_400.0


@pytest.fixture
def root(tmp_path):
    """A machine on which all is well."""
    top = tmp_path / "root"
    for folder in ("proc/sys/fs/inotify", "proc/sys/kernel", "dev", "usr/bin", "sys/block"):
        (top / folder).mkdir(parents=True)
    (top / "proc/swaps").write_text("Filename Type Size Used Priority\n")
    (top / "proc/sys/fs/suid_dumpable").write_text("0")
    (top / "proc/sys/kernel/osrelease").write_text("6.1.0-13-amd64")
    (top / "proc/sys/fs/inotify/max_user_watches").write_text("500000")
    (top / "dev/fuse").touch(0o666)
    (top / "dev/fuse").chmod(0o666)
    (top / "usr/bin/fusermount3").touch()
    (top / "usr/bin/fusermount3").chmod(0o4755)
    return top


def machine(root, uid=1000):
    return {finding.subject: finding for finding in examine_machine(root, uid=uid)}


def test_a_machine_on_which_all_is_well(root):
    assert {finding.level for finding in machine(root).values()} == {Level.OK}


def add_swap(root, name):
    with (root / "proc/swaps").open("a") as table:
        table.write(f"{name} partition 1 0 -2\n")


def test_swap(root):
    add_swap(root, "/dev/zram0")
    (root / "sys/block/dm-3/dm").mkdir(parents=True)
    (root / "sys/block/dm-3/dm/uuid").write_text("CRYPT-PLAIN-swap")
    (root / "dev/mapper").mkdir()
    (root / "dev/dm-3").touch()
    (root / "dev/mapper/swap").symlink_to("../dm-3")
    add_swap(root, "/dev/mapper/swap")
    assert machine(root)["swap"].level is Level.OK
    add_swap(root, "/dev/sda2")
    found = machine(root)["swap"]
    assert found.level is Level.WARNING and found.found.startswith("/dev/sda2 ") and found.why and found.mend


@pytest.mark.parametrize(
    ("subject", "change", "level"),
    [
        ("core dumps", lambda root: (root / "proc/sys/fs/suid_dumpable").write_text("1"), Level.WARNING),
        ("kernel", lambda root: (root / "proc/sys/kernel/osrelease").write_text("5.10.0-26"), Level.WARNING),
        ("inotify", lambda root: (root / "proc/sys/fs/inotify/max_user_watches").write_text("8192"), Level.ADVICE),
        ("fuse", lambda root: (root / "dev/fuse").unlink(), Level.PROBLEM),
        ("fuse", lambda root: (root / "dev/fuse").chmod(0o600), Level.PROBLEM),
        ("fuse", lambda root: (root / "usr/bin/fusermount3").chmod(0o755), Level.PROBLEM),
    ],
)
def test_what_is_wrong_with_a_machine(root, subject, change, level):
    change(root)
    found = machine(root)
    assert found[subject].level is level and found[subject].why and found[subject].mend
    assert all(other.level is Level.OK for name, other in found.items() if name != subject)


def test_root_needs_no_helper(root):
    (root / "usr/bin/fusermount3").unlink()
    (root / "dev/fuse").chmod(0o600)
    assert machine(root, uid=0)["fuse"].level is Level.OK


class Session:
    """A daemon with given answers."""

    def __init__(self, state):
        self.state = state
        self.source = "passphrase"
        self.keys = {"k1": {"KeyId": "k1", "KeyState": "Enabled", "KeySpec": "SYMMETRIC_DEFAULT", "CreationDate": NOW - DAY}}
        self.rotating = False
        self.grants = []

    def call(self, operation, request):
        answers = {
            "GetStatus": lambda: {"Version": "1", "Principal": "me", "StateDirectory": str(self.state), "RootKeySource": self.source},
            "ListKeys": lambda: {"Keys": [{"KeyId": key} for key in self.keys]},
            "DescribeKey": lambda: {"KeyMetadata": self.keys[request["KeyId"]]},
            "ListGrants": lambda: {"Grants": self.grants},
            "GetKeyRotationStatus": lambda: {"KeyRotationEnabled": self.rotating},
        }
        return answers[operation]()


@pytest.fixture
def session(tmp_path):
    """A daemon with which all is well."""
    state = tmp_path / "state"
    (state / "audit").mkdir(parents=True)
    state.chmod(0o700)
    (state / "audit" / "audit.jsonl").write_text(json.dumps({"seq": 0, "op": "Decrypt", "ts": NOW - 5, "by": "grant:used"}) + "\n")
    # On another disk than the state, where this machine has one.
    archive = next((f"/dev/shm/{os.getpid()}.kmsbackup" for _ in [0] if os.path.isdir("/dev/shm")), str(tmp_path / "b"))
    open(archive, "w").close()
    (state / "last-backup.json").write_text(json.dumps({"created": NOW - DAY, "archive": archive}))
    yield Session(state)
    os.unlink(archive)


def daemon(session):
    found = {}
    for finding in examine_daemon(session, NOW):
        if finding.subject not in found or finding.level > found[finding.subject].level:
            found[finding.subject] = finding
    return found


def test_a_daemon_with_which_all_is_well(session):
    assert {name for name, finding in daemon(session).items() if finding.level > Level.OK} <= {"backup"}


def stamp(session, **changed):
    path = session.state / "last-backup.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


@pytest.mark.parametrize(
    ("subject", "change", "level"),
    [
        ("root key", lambda s: setattr(s, "source", "keyfile"), Level.ADVICE),
        ("state", lambda s: s.state.chmod(0o755), Level.PROBLEM),
        ("folders", lambda s: s.state.parent.chmod(0o777), Level.PROBLEM),
        ("clock", lambda s: (s.state / "audit" / "audit.jsonl").write_text(json.dumps({"seq": 0, "op": "Decrypt", "ts": NOW + 3600}) + "\n"), Level.WARNING),
        ("backup", lambda s: (s.state / "last-backup.json").unlink(), Level.WARNING),
        ("backup", lambda s: stamp(s, created=NOW - 8 * DAY), Level.WARNING),
        ("backup", lambda s: (s.state / "last-backup.json").write_text("rubbish"), Level.WARNING),
        ("backup", lambda s: stamp(s, archive="/nonexistent"), Level.ADVICE),
        ("keys", lambda s: s.keys["k1"].update(KeyState="PendingDeletion", DeletionDate=NOW + 3 * DAY), Level.WARNING),
        ("rotation", lambda s: s.keys["k1"].update(CreationDate=NOW - 400 * DAY), Level.ADVICE),
        ("grants", lambda s: s.grants.append({"GrantId": "idle", "CreationDate": NOW - 100 * DAY}), Level.ADVICE),
    ],
)
def test_what_is_wrong_with_a_daemon(session, subject, change, level):
    change(session)
    found = daemon(session)
    assert found[subject].level is level, found
    assert found[subject].why


def test_what_is_not_complained_of(session):
    session.keys["k1"]["CreationDate"] = NOW - 400 * DAY
    session.rotating = True
    session.grants = [{"GrantId": "used", "CreationDate": NOW - 100 * DAY}, {"GrantId": "new", "CreationDate": NOW - DAY}]
    assert {daemon(session)[name].level for name in ("keys", "grants")} == {Level.OK} and "rotation" not in daemon(session)


def test_no_daemon_and_keys_that_one_may_not_see(session):
    def unreachable(_operation, _request):
        raise DaemonUnreachable("no key daemon answers", hint="start one")

    session.call, answer = unreachable, session.call
    [found] = examine_daemon(session, NOW)
    assert found.level is Level.PROBLEM and found.mend == "start one"

    def denied(operation, request):
        if operation == "DescribeKey":
            raise AccessDenied("no")
        return answer(operation, request)

    session.call = denied
    assert daemon(session)["keys"].level is Level.OK
