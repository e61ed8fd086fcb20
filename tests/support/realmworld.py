"""A daemon without sockets, in the test's own process, whose clock the test winds."""

import os

from kmsd.app import Daemon
from kmsd.authz.principal import make_caller
from kmsd.config import Config
from kmsd.realm import initialise, open_realm
from kmsd.root.keyring import SealType
from kmsfs.formats.frame import Request


class World:
    """A realm in `folder`, and one caller: whoever runs the test."""

    def __init__(self, folder):
        config = Config(folder / "state", folder / "kmsd.sock")
        initialise(config, SealType.KEYFILE, None)
        self.daemon = Daemon(config, open_realm(config, None))
        self.now = 1_900_000_000.0
        self.pipeline = self.daemon._pipeline
        self.pipeline._clock = lambda: self.now
        account = self.daemon._account
        self.me = make_caller(account, os.getuid(), os.getgid(), os.getpid(), ())

    def call(self, region, operation, **parameters):
        return self.pipeline.run(self.me, Request(1, operation, parameters, None, None), 0, region)[0]
