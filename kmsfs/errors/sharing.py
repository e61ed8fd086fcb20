"""Errors of daemons that share a database."""

from kmsfs.errors.core import Unavailable


class DatabaseUnreachable(Unavailable):
    """The database that several daemons share does not answer, or has not for longer than what is in memory may be used."""


class StateMoved(Unavailable):
    """Another daemon wrote between this one's look and its write; nothing was done, and the call can be made again."""
