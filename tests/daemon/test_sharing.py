"""Several daemons over one PostgreSQL: what one wrote the others know, and what happens when the database goes."""

import json
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
import time

import psycopg
import pytest

from conftest import DaemonProcess, MountProcess
from kmsfs.client.changes import ChangeStream
from kmsfs.errors import DaemonUnreachable, KmsfsError, Unavailable
from kmsfs.mount.durability import TICK_SECONDS
from kmsfs.mount.volume import read_config
from kmsfs.quantity import DATABASE_LEASE_SECONDS, HEARTBEAT_SECONDS, RECONNECT_SECONDS, STORE_SECONDS, TAKEOVER_SECONDS
from support.databases import PostgresServer, new_database, wait_for
from support.network import Network

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = PostgresServer(tmp_path_factory.mktemp("pg") / "server").make().start("fsync=off")
    yield made
    made.stop()


class Hosts:
    """Daemons of one realm."""

    def __init__(self, folder, url):
        self.folder, self.url, self.made = folder, url, []

    def first(self, prefix=()):
        host = DaemonProcess(self.folder / "h0")
        host.prefix = list(prefix)
        host.folder.mkdir()
        done = host.init("--database", self.url)
        assert done.returncode == 0, done.stderr
        self.code = json.loads(done.stdout)["recovery_code"]
        self.made.append(host)
        return host.start()

    def join(self, prefix=()):
        host = DaemonProcess(self.folder / f"h{len(self.made)}")
        host.prefix = list(prefix)
        host.folder.mkdir()
        code = host.folder / "code"
        code.write_text(self.code)
        done = subprocess.run(
            [*prefix, sys.executable, "-m", "kmsd", "join", "--state", host.state, "--database", self.url, "--keyring", self.made[0].state / "keyring.kms",
             "--code-file", code, "--json"],
            capture_output=True, text=True,
        )
        assert done.returncode == 0, done.stderr
        self.made.append(host)
        return host.start()

    def stop(self):
        for host in self.made:
            host.stop(signal.SIGKILL)


@pytest.fixture
def hosts(tmp_path, server):
    made = Hosts(tmp_path, new_database(server.url))
    yield made
    made.stop()


def caller(host):
    session = host.session()
    return lambda operation, **parameters: session.call(operation, parameters)


def code_of(call, operation, **parameters):
    try:
        call(operation, **parameters)
    except KmsfsError as error:
        return error.code
    return None


# --- what is shared -----------------------------------------------------------------------------------------------


def test_what_one_daemon_does_the_other_knows(hosts):
    a, b = caller(hosts.first()), caller(hosts.join())
    key = a("CreateKey", Description="first")["KeyMetadata"]
    sealed = a("Encrypt", KeyId=key["KeyId"], Plaintext=b"of a", EncryptionContext={"x": "y"})["CiphertextBlob"]
    a("CreateAlias", AliasName="alias/shared", TargetKeyId=key["KeyId"])
    a("PutParameter", Name="/app/password", Value="hunter2", Type="SecureString", KeyId="alias/shared")
    a("CreateSecret", Name="db", SecretString="s3cret")
    a("CreateUser", UserName="alice")
    wait_for(lambda: b("GetUser", UserName="alice"))
    assert b("Decrypt", CiphertextBlob=sealed, EncryptionContext={"x": "y"})["Plaintext"] == b"of a"
    assert b("DescribeKey", KeyId="alias/shared")["KeyMetadata"] == key
    assert b("GetParameter", Name="/app/password", WithDecryption=True)["Parameter"]["Value"] == "hunter2"
    assert b("GetSecretValue", SecretId="db")["SecretString"] == "s3cret"
    # And back, onto what the other one made.
    b("RotateKeyOnDemand", KeyId=key["KeyId"])
    b("PutParameter", Name="/app/password", Value="hunter3", Overwrite=True)
    b("DeleteAlias", AliasName="alias/shared")
    b("DeleteSecret", SecretId="db", ForceDeleteWithoutRecovery=True)
    wait_for(lambda: code_of(a, "GetSecretValue", SecretId="db") == "ResourceNotFoundException")
    # What names who goes names his id, on every host.
    alice = a("GetUser", UserName="alice")["User"]
    policy = json.loads(a("GetKeyPolicy", KeyId=key["KeyId"])["Policy"])
    policy["Statement"].append({"Effect": "Allow", "Principal": {"AWS": alice["Arn"]}, "Action": "kms:Encrypt", "Resource": "*"})
    a("PutKeyPolicy", KeyId=key["KeyId"], Policy=json.dumps(policy))
    a("CreateGrant", KeyId=key["KeyId"], GranteePrincipal=alice["Arn"], Operations=["Decrypt"])
    b("DeleteUser", UserName="alice")
    wait_for(lambda: f'"{alice["UserId"]}"' in a("GetKeyPolicy", KeyId=key["KeyId"])["Policy"])
    assert [each["GranteePrincipal"] for each in a("ListGrants", KeyId=key["KeyId"])["Grants"]] == [alice["UserId"]]
    assert len(a("ListKeyRotations", KeyId=key["KeyId"])["Rotations"]) == 1
    rotated = b("Encrypt", KeyId=key["KeyId"], Plaintext=b"of b")["CiphertextBlob"]
    assert a("Decrypt", CiphertextBlob=rotated)["Plaintext"] == b"of b"
    assert a("GetParameter", Name="/app/password:2", WithDecryption=True)["Parameter"]["Value"] == "hunter3"
    assert code_of(a, "DescribeKey", KeyId="alias/shared") == "NotFoundException"


