"""Credentials for AWS's clients without configuration: the kernel says who asks over loopback."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from conftest import DaemonProcess
from kmsd.door.peers import may_connect, uid_of_peer
from support.peers import let_others_in

ACCOUNT = "111122223333"


@pytest.fixture(scope="module", params=["127.0.0.1:0", "[::1]:0"])
def daemon(tmp_path_factory, request):
    made = DaemonProcess(tmp_path_factory.mktemp("kmsd"), "--aws-endpoint", request.param)
    assert made.init("--account", ACCOUNT).returncode == 0
    made.start()
    yield made
    made.stop()


@pytest.fixture
def endpoint(daemon):
    return daemon.session().call("GetStatus", {})["AwsEndpoint"]


def ask(endpoint, path="/credentials", **headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint + path, headers=headers), timeout=20) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def whoami(endpoint, made):
    import boto3

    client = boto3.client("sts", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id=made["AccessKeyId"],
                          aws_secret_access_key=made["SecretAccessKey"], aws_session_token=made["Token"])  # fmt: skip
    return client.get_caller_identity()["Arn"]


def test_a_program_gets_its_users_credentials(daemon, endpoint):
    status, made = ask(endpoint)
    assert status == 200 and set(made) == {"AccessKeyId", "SecretAccessKey", "Token", "Expiration"}
    assert whoami(endpoint, made) == f"arn:aws:iam::{ACCOUNT}:uid/{os.getuid()}"
    left = time.mktime(time.strptime(made["Expiration"], "%Y-%m-%dT%H:%M:%SZ")) - time.timezone - time.time()
    assert 3500 < left <= 3600
    log = [json.loads(line) for line in (daemon.state / "audit" / "audit.jsonl").read_text().splitlines()]
    assert [record["uid"] for record in log if record["op"] == "GetSessionToken"][-1] == os.getuid()


@pytest.mark.root
def test_each_user_gets_his_own(daemon, endpoint):
    program = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read().decode())"
    as_him = lambda: subprocess.run(["/usr/bin/python3", "-c", program, endpoint + "/credentials"], user=4321, group=4321, extra_groups=[], capture_output=True, text=True)  # noqa: E731
    # Whom the socket's mode keeps out gets in by no other way.
    os.chmod(daemon.socket, 0o660)
    done = as_him()
    assert done.returncode and "HTTP Error 400" in done.stderr
    let_others_in(daemon.folder)
    os.chmod(daemon.socket, 0o666)
    done = as_him()
    assert done.returncode == 0, done.stderr
    assert whoami(endpoint, json.loads(done.stdout)) == f"arn:aws:iam::{ACCOUNT}:uid/4321"
    # Also where he is of another account.
    call = daemon.session().call
    call("CreateAccount", {"AccountName": "o", "Email": "o@kmsfs.local", "AccountId": "444455556666"})
    call("AssignLocalUser", {"Uid": 4321, "AccountId": "444455556666"})
    assert whoami(endpoint, json.loads(as_him().stdout)) == "arn:aws:iam::444455556666:uid/4321"
    call("AssignLocalUser", {"Uid": 4321, "AccountId": ACCOUNT})


@pytest.mark.root
@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP"])
def test_nobody_gets_anothers_by_saying_that_he_comes_from_there(daemon, endpoint, header):
    """A header names the address and port of a connection that root holds open: whose it is, the kernel says of this one."""
    let_others_in(daemon.folder)
    os.chmod(daemon.socket, 0o666)
    host, _, port = endpoint.removeprefix("http://").rpartition(":")
    program = "import sys, urllib.request as u; print(u.urlopen(u.Request(sys.argv[1], headers={sys.argv[2]: sys.argv[3]})).read().decode())"
    with socket.create_connection((host.strip("[]"), int(port))) as held:
        mine = f"{host}:{held.getsockname()[1]}"
        said = f'for="{mine}"' if header == "Forwarded" else mine
        done = subprocess.run(
            ["/usr/bin/python3", "-c", program, endpoint + "/credentials", header, said],
            user=4321, group=4321, extra_groups=[], capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert whoami(endpoint, json.loads(done.stdout)) == f"arn:aws:iam::{ACCOUNT}:uid/4321"


def test_no_page_in_a_browser_gets_any(endpoint):
    port = endpoint.rpartition(":")[2]
    for headers in ({"Host": f"evil.example:{port}"}, {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Mode": "cors"}, {"Host": ""}):
        status, told = ask(endpoint, **headers)
        assert status in (400, 403) and "AccessKeyId" not in told
    assert ask(endpoint, "/credentials/x")[0] == 400 and ask(endpoint, "/")[0] == 400


def test_a_closed_connection_is_nobodys(daemon):
    """Its row says uid 0, which is not who had it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client = socket.create_connection(listener.getsockname())
        taken, _ = listener.accept()
        ends = (client.getsockname(), listener.getsockname())
        assert uid_of_peer(*ends) == os.getuid()
        client.close()
        assert uid_of_peer(*ends) is None
        taken.close()
    assert uid_of_peer(("127.0.0.1", 1), ("127.0.0.1", 2)) is None


def test_an_ipv6_socket_reaches_ipv4_addresses_too():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.socket(socket.AF_INET6) as client:
            client.connect(("::ffff:127.0.0.1", listener.getsockname()[1]))
            taken, peer = listener.accept()
            assert uid_of_peer(peer, listener.getsockname()) == os.getuid()
            taken.close()


def test_a_sockets_mode_decides(tmp_path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "s"))
        for mode, owner, group, others in ((0o600, True, False, False), (0o660, True, True, False), (0o666, True, True, True), (0o644, True, False, False), (0o606, True, False, True)):
            os.chmod(tmp_path / "s", mode)
            facts = os.stat(tmp_path / "s")
            assert may_connect(tmp_path / "s", facts.st_uid, frozenset()) is owner
            assert may_connect(tmp_path / "s", 4321, frozenset({facts.st_gid})) is group
            assert may_connect(tmp_path / "s", 4321, frozenset({4321})) is others
            assert may_connect(tmp_path / "s", 0, frozenset()) is True
    assert not may_connect(tmp_path / "gone", 0, frozenset())


def test_awss_clients_find_it_by_themselves(daemon, endpoint):
    environment = {"PATH": os.environ["PATH"], "KMSFS_SOCKET": str(daemon.socket), "HOME": "/nonexistent"}
    told = subprocess.run([sys.executable, "-m", "kmsfs.cli", "--json", "aws", "env", "--container"], env=environment, capture_output=True, text=True)
    variables = json.loads(told.stdout)
    assert variables["AWS_CONTAINER_CREDENTIALS_FULL_URI"] == f"{endpoint}/credentials" and "AWS_ACCESS_KEY_ID" not in variables
    program = "import boto3; print(boto3.client('sts').get_caller_identity()['Arn']); print(boto3.Session().get_credentials().method)"
    done = subprocess.run([sys.executable, "-c", program], env={**environment, **variables}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"arn:aws:iam::{ACCOUNT}:uid/{os.getuid()}", "container-role"]
    refused = subprocess.run([sys.executable, "-m", "kmsfs.cli", "aws", "env", "--container", "--role", "x"], env=environment, capture_output=True, text=True)
    assert refused.returncode == 2
