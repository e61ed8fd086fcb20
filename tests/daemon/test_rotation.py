"""Rotation of secrets: the state at kmsd, the four steps by programs, and a real PostgreSQL."""

import glob
import datetime
import json
import os
import shutil
import subprocess
import sys
import time
import uuid

import pytest

from kmsfs.errors import ExitCode, InvalidRequest, KmsfsError, NotFound
from support.peers import let_others_in

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def session(daemon):
    return daemon.session()


@pytest.fixture
def secret(session):
    name = f"rotated/{uuid.uuid4().hex[:8]}"
    session.call("CreateSecret", {"Name": name, "SecretString": "first"})
    return name


@pytest.fixture
def kmsfs(daemon, tmp_path):
    folder = tmp_path / "config" / "kmsfs" / "rotators"
    folder.mkdir(parents=True)

    def run(*words, **environment):
        variables = {**os.environ, "KMSFS_SOCKET": str(daemon.socket), **environment}
        return subprocess.run([sys.executable, "-m", "kmsfs.cli", *words], env=variables, capture_output=True, text=True, timeout=120)

    return run


def stages(session, name):
    return session.call("DescribeSecret", {"SecretId": name}).get("VersionIdsToStages", {})


def value(session, name, **which):
    return session.call("GetSecretValue", {"SecretId": name, **which})["SecretString"]


def token():
    return str(uuid.uuid4())


# --- at kmsd ----------------------------------------------------------------------------------------------------


def test_the_life_of_a_rotation(session, secret):
    made = token()
    answer = session.call("RotateSecret", {"SecretId": secret, "RotationLambdaARN": "mine", "ClientRequestToken": made})
    assert answer["VersionId"] == made and stages(session, secret)[made] == ["AWSPENDING"]
    # The version has no value until the rotator gives it one, and cannot become current before.
    with pytest.raises(NotFound):
        value(session, secret, VersionId=made)
    with pytest.raises(NotFound):
        value(session, secret, VersionStage="AWSPENDING")
    [current] = [v for v, held in stages(session, secret).items() if "AWSCURRENT" in held]
    move = {"SecretId": secret, "VersionStage": "AWSCURRENT", "MoveToVersionId": made, "RemoveFromVersionId": current}
    with pytest.raises(KmsfsError):
        session.call("UpdateSecretVersionStage", move)
    # The same request again is the same rotation; another one waits.
    again = session.call("RotateSecret", {"SecretId": secret, "ClientRequestToken": made})
    assert again["VersionId"] == made
    with pytest.raises(KmsfsError, match="previous rotation isn't complete"):
        session.call("RotateSecret", {"SecretId": secret})
    session.call("PutSecretValue", {"SecretId": secret, "ClientRequestToken": made, "VersionStages": ["AWSPENDING"], "SecretString": "second"})
    assert value(session, secret) == "first" and value(session, secret, VersionStage="AWSPENDING") == "second"
    session.call("UpdateSecretVersionStage", move)
    assert value(session, secret) == "second" and value(session, secret, VersionStage="AWSPREVIOUS") == "first"
    told = session.call("DescribeSecret", {"SecretId": secret})
    assert told["LastRotatedDate"] and told["RotationEnabled"] and "NextRotationDate" not in told
    assert session.call("ListDueRotations", {})["Rotations"] == []