def test_a_grant_counts_on_the_other_host_until_it_is_revoked(hosts):
    a, b = hosts.first(), hosts.join()
    key = caller(a)("CreateKey")["KeyMetadata"]
    grantee = f"arn:kmsfs:iam::{key['Arn'].split(':')[4]}:uid/7"
    grant = caller(a)("CreateGrant", KeyId=key["KeyId"], GranteePrincipal=grantee, Operations=["Decrypt"])["GrantId"]
    listed = lambda: caller(b)("ListGrants", KeyId=key["KeyId"])["Grants"]  # noqa: E731
    wait_for(lambda: [each["GrantId"] for each in listed()] == [grant])
    caller(b)("RevokeGrant", KeyId=key["KeyId"], GrantId=grant)
    wait_for(lambda: caller(a)("ListGrants", KeyId=key["KeyId"])["Grants"] == [])


def test_revoked_on_one_host_means_revoked_on_the_other_within_a_second(hosts):
    a, b = caller(hosts.first()), caller(hosts.join())
    key = a("CreateKey")["KeyMetadata"]["KeyId"]
    sealed = a("Encrypt", KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    waits = []
    for _ in range(20):
        wait_for(lambda: b("Decrypt", CiphertextBlob=sealed))
        a("DisableKey", KeyId=key)
        began = time.monotonic()
        wait_for(lambda: code_of(b, "Decrypt", CiphertextBlob=sealed) == "DisabledException")
        waits.append(time.monotonic() - began)
        a("EnableKey", KeyId=key)
    # Of twenty one may fall into a pause of the machine's own.
    assert sorted(waits)[10] < 0.2 and sorted(waits)[18] < 1, waits


def test_events_of_one_host_reach_who_follows_them_at_the_other(hosts):
    a, b = hosts.first(), hosts.join()
    found = []

    def follow():
        for event in ChangeStream(b.session(), sources=["ssm"]):
            if event["kind"] == "change":
                found.append((event["operation"], event["name"]))

    threading.Thread(target=follow, daemon=True).start()
    time.sleep(0.5)
    caller(a)("PutParameter", Name="/told", Value="1", Type="String")
    wait_for(lambda: found == [("Create", "/told")], 2)
    caller(a)("DeleteParameter", Name="/told")
    wait_for(lambda: found == [("Create", "/told"), ("Delete", "/told")], 2)


def test_writers_on_two_hosts_lose_and_double_no_version(hosts):
    both = [hosts.first(), hosts.join()]
    written, refused = [], []

    def write(host, which):
        call = caller(host)
        for number in range(60):
            try:
                answer = call("PutParameter", Name="/contended", Value=f"{which}/{number}", Type="String", Overwrite=True)
                written.append((answer["Version"], f"{which}/{number}"))
            except KmsfsError as error:
                refused.append(error.code)

    threads = [threading.Thread(target=write, args=(host, f"{index}{which}")) for index, host in enumerate(both) for which in "ab"]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not refused
    assert sorted(version for version, _ in written) == list(range(1, 241))
    for host in both:
        call = caller(host)
        for version, value in [each for each in written if each[0] > 150]:
            assert call("GetParameter", Name=f"/contended:{version}")["Parameter"]["Value"] == value


# --- memory that follows is memory that is loaded ---------------------------------------------------------------------


def everything(host):
    """All that a daemon tells of its state."""
    call = caller(host)
    told = {}
    for key in sorted(call("ListKeys", Limit=1000)["Keys"], key=str):
        key_id = key["KeyId"]
        facts = call("DescribeKey", KeyId=key_id)["KeyMetadata"]
        told[key_id] = facts, call("GetKeyPolicy", KeyId=key_id)["Policy"], call("ListResourceTags", KeyId=key_id)["Tags"], \
            call("ListGrants", KeyId=key_id, Limit=100)["Grants"], call("ListAliases", KeyId=key_id)["Aliases"], \
            call("ListKeyRotations", KeyId=key_id)["Rotations"] if facts["KeySpec"] == "SYMMETRIC_DEFAULT" else None
    names = [each["Name"] for each in call("DescribeParameters", MaxResults=50)["Parameters"]]
    for name in names:
        try:
            told[name] = call("GetParameterHistory", Name=name, WithDecryption=True)["Parameters"]
        except KmsfsError as error:  # the key may be one that was disabled, or is to be deleted: that is the state, too
            told[name] = error.code, call("GetParameterHistory", Name=name)["Parameters"]
    told["secrets"] = [
        (each["Name"], call("ListSecretVersionIds", SecretId=each["ARN"], IncludeDeprecated=True)["Versions"], each.get("Tags"))
        for each in call("ListSecrets", IncludePlannedDeletion=True, MaxResults=100)["SecretList"]
    ]
    told["aliases"] = call("ListAliases", Limit=1000)["Aliases"]
    for operation in ("ListUsers", "ListGroups", "ListRoles", "ListPolicies", "ListVirtualMFADevices"):
        told[operation] = {name: value for name, value in call(operation).items()}
    for user in told["ListUsers"]["Users"]:
        told[user["Arn"]] = call("ListAccessKeys", UserName=user["UserName"]), call("ListUserPolicies", UserName=user["UserName"])
    return told


def someday(rng, call, names):
    """Do one thing at random; what cannot be done is not."""
    keys = call("ListKeys", Limit=1000)["Keys"]
    key, account = (chosen["KeyId"], chosen["KeyArn"].split(":")[4]) if keys and (chosen := rng.choice(keys)) else (None, "")
    name, tag = rng.choice(names), {"TagKey": rng.choice("ab"), "TagValue": rng.choice("12")}
    choices = [
        ("CreateKey", {"Tags": [tag]}), ("CreateKey", {"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"}), ("CreateKey", {"Origin": "EXTERNAL"}),
        ("DisableKey", {"KeyId": key}), ("EnableKey", {"KeyId": key}), ("ScheduleKeyDeletion", {"KeyId": key, "PendingWindowInDays": 7}),
        ("CancelKeyDeletion", {"KeyId": key}), ("RotateKeyOnDemand", {"KeyId": key}), ("EnableKeyRotation", {"KeyId": key}),
        ("TagResource", {"KeyId": key, "Tags": [tag]}), ("UntagResource", {"KeyId": key, "TagKeys": [tag["TagKey"]]}),
        ("UpdateKeyDescription", {"KeyId": key, "Description": name}), ("CreateAlias", {"AliasName": f"alias/{name}", "TargetKeyId": key}),
        ("UpdateAlias", {"AliasName": f"alias/{name}", "TargetKeyId": key}), ("DeleteAlias", {"AliasName": f"alias/{name}"}),
        ("CreateGrant", {"KeyId": key, "GranteePrincipal": f"arn:kmsfs:iam::{account}:uid/7", "Operations": ["Decrypt"]}),
        ("PutParameter", {"Name": f"/{name}/p", "Value": str(rng.random()), "Type": rng.choice(["String", "SecureString"]), "Overwrite": True}),
        ("PutParameter", {"Name": name, "Value": str(rng.random()), "Type": "String", "Overwrite": True}),
        ("DeleteParameter", {"Name": f"/{name}/p"}), ("DeleteParameter", {"Name": name}),
        ("LabelParameterVersion", {"Name": f"/{name}/p", "Labels": ["now"]}),
        ("CreateSecret", {"Name": name, "SecretString": str(rng.random())}), ("PutSecretValue", {"SecretId": name, "SecretString": str(rng.random())}),
        ("DeleteSecret", {"SecretId": name, "ForceDeleteWithoutRecovery": True}), ("DeleteSecret", {"SecretId": name}), ("RestoreSecret", {"SecretId": name}),
        ("CreateUser", {"UserName": name}), ("DeleteUser", {"UserName": name}), ("CreateGroup", {"GroupName": name}), ("DeleteGroup", {"GroupName": name}),
        ("CreateAccessKey", {"UserName": name}), ("CreateVirtualMFADevice", {"VirtualMFADeviceName": name}),
        ("PutUserPolicy", {"UserName": name, "PolicyName": "p", "PolicyDocument": json.dumps(
            {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "kms:*", "Resource": "*"}]})}),
    ]  # fmt: skip
    operation, parameters = rng.choice(choices)
    try:
        call(operation, **parameters)
    except KmsfsError:
        return
    for grant in call("ListGrants", KeyId=key)["Grants"][:1] if key and rng.random() < 0.3 else ():
        call("RevokeGrant", KeyId=key, GrantId=grant["GrantId"])


