"""Hosts in network namespaces of their own, on one bridge with the machine; their cables can be pulled."""

import itertools
import os
import subprocess

_NUMBERS = itertools.count(1)


def ip(*words):
    subprocess.run(["ip", *map(str, words)], check=True, capture_output=True, text=True)


class Network:
    """A bridge with an address for the machine; `close` takes everything away again."""

    def __init__(self):
        number = next(_NUMBERS)
        self.name = f"kb{os.getpid() % 100000}-{number}"
        self.prefix = f"10.{200 + os.getpid() % 50}.{number}"
        self.address = f"{self.prefix}.1"
        self.hosts = []
        ip("link", "add", self.name, "type", "bridge")
        ip("address", "add", f"{self.address}/24", "dev", self.name)
        ip("link", "set", self.name, "up")

    def host(self):
        """Return the name of a new namespace with a cable to the bridge."""
        number = len(self.hosts) + 2
        space, outside, inside = f"{self.name}-h{number}", f"{self.name}o{number}"[-15:], f"i{number}{self.name}"[:15]
        ip("netns", "add", space)
        self.hosts.append((space, outside))
        ip("link", "add", outside, "type", "veth", "peer", "name", inside)
        ip("link", "set", inside, "netns", space)
        ip("link", "set", outside, "master", self.name, "up")
        for words in (("address", "add", f"{self.prefix}.{number}/24", "dev", inside), ("link", "set", inside, "up"), ("link", "set", "lo", "up")):
            ip("-n", space, *words)
        return space

    def pull(self, space):
        ip("link", "set", dict(self.hosts)[space], "down")

    def plug(self, space):
        ip("link", "set", dict(self.hosts)[space], "up")

    def close(self):
        for space, outside in self.hosts:
            subprocess.run(["ip", "link", "del", outside], capture_output=True)
            subprocess.run(["ip", "netns", "del", space], capture_output=True)
        subprocess.run(["ip", "link", "del", self.name], capture_output=True)