def test_schedules(session, secret):
    def rotate(**rules):
        return session.call("RotateSecret", {"SecretId": secret, "RotationLambdaARN": "mine", "RotateImmediately": False, "RotationRules": rules})

    for seconds, rules in ((30 * 86_400, {"AutomaticallyAfterDays": 30}), (4 * 3_600, {"ScheduleExpression": "rate(4 hours)"}),
                           (86_400, {"ScheduleExpression": "rate(1 day)"})):  # fmt: skip
        assert "VersionId" not in rotate(**rules)
        told = session.call("DescribeSecret", {"SecretId": secret})
        assert abs(told["NextRotationDate"] - told["LastChangedDate"] - seconds) < 1
    rotate(ScheduleExpression="cron(0 8 1 * ? *)")
    due = datetime.datetime.fromtimestamp(session.call("DescribeSecret", {"SecretId": secret})["NextRotationDate"], datetime.UTC)
    assert (due.day, due.hour, due.minute, due.second) == (1, 8, 0, 0) and due.timestamp() > time.time()
    for rules in ({"ScheduleExpression": "rate(1 hour)"}, {"ScheduleExpression": "cron(0 * * * ? *)"},
                  {"AutomaticallyAfterDays": 1, "ScheduleExpression": "cron(0 8 1 * ? *)"}, {"ScheduleExpression": "rate(9999 days)"},
                  {"ScheduleExpression": "daily"}, {"AutomaticallyAfterDays": 1, "ScheduleExpression": "rate(1 day)"}):  # fmt: skip
        with pytest.raises(InvalidRequest):
            rotate(**rules)
    assert session.call("ListDueRotations", {})["Rotations"] == []
    session.call("CancelRotateSecret", {"SecretId": secret})
    told = session.call("DescribeSecret", {"SecretId": secret})
    assert not told["RotationEnabled"] and "NextRotationDate" not in told


def test_what_cannot_rotate(session, secret):
    with pytest.raises(KmsfsError, match="No Lambda"):
        session.call("RotateSecret", {"SecretId": secret})
    with pytest.raises(InvalidRequest):
        session.call("RotateSecret", {"SecretId": secret, "RotationLambdaARN": "../../bin/sh"})
    session.call("CreateSecret", {"Name": f"{secret}/empty"})
    with pytest.raises(KmsfsError, match="no value"):
        session.call("RotateSecret", {"SecretId": f"{secret}/empty", "RotationLambdaARN": "mine"})
    [first] = stages(session, secret)
    with pytest.raises(KmsfsError, match="exists already"):
        session.call("RotateSecret", {"SecretId": secret, "RotationLambdaARN": "mine", "ClientRequestToken": first})


def test_a_schedule_and_a_pending_rotation_survive_a_restart(make_daemon):
    daemon = make_daemon()
    session = daemon.session()
    session.call("CreateSecret", {"Name": "kept", "SecretString": "first"})
    made = session.call("RotateSecret", {"SecretId": "kept", "RotationLambdaARN": "mine", "RotationRules": {"AutomaticallyAfterDays": 2}})
    daemon.stop()
    session = daemon.start().session()
    [due] = session.call("ListDueRotations", {})["Rotations"]
    assert (due["Name"], due["ClientRequestToken"]) == ("kept", made["VersionId"])


# --- by programs ------------------------------------------------------------------------------------------------


def test_a_random_value(session, secret, kmsfs):
    done = kmsfs("secret", "rotate", secret, "--rotator", "random")
    assert done.returncode == 0, done.stderr
    assert len(value(session, secret)) == 32 and value(session, secret, VersionStage="AWSPREVIOUS") == "first"
    first = value(session, secret)
    assert kmsfs("secret", "rotate", secret).returncode == 0
    assert value(session, secret, VersionStage="AWSPREVIOUS") == first
    session.call("PutSecretValue", {"SecretId": secret, "SecretString": json.dumps({"user": "u", "password": "p"})})
    assert kmsfs("secret", "rotate", secret).returncode == 0
    document = json.loads(value(session, secret))
    assert document["user"] == "u" and len(document["password"]) == 32


def write_rotator(tmp_path, name, text, mode=0o755):
    path = tmp_path / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(mode)
    return path


@pytest.fixture
def rotators(monkeypatch, tmp_path):
    """The operator's folder, put where this test may write."""
    from kmsfs.rotation import runner

    folder = tmp_path / "rotators"
    folder.mkdir(mode=0o755)
    monkeypatch.setattr(runner, "_SYSTEM_FOLDER", folder)
    return folder