def test_what_is_taken_over_is_what_a_new_start_loads(hosts):
    rng = random.Random(1)
    both = [hosts.first(), hosts.join()]
    calls = [caller(host) for host in both]
    names = ["one", "two", "three"]
    for _ in range(300):
        someday(rng, rng.choice(calls), names)
    last = calls[0]("CreateKey")["KeyMetadata"]["KeyId"]
    wait_for(lambda: calls[1]("DescribeKey", KeyId=last))
    third = everything(hosts.join())
    assert everything(both[0]) == third
    assert everything(both[1]) == third
    assert len(third) > 12


# --- when the database goes ---------------------------------------------------------------------------------------------


@pytest.fixture
def own_server(tmp_path_factory):
    made = PostgresServer(tmp_path_factory.mktemp("own") / "server").make().start()
    yield made
    made.stop()


def test_without_its_database_a_daemon_reads_for_a_lease_and_then_refuses(tmp_path, own_server):
    hosts = Hosts(tmp_path, new_database(own_server.url))
    try:
        host = hosts.first()
        call = caller(host)
        key = call("CreateKey")["KeyMetadata"]["KeyId"]
        sealed = call("Encrypt", KeyId=key, Plaintext=b"x")["CiphertextBlob"]
        call("PutParameter", Name="/kept", Value="1", Type="String")
        own_server.kill()
        gone = time.monotonic()
        assert call("Decrypt", CiphertextBlob=sealed)["Plaintext"] == b"x"
        with pytest.raises(Unavailable, match="database"):
            call("PutParameter", Name="/kept", Value="2", Type="String", Overwrite=True)
        assert call("Decrypt", CiphertextBlob=sealed)["Plaintext"] == b"x"
        wait_for(lambda: code_of(call, "Decrypt", CiphertextBlob=sealed) == "DependencyTimeoutException", DATABASE_LEASE_SECONDS + 5)
        assert DATABASE_LEASE_SECONDS - 3 < time.monotonic() - gone < DATABASE_LEASE_SECONDS + 2
        assert call("GetStatus")["Keys"] >= 1
        own_server.start()
        assert wait_for(lambda: call("Decrypt", CiphertextBlob=sealed))["Plaintext"] == b"x"
        call("PutParameter", Name="/kept", Value="3", Type="String", Overwrite=True)
        assert call("GetParameter", Name="/kept")["Parameter"]["Value"] == "3"
        assert call("GetParameter", Name="/kept")["Parameter"]["Version"] == 2
    finally:
        hosts.stop()


