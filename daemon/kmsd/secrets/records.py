"""What is kept of a secret and of each of its versions, and how stages move between versions. Pure."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from kmsfs.errors import InvalidParameter, LimitExceeded, SecretNotFound

CURRENT, PENDING, PREVIOUS = "AWSCURRENT", "AWSPENDING", "AWSPREVIOUS"
STAGES_MAX = 20
OWN_STAGES = frozenset({CURRENT, PENDING, PREVIOUS})
VERSIONS_KEPT = 100
"""Versions without a stage are dropped past this many in all (Secrets Manager user guide, "What's in a secret")."""


@dataclass(frozen=True, slots=True)
class Version:
    """One version's facts, without its value. A rotation begins with a version that has none, and no key yet."""

    version_id: str
    created: float
    stages: tuple[str, ...]
    key_arn: str
    former: str = ""
    """The key that it is sealed under as well, since the secret got another one; which of the two opens it, does."""

    @property
    def keys(self) -> list[str]:
        """The keys under which its value is sealed, the secret's own first."""
        return [key for key in (self.key_arn, self.former) if key]


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret without its values. Times are seconds since the epoch."""

    arn: str
    name: str
    scope: str
    owner: str
    created: float
    changed: float
    description: str | None = None
    key: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    versions: tuple[Version, ...] = ()
    """In the order in which they were made."""
    deletion: float | None = None
    deleted: float | None = None
    policy: str | None = None
    rotation_enabled: bool | None = None
    rotator: str | None = None
    rotation_rules: dict[str, Any] | None = None
    rotated: float | None = None
    next_rotation: float | None = None
    rotation_token: str | None = None
    """The version that a rotation under way makes, and since when it does."""
    rotation_since: float | None = None
    accessed: float | None = None
    """The day on which a value was last read; stored with the next change."""

    def row(self) -> dict[str, Any]:
        """The sealed row."""
        return asdict(self)

    @property
    def rotating(self) -> bool:
        """Whether a pending version waits to become the current one."""
        pending = self.staged(PENDING)
        return pending is not None and CURRENT not in pending.stages

    def version(self, version_id: str) -> Version | None:
        """Return a version by its id."""
        return next((version for version in self.versions if version.version_id == version_id), None)

    def staged(self, stage: str) -> Version | None:
        """Return the version that has a stage."""
        return next((version for version in self.versions if stage in version.stages), None)

    def stages(self) -> dict[str, list[str]]:
        """Return the stages of each version that has any."""
        return {version.version_id: list(version.stages) for version in self.versions if version.stages}


def secret_of(row: dict[str, Any]) -> Secret:
    """Read a sealed row."""
    versions = tuple(
        Version(**{**version, "stages": tuple(version["stages"])}) for version in row["versions"]
    )
    return Secret(**{**row, "versions": versions})


def with_version(versions: tuple[Version, ...], new: Version) -> tuple[Version, ...]:
    """Return the versions with a new one, its stages taken from the others; the former current one becomes previous.

    Raises:
        LimitExceeded: if there would be more than twenty stages.
    """
    moved = (*without_stages(versions, new.stages), new)
    before = next((version for version in versions if CURRENT in version.stages), None)
    if CURRENT in new.stages and before is not None:
        # Also where the request says PREVIOUS of the new one: no stage is at two versions.
        moved = _give(without_stages(moved, (PREVIOUS,)), before.version_id, PREVIOUS)
    return _counted(moved)


def move_stage(
    secret: Secret, stage: str, remove_from: str | None, move_to: str | None
) -> tuple[Version, ...]:
    """Return the versions after UpdateSecretVersionStage.

    Raises:
        InvalidParameter: if the stage is at another version than the request says.
        SecretNotFound: if a version is not there.
        LimitExceeded: if there would be more than twenty stages.
    """
    for version_id in (remove_from, move_to):
        if version_id is not None and secret.version(version_id) is None:
            raise SecretNotFound("Secrets Manager can't find the specified secret version.")
    holder = secret.staged(stage)
    if remove_from is not None and (holder is None or holder.version_id != remove_from):
        raise InvalidParameter(
            f"The parameter RemoveFromVersionId value {remove_from} doesn't have the staging label {stage}."
        )
    if holder is not None and remove_from is None and move_to is not None and holder.version_id != move_to:
        raise InvalidParameter(
            f"The parameter RemoveFromVersionId can't be empty. Staging label {stage} is currently attached to "
            f"version {holder.version_id}, so you must explicitly reference that version in RemoveFromVersionId."
        )
    if stage == CURRENT and move_to is None:
        raise InvalidParameter(
            f"You can only move staging label {CURRENT} to a different secret version. It can't be completely removed."
        )
    versions = secret.versions
    if move_to is None:
        return without_stages(versions, (stage,)) if remove_from is not None else versions
    if holder is not None and holder.version_id == move_to:
        return versions
    versions = _give(without_stages(versions, (stage,)), move_to, stage)
    if stage == CURRENT and holder is not None:
        versions = _give(without_stages(versions, (PREVIOUS,)), holder.version_id, PREVIOUS)
    return _counted(versions)


def prune(versions: tuple[Version, ...]) -> tuple[tuple[Version, ...], list[str]]:
    """Return (the versions to keep, ids of those without a stage that go: the oldest past one hundred in all)."""
    surplus = len(versions) - VERSIONS_KEPT
    gone = [version.version_id for version in versions if not version.stages][: max(0, surplus)]
    return tuple(version for version in versions if version.version_id not in gone), gone


def without_stages(versions: tuple[Version, ...], stages: tuple[str, ...]) -> tuple[Version, ...]:
    """Return the versions, none of which has any of these stages."""
    return tuple(replace(v, stages=tuple(s for s in v.stages if s not in stages)) for v in versions)


def _give(versions: tuple[Version, ...], version_id: str, stage: str) -> tuple[Version, ...]:
    return tuple(replace(v, stages=(*v.stages, stage)) if v.version_id == version_id else v for v in versions)


def _counted(versions: tuple[Version, ...]) -> tuple[Version, ...]:
    if sum(len(version.stages) for version in versions) > STAGES_MAX:
        raise LimitExceeded("You can't have more than 20 staging labels on a secret.")
    return versions