def test_a_program_of_the_operators(session, secret, rotators, daemon, tmp_path):
    from kmsfs.rotation.runner import run_steps

    seen = tmp_path / "seen"
    write_rotator(rotators, "mine", f"""
cat >> {seen}; echo " $KMSFS_ROTATION_STEP $KMSFS_SECRET_ID" >> {seen}
exec {sys.executable} -m kmsfs.cli rotator random""")
    made = session.call("RotateSecret", {"SecretId": secret, "RotationLambdaARN": "arn:aws:lambda:us-east-1:111122223333:function:mine"})
    run_steps("arn:aws:lambda:us-east-1:111122223333:function:mine", made["ARN"], made["VersionId"], str(daemon.socket))
    lines = seen.read_text().splitlines()
    assert [line.split()[-2] for line in lines] == ["createSecret", "setSecret", "testSecret", "finishSecret"]
    event = json.loads(lines[0].rpartition("}")[0] + "}")
    assert event == {"Step": "createSecret", "SecretId": made["ARN"], "ClientRequestToken": made["VersionId"]}
    assert len(value(session, secret)) == 32


@pytest.mark.parametrize("step", ["createSecret", "setSecret", "testSecret", "finishSecret"])
def test_a_step_that_fails_leaves_the_current_value(session, secret, rotators, daemon, step):
    from kmsfs.errors import RotationFailed
    from kmsfs.rotation.runner import run_steps

    broken = write_rotator(rotators, "mine", f"""
[ "$KMSFS_ROTATION_STEP" = {step} ] && {{ echo "the database is away" >&2; exit 3; }}
exec {sys.executable} -m kmsfs.cli rotator random""")
    made = session.call("RotateSecret", {"SecretId": secret, "RotationLambdaARN": "mine"})
    with pytest.raises(RotationFailed, match=f"{step} of mine failed with exit code 3: the database is away"):
        run_steps("mine", made["ARN"], made["VersionId"], str(daemon.socket))
    assert value(session, secret) == "first"
    [due] = [d for d in session.call("ListDueRotations", {})["Rotations"] if d["Name"] == secret]
    assert due["PendingSince"]
    # Tried again, it goes on with the version that was begun.
    broken.write_text(f"#!/bin/sh\nexec {sys.executable} -m kmsfs.cli rotator random\n")
    run_steps("mine", made["ARN"], due["ClientRequestToken"], str(daemon.socket))
    assert len(value(session, secret)) == 32 and len(stages(session, secret)) == 2


def test_programs_that_others_can_change_are_not_run(rotators):
    from kmsfs.errors import UsageError
    from kmsfs.rotation.runner import command_of

    write_rotator(rotators, "open", "exit 0", 0o777)
    write_rotator(rotators, "dead", "exit 0", 0o644)
    for name in ("open", "dead", "missing"):
        with pytest.raises(UsageError):
            command_of(name)
    rotators.chmod(0o777)
    write_rotator(rotators, "fine", "exit 0")
    with pytest.raises(UsageError):
        command_of("fine")


def test_what_is_due_is_run(session, secret, kmsfs, make_daemon):
    assert kmsfs("secret", "rotate", secret, "--rotator", "random", "--every", "30d", "--later").returncode == 0
    assert json.loads(kmsfs("--json", "secret", "rotate-due").stdout) == {"Rotated": [], "Failed": []}
    session.call("RotateSecret", {"SecretId": secret})
    done = kmsfs("--json", "secret", "rotate-due")
    assert json.loads(done.stdout)["Rotated"] == [secret] and len(value(session, secret)) == 32
    # One that fails is named, and stops no other.
    other = f"{secret}/two"
    session.call("CreateSecret", {"Name": other, "SecretString": "x"})
    session.call("RotateSecret", {"SecretId": other, "RotationLambdaARN": "nowhere"})
    session.call("RotateSecret", {"SecretId": secret})
    done = kmsfs("--json", "secret", "rotate-due")
    assert done.returncode == ExitCode.STORAGE
    report = json.loads(done.stdout)
    assert report["Rotated"] == [secret] and [f["Name"] for f in report["Failed"]] == [other]
    session.call("CancelRotateSecret", {"SecretId": other})


def test_a_schedule_that_has_come(tmp_path):
    """By the injected clock: due means due."""
    from kmsd.secrets.records import Secret, Version
    from kmsd.secrets.rotation import _due
    from kmsd.secrets.schedule import rotation_ended

    made = Secret("arn", "n", "s", "o", 0.0, 0.0, versions=(Version("v", 0.0, ("AWSCURRENT",), "k"),), rotation_enabled=True,
                  rotation_rules={"automatically_after_days": 1}, next_rotation=100.0)  # fmt: skip
    assert not _due(made, 99.0) and _due(made, 100.0)
    assert rotation_ended(made, 100.0).next_rotation == 100.0 + 86_400