def storm(hosts, stop):
    """Write from every host until told to stop; return what was acknowledged."""
    acknowledged, failed = [], []

    def write(host, which):
        number, session = 0, host.session()
        while not stop.is_set():
            number += 1
            name = f"/storm/{which}-{number}"
            try:
                session.call("PutParameter", {"Name": name, "Value": name, "Type": "String"})
                acknowledged.append(name)
            except KmsfsError as error:
                failed.append(error.code)
                time.sleep(0.02)

    threads = [threading.Thread(target=write, args=(host, index)) for index, host in enumerate(hosts)]
    [thread.start() for thread in threads]
    return threads, acknowledged, failed


def all_names(host):
    session, found, token = host.session(), set(), {}
    while True:
        page = session.call("GetParametersByPath", {"Path": "/storm", "Recursive": True, "MaxResults": 10, **token})
        found |= {each["Name"] for each in page["Parameters"]}
        if not page.get("NextToken"):
            return found
        token = {"NextToken": page["NextToken"]}


def test_a_database_that_crashes_again_and_again_loses_nothing_acknowledged(tmp_path, own_server):
    hosts = Hosts(tmp_path, new_database(own_server.url))
    try:
        both = [hosts.first(), hosts.join()]
        stop = threading.Event()
        threads, acknowledged, failed = storm(both, stop)
        for _ in range(3):
            time.sleep(0.7)
            own_server.kill()
            time.sleep(0.3)
            own_server.start()
            before = len(acknowledged)
            wait_for(lambda: len(acknowledged) > before + 20)  # noqa: B023
        stop.set()
        [thread.join() for thread in threads]
        assert failed and len(acknowledged) > 60
        for host in (*both, hosts.join()):
            assert set(acknowledged) <= all_names(host)
        assert all_names(both[0]) == all_names(both[1]) == all_names(hosts.made[2])
    finally:
        hosts.stop()


