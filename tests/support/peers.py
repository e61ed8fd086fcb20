"""Be another user at the other end of a socket."""

import contextlib
import os

from kmsfs.client.remote import to_exception
from kmsfs.client.transport import Transport


@contextlib.contextmanager
def as_user(daemon, uid):
    """Connect as another uid: SO_PEERCRED tells the credentials at connect(2)."""
    for path in (daemon.folder, daemon.folder.parent, daemon.folder.parent.parent):
        os.chmod(path, 0o755)
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
