"""Be another user at the other end of a socket."""

import contextlib
import os

from kmsfs.client.remote import to_exception
from kmsfs.client.transport import Transport


def let_others_in(path):
    """Let ordinary users reach a test's folder."""
    for folder in (path, *path.parents):
        if str(folder).startswith("/tmp/"):
            folder.chmod(folder.stat().st_mode | 0o755)


@contextlib.contextmanager
def as_user(daemon, uid):
    """Connect as another uid: SO_PEERCRED tells the credentials at connect(2)."""
    let_others_in(daemon.folder)
    os.chmod(daemon.socket, 0o666)
    os.setegid(uid)
    os.seteuid(uid)
    try:
        transport = Transport(str(daemon.socket), 10)
    finally:
        os.seteuid(0)
        os.setegid(0)

    def ask(operation, **parameters):
        answer = transport.call(operation, parameters)
        if "e" in answer:
            raise to_exception(answer["e"])
        return answer["r"]

    ask.transport = transport
    yield ask
    transport.close()