def test_a_promoted_standby_has_all_that_was_acknowledged(tmp_path, own_server):
    standby = own_server.replica(tmp_path / "standby")
    standby.start()
    try:
        own_server.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        own_server.execute("SELECT pg_reload_conf()")
        database = new_database(own_server.url).rpartition("/")[2]
        address = f"{own_server.address}:{own_server.port},{standby.address}:{standby.port}"
        hosts = Hosts(tmp_path, f"postgresql://postgres@{address}/{database}?target_session_attrs=read-write")
        both = [hosts.first(), hosts.join()]
        stop = threading.Event()
        threads, acknowledged, _ = storm(both, stop)
        wait_for(lambda: len(acknowledged) > 100)
        own_server.kill()
        standby.run("pg_ctl", "-D", standby.data, "-w", "promote")
        standby.execute("ALTER SYSTEM SET synchronous_standby_names = ''")
        standby.execute("SELECT pg_reload_conf()")
        before = len(acknowledged)
        wait_for(lambda: len(acknowledged) > before + 50, 30)
        stop.set()
        [thread.join() for thread in threads]
        for host in (*both, hosts.join()):
            assert set(acknowledged) <= all_names(host)
    finally:
        stop.set()
        hosts.stop()
        standby.stop()


def test_an_older_database_is_not_taken_for_the_present_one(tmp_path, own_server):
    hosts = Hosts(tmp_path, new_database(own_server.url))
    try:
        host = hosts.first()
        call = caller(host)
        call("PutParameter", Name="/a", Value="1", Type="String")
        own_server.stop()
        subprocess.run(["cp", "-a", own_server.data, f"{own_server.data}.old"], check=True)
        own_server.start()
        wait_for(lambda: call("PutParameter", Name="/a", Value="2", Type="String", Overwrite=True))
        own_server.stop()
        subprocess.run(["rm", "-rf", own_server.data], check=True)
        subprocess.run(["mv", f"{own_server.data}.old", own_server.data], check=True)
        own_server.start()
        assert host.process.wait(20) == 0
        assert "is older (commit" in host.process.stderr.read()
        with pytest.raises(RuntimeError, match="older .* than its anchor"):
            host.start()
        assert caller(host.start("--accept-rollback"))("GetParameter", Name="/a")["Parameter"]["Value"] == "1"
    finally:
        hosts.stop()


# --- two hosts, one cable each -------------------------------------------------------------------------------------------


@pytest.fixture
def network():
    made = Network()
    yield made
    made.close()


