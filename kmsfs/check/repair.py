"""Mend what can be mended without guessing, and move out of the way what cannot be read, where that is asked for.

A damaged header is written anew from the good one only if the freshness records say that the good one is the present, and
all of its content opens. Nothing that has content is ever removed: what is set aside lies in `.damaged` in the cipher
directory, where `kmsfs rescue` of a copy may still look at it.
"""

import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kmsfs.backing.posix import PosixFile, sync_file_system
from kmsfs.check.verify import DAMAGE, FORGET, LEFTOVER, NEW_HEADER, REMOVE, SET_ASIDE, Finding, Report
from kmsfs.envelope.kf1file import FileTools, Kf1File
from kmsfs.envelope.slots import read_slots
from kmsfs.errors import CorruptFile, IntegrityReason, KmsfsError

ASIDE = ".damaged"


@dataclass(slots=True)
class RepairReport:
    """What was done: (where it is stored, what was done), and what could not be, with why."""

    done: list[tuple[str, str]] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return {
            "repaired": [{"stored_as": where, "done": what} for where, what in self.done],
            "left": [{"stored_as": where, "problem": problem} for where, problem in self.left],
        }


class Repairer:
    """Acts on what a check of a volume found. The caller holds the volume's writer lease; the volume is clean."""

    def __init__(self, tools: FileTools, cipher_dir: Path, *, set_aside: bool) -> None:
        self._tools = tools
        self._cipher_dir = cipher_dir
        self._set_aside = set_aside
        self.report = RepairReport()

    def run(self, found: Report, descriptor: int) -> RepairReport:
        """Repair what `found` has a remedy for.

        Raises:
            StorageError: if the last barrier fails.
        """
        often = Counter(finding.stored_as for finding in found.findings if finding.kind == DAMAGE)
        self._forget(found)
        for finding in found.findings:
            if finding.remedy == FORGET:
                continue
            try:
                self._one(finding, alone=often[finding.stored_as] == 1)
            except (KmsfsError, OSError) as error:
                self.report.left.append((finding.stored_as, str(error)))
        sync_file_system(descriptor)
        return self.report

    def _forget(self, found: Report) -> None:
        if found.recognized and self._tools.freshness is not None:
            self._tools.freshness.forget(found.unseen)
            gone = [finding.stored_as for finding in found.findings if finding.remedy == FORGET]
            self.report.done += [(stored_as, "its record is forgotten") for stored_as in gone]

    def _one(self, finding: Finding, *, alone: bool) -> None:
        place = self._cipher_dir / finding.stored_as
        if finding.remedy == REMOVE and finding.kind == LEFTOVER:
            place.unlink()
            self.report.done.append((finding.stored_as, "removed"))
        elif finding.remedy == NEW_HEADER and alone:
            self._new_header(place)
            self.report.done.append((finding.stored_as, "the damaged header is written anew"))
        elif finding.remedy == SET_ASIDE and self._set_aside:
            self._move(place, finding.stored_as)
        else:
            self.report.left.append((finding.stored_as, finding.problem))

    def _new_header(self, place: Path) -> None:
        if self._tools.freshness is None:
            raise CorruptFile(
                "no freshness records say that the header that is left is the newer one", IntegrityReason.OTHER_SLOT
            )
        backing = PosixFile(os.open(place, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC))
        try:
            pair = read_slots(self._tools.keys, backing)
            if pair.damaged is None or len(pair.valid) != 1:
                raise CorruptFile("the headers are not as they were when they were checked", IntegrityReason.OTHER_SLOT)
            if self._tools.freshness.find(pair.valid[0].clear.file_id) is None:
                raise CorruptFile("no record says that the header that is left is the newer one", IntegrityReason.OTHER_SLOT)
            file = Kf1File.open_pair(self._tools, backing, pair, None, known=False)
            file.attributes_dirty = True
            file.commit()
            file.make_durable()
        finally:
            backing.close()

    def _id_of(self, place: Path) -> bytes:
        """Return the id of a file; nothing if it is none, or that cannot be told."""
        if not stat.S_ISREG(place.lstat().st_mode):
            return b""
        backing = PosixFile(os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
        try:
            valid = read_slots(self._tools.keys, backing).valid
        except KmsfsError:
            return b""
        finally:
            backing.close()
        return valid[0].clear.file_id if valid else b""

    def _move(self, place: Path, stored_as: str) -> None:
        aside = self._cipher_dir / ASIDE
        aside.mkdir(mode=0o700, exist_ok=True)
        number = sum(1 for _ in aside.iterdir())
        target = aside / f"{number:06d}"
        gone = self._id_of(place)
        place.rename(target)
        if self._tools.freshness is not None and gone:
            self._tools.freshness.removed([gone])
        elif self._tools.freshness is not None:
            self._tools.freshness.doubt()
        if place.name[0] == "l":
            (place.parent / f"s{place.name[1:]}").unlink(missing_ok=True)
        self.report.done.append((stored_as, f"set aside as {ASIDE}/{target.name}"))
