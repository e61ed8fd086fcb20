"""Shapes of kmsfs's own operations: status, watch stream, volume sessions."""

from typing import Annotated, Literal

from msgspec import Meta, field

from kmsfs.api.operation import Shape
from kmsfs.api.shapes.common import KeyIdText
from kmsfs.api.shapes.keys import KeyLastUsage
from kmsfs.quantity import PARAMETER_NAME_MAX_CHARS

VolumeIdText = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}$")]


class StatusResponse(Shape, kw_only=True):
    """Who answers, and as whom it sees the caller."""

    version: str
    account: str
    principal: str
    pid: int
    state_directory: str
    root_key_source: str
    uptime_seconds: float
    keys: int = field(default=-1)
    private: bool = field(default=False)
    aws_endpoint: str | None = None
    home_region: str | None = None
    audit_digest_key: str | None = None
    """Public key of the audit log's digests, hex."""
    damaged_records: int = 0
    """Records of the state that cannot be read: what they were is refused, everything else is served."""
    host: str | None = None
    """What this daemon's host is called among those that share its database."""


class SealStatus(Shape, kw_only=True):
    """Whether the daemon has its root key, and how far an unsealing has come.

    `root_key_source` is where the key comes from at a start; `shares_given` of `shares_needed` shares are there, the
    latter once one is.
    """

    sealed: bool
    root_key_source: str
    pid: int
    shares_given: int = field(default=-1)
    shares_needed: int | None = None


class UnsealRequest(Shape, kw_only=True):
    """A share of the root key, or the passphrase; without either the daemon asks its own source. Secret."""

    share: Annotated[str, Meta(max_length=512)] | None = None
    passphrase: Annotated[bytes, Meta(min_length=1, max_length=1024)] | None = None


class WatchRequest(Shape, kw_only=True):
    """Which keys to be told about."""

    key_ids: Annotated[list[KeyIdText], Meta(min_length=1, max_length=64)]


class WatchResponse(Shape, kw_only=True):
    """The stream has begun; events and heartbeats follow under the same request id. `sent_at` is by the daemon's CLOCK_BOOTTIME, as is `at` of a heartbeat."""

    heartbeat_seconds: float
    lease_seconds: float
    sent_at: float


ChangeSource = Literal["kms", "secretsmanager", "ssm", "alarms"]


class WatchChangesRequest(Shape, kw_only=True):
    """Which changes to be told of: those of keys, secrets and parameters if no source is named, of parameters those below a path; after a token, or from now on."""

    sources: Annotated[list[ChangeSource], Meta(min_length=1, max_length=4)] | None = None
    path: Annotated[str, Meta(max_length=PARAMETER_NAME_MAX_CHARS)] | None = None
    after: Annotated[str, Meta(max_length=64)] | None = None


class WatchChangesResponse(Shape, kw_only=True):
    """The stream has begun: changes and heartbeats follow under the same request id, each change with its token."""

    token: str
    """The place of the last change before the stream; asked for `after` it, what happened since is sent first."""
    complete: bool
    """False if what happened after the token is not known: whatever was read before may be of the past."""
    missed: int
    """So many of the events that follow happened before the stream began."""
    heartbeat_seconds: float
    sent_at: float


class RaiseAlarmRequest(Shape, kw_only=True):
    """An alarm over the audit log: the rule's name, what it is about, of whom or what, how often, and one of the records as JSON text."""

    alarm_name: Annotated[str, Meta(min_length=1, max_length=128)]
    about: Annotated[str, Meta(min_length=1, max_length=32, pattern=r"^[a-z-]+$")]
    group: Annotated[str, Meta(max_length=256)] = ""
    count: Annotated[int, Meta(ge=1)] = 1
    record: Annotated[str, Meta(max_length=32_768)] = "{}"


class OpenVolumeSessionRequest(Shape, kw_only=True):
    """Ask for the volume's lease; `resume` names the session that a reconnecting mount holds."""

    key_id: KeyIdText
    volume_id: VolumeIdText
    read_only: bool = False
    resume: Annotated[int, Meta(ge=1)] | None = None


class OpenVolumeSessionResponse(Shape, kw_only=True):
    """The session number, the sessions that did not end cleanly, and what the volume's freshness records must be.

    `freshness_head` is the digest of the records that the last clean session left, or another mark where there are none;
    with `freshness_may_begin` new ones may begin from what is there. `directory_keys` are the KMS keys of directories that
    have one of their own, by directory id. `store_seconds` are how long after the daemon's last word the session may still store something;
    absent where no other host can take the volume over.
    """

    session: int
    unclean_sessions: list[int]
    freshness_head: bytes
    freshness_may_begin: bool
    directory_keys: dict[str, str] = {}
    store_seconds: float | None = None


class CloseVolumeSessionRequest(Shape, kw_only=True):
    """End a session cleanly: everything it committed is durable."""

    key_id: KeyIdText
    volume_id: VolumeIdText
    session: Annotated[int, Meta(ge=1)]
    freshness_head: Annotated[bytes, Meta(min_length=32, max_length=32)] | None = None


class AcceptVolumeRestoreRequest(Shape, kw_only=True):
    """Take a volume as it is now: its freshness records begin anew."""

    key_id: KeyIdText
    volume_id: VolumeIdText


class MoveVolumeRequest(Shape, kw_only=True):
    """Let a volume belong to another KMS key from its next session on."""

    key_id: KeyIdText
    volume_id: VolumeIdText
    session: Annotated[int, Meta(ge=1)]
    target_key_id: KeyIdText


class SetDirectoryKeyRequest(Shape, kw_only=True):
    """Give a directory of a volume a KMS key of its own, or without `target_key_id` the one of the directory above."""

    key_id: KeyIdText
    volume_id: VolumeIdText
    session: Annotated[int, Meta(ge=1)]
    directory_id: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}$")]
    target_key_id: KeyIdText | None = None


class SetDirectoryKeyResponse(Shape, kw_only=True):
    """The directory's key now: its id, absent if it has none of its own."""

    target_key_id: str | None = None


class DestroyKeyMaterialRequest(Shape, kw_only=True):
    """Old key material, by its id, that nothing needs any more."""

    key_id: KeyIdText
    key_material_id: Annotated[str, Meta(min_length=64, max_length=64, pattern=r"^[a-f0-9]+$")]


class DestroyKeyMaterialResponse(Shape, kw_only=True):
    """The key, and the version of its material that is gone."""

    key_id: str
    material_version: int


class HealVolumeRequest(Shape, kw_only=True):
    """Say that recovery has run over every file: these sessions are unclean no more."""

    key_id: KeyIdText
    volume_id: VolumeIdText
    session: Annotated[int, Meta(ge=1)]
    healed_sessions: Annotated[list[int], Meta(min_length=1, max_length=4096)]


class ListKeyDependentsResponse(Shape, kw_only=True):
    """What cannot be read without a key: ids of volumes, and how many grants, parameters and secrets."""

    key_id: str
    aliases: list[str]
    grants: int
    volumes: list[str]
    parameters: int
    secrets: int
    key_last_usage: KeyLastUsage | None = None


class GetMetricsResponse(Shape, kw_only=True):
    """Prometheus's text."""

    text: str