def test_a_host_without_its_cable_decides_nothing_on_its_own(tmp_path, network):
    server = PostgresServer(tmp_path / "server", network.address).make().start()
    hosts = Hosts(tmp_path, new_database(server.url))
    spaces = [network.host(), network.host()]
    try:
        a, b = hosts.first(("ip", "netns", "exec", spaces[0])), hosts.join(("ip", "netns", "exec", spaces[1]))
        on_a, on_b = caller(a), caller(b)
        key = on_a("CreateKey")["KeyMetadata"]["KeyId"]
        sealed = on_a("Encrypt", KeyId=key, Plaintext=b"x")["CiphertextBlob"]
        waits = []
        for _ in range(3):
            wait_for(lambda: on_b("Decrypt", CiphertextBlob=sealed))
            began = time.monotonic()
            on_a("DisableKey", KeyId=key)
            wait_for(lambda: code_of(on_b, "Decrypt", CiphertextBlob=sealed) == "DisabledException")
            waits.append(time.monotonic() - began)
            on_a("EnableKey", KeyId=key)
        assert sorted(waits)[1] < 1, waits
        wait_for(lambda: on_b("Decrypt", CiphertextBlob=sealed))

        other = on_b("CreateKey")["KeyMetadata"]["Arn"]
        writer, first = lease(b, other)
        beats = Beats(b)
        wait_for(lambda: beats.count > 0)
        network.pull(spaces[1])
        pulled = time.monotonic()
        on_a("DisableKey", KeyId=key)
        on_a("PutParameter", Name="/split", Value="a", Type="String")
        # B does not know it, and may not for a lease; it changes nothing, whatever it is asked.
        assert on_b("Decrypt", CiphertextBlob=sealed)["Plaintext"] == b"x"
        for operation, parameters in (
            ("PutParameter", {"Name": "/split", "Value": "b", "Type": "String"}), ("CreateKey", {}), ("EnableKey", {"KeyId": key}),
            ("CreateAlias", {"AliasName": "alias/split", "TargetKeyId": key}), ("CreateUser", {"UserName": "split"}),
        ):
            assert code_of(on_b, operation, **parameters) == "DependencyTimeoutException"
        wait_for(lambda: code_of(on_b, "Decrypt", CiphertextBlob=sealed) == "DependencyTimeoutException", 15)
        assert time.monotonic() - pulled < DATABASE_LEASE_SECONDS + 2
        last = beats.last
        assert last - pulled < 4
        time.sleep(4)
        assert beats.last == last
        on_a("PutParameter", Name="/split", Value="a2", Type="String", Overwrite=True)
        # B's lease of the volume ends, and no earlier than all that others may have from B.
        assert lease(a, other)[1]["code"] == "VolumeBusyException"
        _, answer = wait_for(lambda: (found := lease(a, other))[1].get("Session") and found, TAKEOVER_SECONDS + 10)
        assert TAKEOVER_SECONDS - 4 < time.monotonic() - pulled
        assert answer["Session"] == first["Session"] + 1 and first["Session"] in answer["UncleanSessions"]

        network.plug(spaces[1])
        with pytest.raises(DaemonUnreachable):
            # The connection with the old lease is cut before anything else is answered from the present state.
            while True:
                writer.receive(timeout=20)
        _, again = lease(b, other, Resume=first["Session"])
        assert again["code"] == "VolumeBusyException"
        wait_for(lambda: code_of(on_b, "Decrypt", CiphertextBlob=sealed) == "DisabledException", 15)
        assert wait_for(lambda: on_b("GetParameter", Name="/split"))["Parameter"]["Value"] == "a2"
        on_b("EnableKey", KeyId=key)
        wait_for(lambda: on_a("Decrypt", CiphertextBlob=sealed))
        wait_for(lambda: beats.last > last)
        assert everything(a) == everything(b)
    finally:
        hosts.stop()
        server.stop()


class Beats:
    """Counts the heartbeats that a daemon sends to who holds a lease."""

    def __init__(self, host):
        self.count, self.last = 0, 0.0
        self._stream = ChangeStream(host.session())
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        for event in self._stream:
            if event["kind"] == "heard":
                self.count += 1
                self.last = time.monotonic()


# --- moving in, and out ---------------------------------------------------------------------------------------------------


def kmsd(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "kmsd", *map(str, arguments)], capture_output=True, text=True, **options)


def test_a_state_becomes_shared_is_backed_up_and_restored(fresh_daemon, server, tmp_path):
    call = caller(fresh_daemon.start())
    key = call("CreateKey")["KeyMetadata"]["KeyId"]
    sealed = call("Encrypt", KeyId=key, Plaintext=b"from before")["CiphertextBlob"]
    url = new_database(server.url)
    busy = kmsd("share-state", url, "--state", fresh_daemon.state, "--yes")
    assert busy.returncode != 0 and "running" in busy.stderr + busy.stdout or "use" in busy.stderr
    fresh_daemon.stop()
    assert kmsd("share-state", url, "--state", fresh_daemon.state).returncode != 0
    done = kmsd("share-state", url, "--state", fresh_daemon.state, "--yes")
    assert done.returncode == 0, done.stderr
    assert not (fresh_daemon.state / "state.db").exists()
    assert {(fresh_daemon.state / name).stat().st_mode & 0o777 for name in ("database.url", "host")} == {0o600}
    call = caller(fresh_daemon.start())
    assert call("Decrypt", CiphertextBlob=sealed)["Plaintext"] == b"from before"
    call("PutParameter", Name="/later", Value="1", Type="SecureString")
    archive = tmp_path / "all.kmsbackup"
    done = kmsd("backup", archive, "--state", fresh_daemon.state)
    assert done.returncode == 0, done.stderr
    code = tmp_path / "code"
    code.write_text(json.loads(fresh_daemon.init_output)["recovery_code"])
    other = DaemonProcess(tmp_path / "other")
    other.folder.mkdir()
    done = kmsd("restore", archive, "--state", other.state, "--code-file", code)
    assert done.returncode == 0, done.stderr
    try:
        call = caller(other.start())
        assert call("Decrypt", CiphertextBlob=sealed)["Plaintext"] == b"from before"
        assert call("GetParameter", Name="/later", WithDecryption=True)["Parameter"]["Value"] == "1"
    finally:
        other.stop()
    again = kmsd("init", "--state", tmp_path / "new" / "state", "--database", url)
    assert again.returncode != 0 and "holds a state" in again.stderr


