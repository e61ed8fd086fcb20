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

    def fresh(self):
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


def make_tools(keys=None, provider=None, session=1, unclean=(), chunk_log2=14):
    return FileTools(
        keys or volume_keys(),
        provider or FakeProvider(),
        SessionRules(session, set(unclean)),
        os.urandom,
        chunk_log2,
        bytearray(1 << 20),
    )


def seeded(seed):
    return random.Random(seed)
