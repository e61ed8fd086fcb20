"""Where a daemon keeps its state and how it is reached."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kmsd.audit.upkeep import KEEP_ALL, AuditLimits
from kmsd.parameters.tier import AWS_LIMITS, ParameterLimits
from kmsd.root.keyring import SealType
from kmsd.root.sources import RootSource
from kmsd.server.throttle import OperationClass
from kmsd.tokens.token import TokenPlace

SYSTEM_STATE = Path("/var/lib/kmsd")
HOME_REGION = "us-east-1"
SYSTEM_SOCKET = Path("/run/kmsd/kmsd.sock")


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of one daemon."""

    state: Path
    socket: Path
    socket_mode: int = 0o660
    accept_rollback: bool = False
    private: bool = False
    administrators: tuple[int, ...] = ()
    aws_endpoint: tuple[str, int] | None = None
    """Loopback address and port of the HTTP door, if it is wanted."""
    aws_socket: Path | None = None
    """Unix socket of the HTTP door, if it is wanted."""
    home_region: str = HOME_REGION
    """The region in which the door shows what the socket keeps."""
    metrics: tuple[str, int] | None = None
    """Loopback address and port of the metrics, if they are wanted."""
    traces: tuple[str, int] | None = None
    """Loopback address and port of an OpenTelemetry collector, if calls are to be traced."""
    guardrails: Path | None = None
    """The folder of policies that nobody can loosen."""
    credentials: Path | None = None
    """Where to bind the socket of systemd's credentials, if systemd passes none."""
    digest_seconds: float = 3600.0
    """Time between two signed digests of the audit log."""
    audit_limits: AuditLimits = KEEP_ALL
    quotas: dict[OperationClass, float] | None = None
    """Calls a second of each principal, by class, where they are not the defaults."""
    parameter_limits: ParameterLimits = AWS_LIMITS
    key_store_tokens: Mapping[str, TokenPlace] = field(default_factory=dict)
    """Tokens that custom key stores may have, by name."""
    accept_clock: bool = False
    """The machine's clock counts, though the audit log knows a later time."""
    ephemeral: bool = False
    """The realm is gone when the daemon stops."""

    @property
    def lock(self) -> Path:
        """Held locked by the one process that may use the state; says which."""
        return self.state / "kmsd.lock"

    @property
    def keyring(self) -> Path:
        """The wrapped domain keys."""
        return self.state / "keyring.kms"

    @property
    def database(self) -> Path:
        """The sealed store."""
        return self.state / "state.db"

    @property
    def database_url(self) -> Path:
        """Says where the database is, if the state is not in the folder but shared with other hosts."""
        return self.state / "database.url"

    @property
    def host_file(self) -> Path:
        """What this host is called among those that share a database."""
        return self.state / "host"

    @property
    def keyfile(self) -> Path:
        """The default root key."""
        return self.state / "root.key"

    @property
    def audit(self) -> Path:
        """The folder of the audit log."""
        return self.state / "audit"

    @property
    def anchor(self) -> Path:
        """The anti-rollback anchor: in another folder, so that restoring the state folder is noticed."""
        return self.state.with_name(self.state.name + "-anchor") / "anchor.kms"

    @property
    def token_file(self) -> Path:
        """Which token has the root key, where one has."""
        return self.state / "root.token"

    def source(
        self, seal_type: SealType, passphrase_file: Path | None, token: TokenPlace | None = None
    ) -> RootSource:
        """Return the root key source of this daemon; `token` is where a new realm's key is to be."""
        return RootSource(seal_type, self.keyfile, passphrase_file, self.token_file, token)


def lock_memory_and_dumps() -> None:
    """Forbid core dumps and reading this process's memory; best effort where the kernel refuses."""
    import ctypes
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    pr_set_dumpable = 4
    libc.prctl(pr_set_dumpable, 0, 0, 0, 0)
    mcl_current, mcl_future, mcl_onfault = 1, 2, 4
    libc.mlockall(mcl_current | mcl_future | mcl_onfault)