def test_who_may_not_join_does_not(hosts, tmp_path, server):
    first = hosts.first()
    wrong = tmp_path / "wrong"
    wrong.write_text("KMSFS1-AAAAAAA-AAAAAAA-AAAAAAA-AAAAAAA-AAAAAAA-AAAAAAA-AAAAAAA-AAAAAAA")
    right = tmp_path / "right"
    right.write_text(hosts.code)
    state = tmp_path / "j" / "state"
    base = ["join", "--state", state, "--keyring", first.state / "keyring.kms"]
    for arguments, said in (
        ((*base, "--database", hosts.url, "--code-file", wrong), "recovery code"),
        ((*base, "--database", new_database(server.url), "--code-file", right), "holds no state"),
        ((*base, "--database", "postgresql://postgres@127.0.0.1:1/x", "--code-file", right), "cannot be used"),
    ):
        done = kmsd(*arguments)
        assert done.returncode != 0 and said in done.stderr, done.stderr
        assert not (state / "keyring.kms").exists()
    # What a join that failed has left says nothing of a realm that is made there then.
    assert kmsd("init", "--state", state).returncode == 0
    assert (state / "state.db").exists() and not (state / "database.url").exists()
    other = DaemonProcess(tmp_path / "foreign")
    other.folder.mkdir()
    assert other.init().returncode == 0
    done = kmsd("share-state", hosts.url, "--state", other.state, "--yes")
    assert done.returncode != 0 and "holds a state" in done.stderr




# --- volumes -----------------------------------------------------------------------------------------------------------------

VOLUME = "ab" * 16


def lease(host, key, **more):
    """Take a volume's lease on a connection of its own; return the connection and the answer."""
    transport = host.session().open_transport()
    answer = transport.call("OpenVolumeSession", {"KeyId": key, "VolumeId": VOLUME, "ReadOnly": False, **more})
    return transport, answer.get("r") or answer["e"]


def test_a_volume_has_one_writer_on_all_hosts(hosts):
    a, b = hosts.first(), hosts.join()
    key = caller(a)("CreateKey")["KeyMetadata"]["Arn"]
    wait_for(lambda: caller(b)("DescribeKey", KeyId=key))
    writer, first = lease(a, key)
    _, refused = lease(b, key)
    assert refused["code"] == "VolumeBusyException" and "mounted for writing on" in refused["message"], refused
    assert "30 s" in refused["hint"]
    _, reads = lease(b, key, ReadOnly=True)
    assert reads["Session"] == first["Session"] and reads["UncleanSessions"] == [first["Session"]]
    # An end that was told frees it at once; a mount that was killed, when its own host's daemon knows that it does not come back.
    assert writer.call("CloseVolumeSession", {"KeyId": key, "VolumeId": VOLUME, "Session": first["Session"]})["r"] == {}
    second, answer = wait_for(lambda: (found := lease(b, key))[1].get("Session") and found, 5)
    assert answer["Session"] == first["Session"] + 1 and answer["UncleanSessions"] == []
    second.close()
    third, answer = wait_for(lambda: (found := lease(a, key))[1].get("Session") and found, 10)
    assert answer["UncleanSessions"] == [first["Session"] + 1]
    # A mount that comes back after its lease has run out has it again, for the other hosts too.
    third.close()
    time.sleep(RECONNECT_SECONDS + HEARTBEAT_SECONDS + 1)
    _, again = lease(a, key, Resume=answer["Session"])
    assert again["Session"] == answer["Session"]
    assert lease(b, key)[1]["code"] == "VolumeBusyException"