# --- PostgreSQL -------------------------------------------------------------------------------------------------


@pytest.fixture
def postgres(tmp_path_factory):
    """A server of Debian's that lets roles in by password only."""
    programs = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
    if not programs:
        pytest.fail("this test needs Debian's postgresql, which CI installs")
    folder = tmp_path_factory.mktemp("pg")
    let_others_in(folder)
    data = folder / "data"
    data.mkdir()
    as_user = []
    if os.geteuid() == 0:
        shutil.chown(data, "postgres", "postgres")
        shutil.chown(folder, "postgres", "postgres")
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    (folder / "pw").write_text("admin")
    (folder / "pw").chmod(0o644)
    run = lambda *words: subprocess.run([*as_user, *words], check=True, capture_output=True, text=True, cwd=folder)  # noqa: E731
    run(f"{programs[-1]}/initdb", "-D", str(data), "-A", "scram-sha-256", "--pwfile", str(folder / "pw"), "-U", "admin")
    port = 20_000 + os.getpid() % 20_000
    options = f"-p {port} -k {folder} -c listen_addresses= -c log_statement=all -c fsync=off"
    run(f"{programs[-1]}/pg_ctl", "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
    yield {"host": str(folder), "port": port, "dbname": "postgres", "log": folder / "log"}
    run(f"{programs[-1]}/pg_ctl", "-D", str(data), "-m", "immediate", "stop")


def logs_in(postgres, user, password):
    environment = {**os.environ, "PGHOST": postgres["host"], "PGPORT": str(postgres["port"]), "PGUSER": user, "PGPASSWORD": password, "PGDATABASE": "postgres"}
    return subprocess.run(["psql", "-X", "-w", "-c", "SELECT 1"], env=environment, capture_output=True).returncode == 0


def sql(postgres, statement):
    environment = {**os.environ, "PGHOST": postgres["host"], "PGPORT": str(postgres["port"]), "PGUSER": "admin", "PGPASSWORD": "admin", "PGDATABASE": "postgres"}
    subprocess.run(["psql", "-X", "-w", "-v", "ON_ERROR_STOP=1", "-c", statement], env=environment, check=True, capture_output=True)


def test_the_password_of_a_postgresql_role(session, postgres, kmsfs):
    role = 'we"ird role'
    sql(postgres, f"CREATE ROLE \"{role.replace(chr(34), 2 * chr(34))}\" LOGIN PASSWORD 'old'")
    place = {name: postgres[name] for name in ("host", "port", "dbname")}
    name = f"pg/{uuid.uuid4().hex[:8]}"
    session.call("CreateSecret", {"Name": name, "SecretString": json.dumps({"username": role, "password": "old", **place})})
    done = kmsfs("secret", "rotate", name, "--rotator", "postgresql")
    assert done.returncode == 0, done.stderr
    new = json.loads(value(session, name))
    assert logs_in(postgres, role, new["password"]) and not logs_in(postgres, role, "old")
    # The server logs every statement: the password is in none of them, nor on a command line.
    assert new["password"] not in postgres["log"].read_text()
    for _ in range(2):
        assert kmsfs("secret", "rotate", name).returncode == 0
    assert logs_in(postgres, role, json.loads(value(session, name))["password"])
    # Somebody changed it behind our back: said, and the secret stays.
    sql(postgres, f"ALTER ROLE \"{role.replace(chr(34), 2 * chr(34))}\" PASSWORD 'elsewhere'")
    before = value(session, name)
    failed = kmsfs("secret", "rotate", name)
    assert failed.returncode == ExitCode.STORAGE and "setSecret" in failed.stderr and value(session, name) == before
    session.call("CancelRotateSecret", {"SecretId": name})


def test_scram_verifiers_are_those_of_the_server(postgres):
    from kmsfs.rotation.rotators import scram_verifier

    sql(postgres, f"CREATE ROLE made LOGIN PASSWORD '{scram_verifier('s3cret!')}'")
    assert logs_in(postgres, "made", "s3cret!") and not logs_in(postgres, "made", "s3cret")
