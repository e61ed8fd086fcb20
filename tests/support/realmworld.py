"""A daemon without sockets, in the test's own process, whose clock the test winds."""

import itertools
import os

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize

from kmsd.app import Daemon
from kmsd.authz.principal import make_caller
from kmsd.config import Config
from kmsd.realm import initialise, open_realm
from kmsd.root.keyring import SealType
from kmsfs.formats.frame import Request


class World:
    """A realm in `folder`, and one caller: whoever runs the test."""

    def __init__(self, folder):
        self._config = Config(folder / "state", folder / "kmsd.sock")
        self.now = 1_900_000_000.0
        initialise(self._config, SealType.KEYFILE, None)
        self._start()

    def _start(self):
        self.daemon = Daemon(self._config, open_realm(self._config, None))
        self.pipeline = self.daemon._pipeline
        self.pipeline._clock = lambda: self.now
        self.me = make_caller(self.daemon._account, os.getuid(), os.getgid(), os.getpid(), ())

    def restart(self):
        """Go on with what is stored."""
        self.daemon._close()
        self._start()

    def call(self, region, operation, **parameters):
        return self.pipeline.run(self.me, Request(1, operation, parameters, None, None), 0, region)[0]


class RealmMachine(RuleBasedStateMachine):
    """A model that is compared with a realm, in a region of its own each time."""

    world = None
    regions = itertools.count(1)

    @initialize()
    def begin_in_a_region(self):
        self.region = f"model-region-{next(self.regions)}"
        self.begin()

    def begin(self):
        """What the model begins with."""
        raise NotImplementedError

    def call(self, operation, **parameters):
        return self.world.call(self.region, operation, **parameters)

    def refused(self, error, operation, **parameters):
        with pytest.raises(error):
            self.call(operation, **parameters)


def compare(machine, folder, examples, steps):
    """Run a model against a new realm in `folder`."""
    machine.world = World(folder)
    machine.TestCase.settings = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck),
        phases=(Phase.reuse, Phase.generate, Phase.shrink),
    )  # fmt: skip
    machine.TestCase("runTest").debug()
