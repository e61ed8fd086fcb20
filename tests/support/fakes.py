"""Providers, clocks and file tools for tests of the file format."""

import os
import random

from kmsfs.envelope.filekeys import FileKeys
from kmsfs.envelope.kf1file import FileTools
from kmsfs.envelope.provider import FreshKey
from kmsfs.envelope.recovery import SessionRules
from kmsfs.envelope.volumekeys import VolumeKeys
from kmsfs.errors import AccessDenied
from kmsfs.secret import DataKey, KeyMaterial


class FakeProvider:
    """Makes data keys without a daemon; `denied` makes it refuse to open any."""

    def __init__(self):
        self.keys = {}
        self.denied = False
        self.opened = 0

    def fresh(self, key_id=""):
        key = os.urandom(32)
        made = FreshKey(os.urandom(16), FileKeys(DataKey(key)), os.urandom(132))
        self.keys[made.file_id] = key
        return made

    def open(self, file_id, wrapped):
        self.opened += 1
        if self.denied:
            raise AccessDenied("no")
        return FileKeys(DataKey(self.keys[file_id]))


def volume_keys():
    return VolumeKeys(os.urandom(16), KeyMaterial(os.urandom(32)))


class MemoryRecords:
    """Freshness records that outlive a cut, though not always those since the last flush."""

    since = 1

    def __init__(self):
        self.stored = {}
        self.changed = {}
        self.waiting = []
        self.doubtful = False

    def find(self, file_id):
        return self.changed[file_id] if file_id in self.changed else self.stored.get(file_id)

    def durable(self, commit):
        known = self.find(commit.file_id)
        assert known is None or known[0] <= commit.generation, "a record went back in time"
        self.changed[commit.file_id] = (commit.generation, commit.tag)

    def gone(self, file_id):
        self.waiting.append(file_id)

    def take_gone(self):
        taken, self.waiting = self.waiting, []
        return taken

    def removed(self, file_ids):
        self.changed.update(dict.fromkeys(file_ids))

    def doubt(self):
        self.doubtful = True

    def flush(self):
        self.stored = {**self.stored, **self.changed}
        self.changed = {}

    def crash(self, rng):
        if rng.random() < 0.5:
            self.flush()
        self.changed, self.waiting = {}, []


def make_tools(keys=None, provider=None, session=1, unclean=(), chunk_log2=14, freshness=None):
    return FileTools(
        keys or volume_keys(),
        provider or FakeProvider(),
        SessionRules(session, set(unclean)),
        os.urandom,
        chunk_log2,
        bytearray(1 << 20),
        freshness,
    )


def seeded(seed):
    return random.Random(seed)
