"""A log in a chain, as kmsd writes it, with records that can go missing."""

from kmsd.audit.journal import Chain
from kmsfs.formats.audit import GENESIS


class Log:
    def __init__(self, path):
        self.path = path
        path.touch()
        self._chain = Chain(0, GENESIS, bytes(32))

    def add(self, record):
        with self.path.open("ab") as stream:
            stream.write(self._chain.seal(dict(record)))

    def skip(self, record):
        """A record that was in the log once."""
        self._chain.seal(dict(record))


def make_log(folder):
    return Log(folder / "audit.jsonl")