@pytest.mark.fuse
def test_one_host_writes_a_volume_that_the_other_follows(hosts, tmp_path):
    a, b = hosts.first(), hosts.join()
    cipher = tmp_path / "cipher"
    plain = [tmp_path / "plain-a", tmp_path / "plain-b"]
    for folder in (cipher, *plain):
        folder.mkdir()
    writer, reader = MountProcess(a.socket, cipher, plain[0]), MountProcess(b.socket, cipher, plain[1], "--follow")
    try:
        writer.start()
        (plain[0] / "file").write_bytes(b"from a")
        subprocess.run(["sync", "-f", plain[0]], check=True)
        reader.start()
        assert (plain[1] / "file").read_bytes() == b"from a"
        (plain[0] / "file").write_bytes(b"later from a")
        subprocess.run(["sync", "-f", plain[0]], check=True)
        wait_for(lambda: (plain[1] / "file").read_bytes() == b"later from a", 3)
        # One decision for both hosts' files: disabled over there is unreadable here.
        on_a = caller(a)
        key = on_a("DescribeKey", KeyId="alias/kmsfs/default")["KeyMetadata"]["KeyId"]
        waits = []
        for _ in range(3):
            with open(plain[1] / "file", "rb") as held:
                assert held.read(5) == b"later"
                on_a("DisableKey", KeyId=key)
                began = time.monotonic()
                for where in (lambda: (plain[1] / "file").read_bytes(), lambda: os.pread(held.fileno(), 5, 0)):  # noqa: B023
                    wait_for(lambda: refused(where))  # noqa: B023
                waits.append(time.monotonic() - began)
            on_a("EnableKey", KeyId=key)
            wait_for(lambda: (plain[1] / "file").read_bytes() == b"later from a")
        assert sorted(waits)[1] < 1, waits
    finally:
        reader.stop()
        writer.stop()


@pytest.mark.fuse
def test_a_host_that_was_frozen_stores_nothing_after_another_took_its_volume_over(hosts, tmp_path):
    a, b = hosts.first(), hosts.join()
    cipher, plain = tmp_path / "cipher", tmp_path / "plain"
    cipher.mkdir()
    plain.mkdir()
    mount = MountProcess(a.socket, cipher, plain)
    try:
        mount.start()
        (plain / "kept").write_bytes(b"stored")
        (plain / "late").write_bytes(b"stored" * 10_000)
        subprocess.run(["sync", "-f", plain], check=True)
        late = os.open(plain / "late", os.O_WRONLY | os.O_DIRECT)
        os.pwrite(late, mmap.mmap(-1, 16_384), 0)
        # The chunk is stored, and the header that says so is in memory until the next tick.
        time.sleep(0.2)
        for process in (mount.process, a.process):
            process.send_signal(signal.SIGSTOP)
        stored = content_of(cipher)
        # As if thirty seconds had passed for the others; for the frozen ones, whose clock it is, it takes longer than they may store.
        with psycopg.connect(hosts.url, autocommit=True) as connection:
            connection.execute("UPDATE host SET seen = now() - interval '60 s'")
        volume, _ = read_config(cipher)
        taker = b.session().open_transport()
        answer = taker.call("OpenVolumeSession", {"KeyId": volume.key_arn, "VolumeId": volume.volume_id.hex(), "ReadOnly": False})
        assert answer["r"]["UncleanSessions"] and answer["r"]["StoreSeconds"] == STORE_SECONDS
        time.sleep(STORE_SECONDS + 0.5)
        mount.process.send_signal(signal.SIGCONT)
        time.sleep(TICK_SECONDS + 1)
        assert content_of(cipher) == stored
        a.process.send_signal(signal.SIGCONT)
        wait_for(lambda: refused(lambda: (plain / "kept").read_bytes()), 15)
        # Longer than it takes to try again a few times.
        until = time.monotonic() + 15
        while time.monotonic() < until:
            assert refused(lambda: (plain / "kept").read_bytes())
            time.sleep(0.1)
        assert content_of(cipher) == stored
        assert refused(lambda: (plain / "new").write_bytes(b"x")) and content_of(cipher) == stored
    finally:
        for process in (mount.process, a.process):
            process.send_signal(signal.SIGCONT)
        mount.kill()
        # Shown where the test failed.
        print(mount.log)
        os.close(late)


def content_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(read):
    try:
        read()
    except OSError:
        return True
    return False
