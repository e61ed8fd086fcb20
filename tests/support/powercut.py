"""A user-space power-cut simulator for the real KF1 code (security.md 6.6).

The disk is a page cache over 512-byte sectors. Power cut: every sector written since the last barrier keeps its
old content or any version written since. SIGKILL: the page cache survives, the write in progress is cut at a page.
The judge is a promise manifest: after recovery the file is exactly at one of its commits, not older than the last
one whose fsync returned.
"""

import random

from kmsfs.envelope import content
from kmsfs.envelope.kf1file import Kf1File
from kmsfs.errors import KmsfsError

from support.fakes import FakeProvider, MemoryRecords, make_tools, volume_keys

SECTOR = 512
PAGE = 4096


class Cut(BaseException):
    """The power is gone, or the process is."""


class RecordingDisk:
    """A BlockFile whose unsynced writes may or may not survive."""

    def __init__(self, rng, mode):
        self.rng = rng
        self.mode = mode
        self.durable = bytearray()
        self.cache = bytearray()
        self.versions = {}
        self.fuse = None
        self.broken_barriers = False

    def _burn(self):
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                return True
        return False

    def read(self, length, offset):
        return bytes(self.cache[offset : offset + length])

    def read_into(self, buffer, offset):
        piece = self.cache[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        return len(piece)

    def write(self, data, offset):
        data = bytes(data)
        if self._burn():
            cut = self.rng.randrange(0, len(data) // PAGE + 1) * PAGE
            self._store(data[:cut], offset)
            if self.mode == "power":
                # The rest was on its way to the disk too: each sector may arrive.
                self._record(data[cut:], offset + cut)
            raise Cut
        self._store(data, offset)

    def _store(self, data, offset):
        if len(self.cache) < offset + len(data):
            self.cache.extend(bytes(offset + len(data) - len(self.cache)))
        self.cache[offset : offset + len(data)] = data
        self._record(data, offset)

    def _record(self, data, offset):
        assert offset % SECTOR == 0
        for at in range(0, len(data), SECTOR):
            self.versions.setdefault((offset + at) // SECTOR, []).append(data[at : at + SECTOR].ljust(SECTOR, b"\0"))

    def datasync(self):
        if self._burn():
            raise Cut
        if self.broken_barriers:
            return
        self.durable = bytearray(self.cache)
        self.versions = {}

    sync = datasync

    def size(self):
        return len(self.cache)

    def truncate(self, size):
        # Metadata: taken as done at once, which is the harder case for blocks given back too early.
        for disk in (self.cache, self.durable):
            del disk[size:]
        self.versions = {number: v for number, v in self.versions.items() if number * SECTOR < size}

    def punch(self, offset, length):
        # As truncate: at once.
        for disk in (self.cache, self.durable):
            end = min(offset + length, len(disk))
            disk[offset:end] = bytes(max(0, end - offset))
        for number in range(offset // SECTOR, (offset + length) // SECTOR):
            self.versions.pop(number, None)

    def close(self):
        pass

    def crash(self):
        """What is on the disk when the machine, or the process, comes back."""
        self.fuse = None
        if self.mode == "power":
            for number, versions in self.versions.items():
                survivor = self.rng.choice([None, *versions]) if self.rng.random() < 0.7 else versions[-1]
                if survivor is not None:
                    at = number * SECTOR
                    if len(self.durable) < at + SECTOR:
                        self.durable.extend(bytes(at + SECTOR - len(self.durable)))
                    self.durable[at : at + SECTOR] = survivor
            self.cache = bytearray(self.durable)
            self.versions = {}


class Violation(AssertionError):
    """A promise was broken."""


class History:
    """One trial: several lives of one file, each ended by a cut or cleanly."""

    def __init__(self, seed, mode, mutate=None):
        self.rng = random.Random(seed)
        self.mode = mode
        self.disk = RecordingDisk(self.rng, mode)
        self.keys = volume_keys()
        self.provider = FakeProvider()
        self.records = MemoryRecords()
        self.mutate = mutate
        self.commits = [b""]
        self.acknowledged = 0
        self.session = 0
        self.unclean = set()
        self.created = False
        self.fallbacks = 0
        self.chunk_log2 = self.rng.choice((12, 14))

    def run(self):
        for _ in range(self.rng.randrange(1, 5)):
            self.life()
        self.begin()
        return self

    def begin(self):
        """Mount again and judge what is there."""
        self.session += 1
        tools = make_tools(self.keys, self.provider, self.session, self.unclean, self.chunk_log2, self.records)
        self.unclean.add(self.session)
        try:
            if not any(self.disk.cache[:8192]):
                if self.acknowledged:
                    raise Violation("a file with an acknowledged commit has no header")
                file = Kf1File.create(tools, self.disk, self.provider.fresh())
            else:
                file = Kf1File.open(tools, self.disk)
            found = bytes(content.read(file, file.size, 0))
        except KmsfsError as error:
            if self.created and not self.acknowledged and not self.commits_possible():
                self.disk.cache = bytearray()
                self.disk.durable = bytearray()
                file = Kf1File.create(tools, self.disk, self.provider.fresh())
                found = b""
            else:
                raise Violation(f"unreadable: {error!r}") from error
        matching = [i for i in range(self.acknowledged, len(self.commits)) if self.commits[i] == found]
        if not matching:
            raise Violation("content is at no commit since the last acknowledged one")
        if file.last_slot is None:
            # Nothing was on the disk, and nothing was promised: the file begins again.
            self.commits, self.acknowledged = [b""], 0
        else:
            self.commits = self.commits[: matching[-1] + 1]
            self.acknowledged = matching[-1]
        self.created = True
        if self.mutate:
            self.mutate(file, self.disk)
        return file, bytearray(found)

    def commits_possible(self):
        """Whether any commit was ever durable; a file whose creation was cut may be lost whole."""
        return self.acknowledged > 0

    def life(self):
        file, model = self.begin()
        self.disk.fuse = self.rng.randrange(0, 60)
        # "mixed": a killed process, and later a power cut before its pages reached the disk.
        self.disk.mode = self.rng.choice(("power", "kill")) if self.mode == "mixed" else self.mode
        try:
            for _ in range(self.rng.randrange(1, 25)):
                self.step(file, model)
            if self.rng.random() < 0.3:
                self.disk.fuse = None
                self.commit(file, model, durable=True)
                self.records.flush()
                self.unclean.discard(self.session)
                return
            raise Cut
        except Cut:
            self.disk.crash()
            self.records.crash(self.rng)
        except KmsfsError as error:
            raise Violation(f"fails while it is used: {error!r}") from error

    def step(self, file, model):
        roll = self.rng.random()
        if file.last_slot is None:
            # A new file gets its first header before its first chunk, whatever it holds then.
            self.commits.append(bytes(model))
        if roll < 0.5:
            offset = self.rng.randrange(0, len(model) + 1) if self.rng.random() < 0.7 else self.rng.randrange(0, 120_000)
            data = self.rng.randbytes(self.rng.choice((1, 100, 2000, 4096, 5000, 16384, 40_000)))
            content.write(file, data, offset)
            if len(model) < offset:
                model.extend(bytes(offset - len(model)))
            model[offset : offset + len(data)] = data
        elif roll < 0.6:
            size = self.rng.randrange(0, len(model) * 3 // 2 + 2)
            content.truncate(file, size)
            del model[size:]
            model.extend(bytes(size - len(model)))
        elif roll < 0.65:
            offset, length = self.rng.randrange(0, len(model) + 1), self.rng.randrange(1, 50_000)
            content.punch(file, offset, length)
            end = min(len(model), offset + length)
            model[offset:end] = bytes(max(0, end - offset))
        elif roll < 0.8:
            self.commit(file, model, durable=False)
        else:
            self.commit(file, model, durable=True)

    def commit(self, file, model, *, durable):
        self.commits.append(bytes(model))
        file.commit()
        if durable:
            file.make_durable()
            self.acknowledged = len(self.commits) - 1


def campaign(count, mutate=None, modes=("power", "kill", "mixed"), first_seed=0):
    """Run `count` histories, modes in turn; return the number of violations."""
    violations = 0
    for number in range(count):
        try:
            History(first_seed + number, modes[number % len(modes)], mutate).run()
        except Violation:
            violations += 1
    return violations
