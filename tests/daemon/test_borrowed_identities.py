"""Nobody borrows an identity: passed descriptors, programs that change their user, user namespaces, and pids that come again."""

import os
import socket
import subprocess
import sys

import pytest

from kmsfs import errors
from kmsfs.client.transport import Transport
from support.peers import as_user, let_others_in

pytestmark = pytest.mark.root


@pytest.fixture
def open_daemon(daemon):
    let_others_in(daemon.folder)
    os.chmod(daemon.socket, 0o666)
    return daemon


def who(transport):
    return transport.call("GetCallerIdentity", {})["r"]["Arn"].rpartition(":")[2]


def test_a_passed_descriptor_stays_its_makers(open_daemon):
    """unix(7): SO_PEERCRED is of who called connect(2); whoever is handed the descriptor can do what he could, and is not himself."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        os.setgid(4321)
        os.setuid(4321)
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(open_daemon.socket))
        socket.send_fds(theirs, [b"x"], [connection.fileno()])
        os._exit(0)
    _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    os.waitpid(child, 0)
    handed = Transport(str(open_daemon.socket), 10, connected=socket.socket(fileno=descriptors[0]))
    assert who(handed) == "uid/4321"  # root that speaks through it is not root
    with pytest.raises(errors.KmsfsError):
        answer = handed.call("GetMetrics", {})
        raise errors.AccessDenied(answer["e"]["message"]) if "e" in answer else AssertionError("root's")
    handed.close()
    ours.close()
    theirs.close()


def test_a_program_that_drops_its_rights_is_who_it_was_on_old_connections_only(open_daemon):
    """A connection that was made before setuid(2) stays that of who made it, and new ones are the new user's: nothing is gained by execve(2)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        before = Transport(str(open_daemon.socket), 10)
        first = who(before)
        os.setgid(4321)
        os.setuid(4321)
        after = Transport(str(open_daemon.socket), 10)
        os.write(writer, f"{first} {who(before)} {who(after)}".encode())
        os._exit(0)
    os.close(writer)
    said = os.read(reader, 200).decode().split()
    os.close(reader)
    os.waitpid(child, 0)
    assert said == ["uid/0", "uid/0", "uid/4321"]


def test_root_of_a_user_namespace_is_who_made_it(open_daemon):
    """user_namespaces(7): uid 0 in there is uid 4321 out here, and the kernel says the latter."""
    program = (
        "import ctypes, os, socket, struct, sys\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "if libc.unshare(0x10000000): sys.exit(77)\n"
        "open('/proc/self/setgroups', 'w').write('deny')\n"
        "open('/proc/self/uid_map', 'w').write('0 4321 1')\n"
        "open('/proc/self/gid_map', 'w').write('0 4321 1')\n"
        "assert os.getuid() == 0\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall(bytes.fromhex(sys.argv[2]))\n"
        "sys.stdout.buffer.write(s.recv(4096))\n"
    )
    from kmsfs.formats.frame import encode_request

    frame = encode_request(1, "GetCallerIdentity", {}).hex()
    done = subprocess.run(["/usr/bin/python3", "-c", program, str(open_daemon.socket), frame], user=4321, group=4321, extra_groups=[], capture_output=True)
    if done.returncode == 77:
        pytest.skip("no user namespaces for ordinary users here")
    assert done.returncode == 0, done.stderr
    assert b":uid/4321" in done.stdout and b":uid/0" not in done.stdout


def test_a_pid_is_nobody(open_daemon):
    """What a caller may do hangs on uid and groups, never on the pid, which another process has next: it is in the audit log alone."""
    with as_user(open_daemon, 4321) as first, as_user(open_daemon, 4322) as second:
        # The same pid, two users.
        assert first("GetCallerIdentity")["Arn"].endswith("uid/4321") and second("GetCallerIdentity")["Arn"].endswith("uid/4322")
        key = first("CreateKey")["KeyMetadata"]["KeyId"]
        with pytest.raises(errors.AccessDenied):
            second("DescribeKey", KeyId=key)


def test_a_program_cannot_name_itself(open_daemon):
    """What a frame says of a user is for the log: `context_uid` changes nothing of what is allowed."""
    with as_user(open_daemon, 4321) as owner:
        key = owner("CreateKey")["KeyMetadata"]["KeyId"]
    os.setegid(4322)
    os.seteuid(4322)
    try:
        transport = Transport(str(open_daemon.socket), 10)
    finally:
        os.seteuid(0)
        os.setegid(0)
    for claimed in (4321, 0, None):
        answer = transport.call("DescribeKey", {"KeyId": key}, claimed)
        assert answer["e"]["code"] == "AccessDeniedException"
    transport.close()
