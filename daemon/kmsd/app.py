"""The composition root: the only place where rooms meet."""

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from kmsd.access.denials import Denials
from kmsd.access.rules import load_guardrails
from kmsd.access.service import AccessService
from kmsd.accounts.service import AccountService
from kmsd.accounts.store import AccountStore
from kmsd.audit.digests import AuditDigests
from kmsd.audit.journal import Journal
from kmsd.audit.upkeep import AuditUpkeep
from kmsd.authz.guardrails import Guardrails
from kmsd.clock import RealmClock
from kmsd.config import Config
from kmsd.credentials.server import CredentialSession
from kmsd.dispatch.authorise import Authoriser
from kmsd.dispatch.batch import BatchService
from kmsd.dispatch.bindings import Services, bind_handlers
from kmsd.dispatch.pipeline import Pipeline
from kmsd.dispatch.status import AdminService, DaemonFacts
from kmsd.door.app import Door
from kmsd.events.changes import ChangeLog, Happened, key_change
from kmsd.events.service import ChangeService
from kmsd.grants.service import GrantService
from kmsd.grants.tokens import GrantTokens
from kmsd.iam.entities import EntityService, IamService
from kmsd.iam.mfa import MfaCodes, MfaService
from kmsd.iam.overview import OverviewService
from kmsd.iam.policies import AccessKeyService, PolicyService
from kmsd.iam.records import GROUP, ROLE, USER
from kmsd.iam.simulation import SimulationService
from kmsd.iam.store import IamStore
from kmsd.iam.tagging import IamTagService
from kmsd.keys.crypto import CryptoService
from kmsd.keys.dependents import DependentsService
from kmsd.keys.following import follow_principal
from kmsd.keys.importing import ImportService
from kmsd.keys.loaded import PairStore
from kmsd.keys.material import MaterialVault
from kmsd.keys.pairs import PairService
from kmsd.keys.registry import KeyRegistry, KmsKey
from kmsd.keys.retiring import RetirementService
from kmsd.keys.service import KeyService
from kmsd.keys.spares import SpareKeys
from kmsd.keys.upkeep import KeyUpkeepService
from kmsd.keys.usage import KeyUsage
from kmsd.keystores.service import KeyStoreService
from kmsd.keystores.store import KeyStores
from kmsd.metrics.counts import CallCounts
from kmsd.metrics.service import MetricsService
from kmsd.metrics.traces import CallTraces
from kmsd.parameters.marks import ParameterMarkService
from kmsd.parameters.service import ParameterService
from kmsd.realm import OpenRealm, open_store
from kmsd.sealing.server import ENDING
from kmsd.sealing.server import keepers as sealing_keepers
from kmsd.sealing.service import SealService
from kmsd.secrets.rotation import RotationService
from kmsd.secrets.service import SecretService
from kmsd.secrets.store import SecretStore
from kmsd.secrets.upkeep import SecretUpkeepService
from kmsd.server.listen import BACKLOG, bind_endpoint, bind_socket
from kmsd.server.notify import notify, watchdog_seconds
from kmsd.server.session import ServerState, Session
from kmsd.server.settling import Settlement
from kmsd.server.throttle import Buckets
from kmsd.sharing.following import Sharing, Taker
from kmsd.store.anchor import Anchor
from kmsd.store.database import Changes
from kmsd.store.postgres import PostgresStore
from kmsd.store.schema import Table
from kmsd.store.sealing import NEW_KEY_HINT
from kmsd.sts.credentials import CredentialBook
from kmsd.sts.service import TokenService
from kmsd.sts.tokens import SessionTokens
from kmsd.volumes.service import VolumeService
from kmsfs.aead.kdf import Label, derive
from kmsfs.clock import passed
from kmsfs.errors import AuditUnavailable, DatabaseUnreachable, KmsfsError, StorageError
from kmsfs.ids import account_of, account_of_realm, root_principal, uid_principal
from kmsfs.quantity import HEARTBEAT_SECONDS

if TYPE_CHECKING:
    from kmsd.door.listen import DoorServer

_LOG = logging.getLogger("kmsd")
_COLLECT_EVERY = 10_000
"""Objects made between two looks at the youngest generation."""
_AUDIT_SYNC_SECONDS = 0.2
_ANCHOR_SECONDS = 10.0
_PURGE_SECONDS = 60.0
_BEHIND_SECONDS = 60.0
_SEAL_SECONDS = 0.05


class Daemon:
    """A running key daemon over one open realm."""

    def __init__(self, config: Config, realm: OpenRealm, unsealed_by: Sequence[int] = ()) -> None:
        """Be the daemon of a realm; `unsealed_by` are the uids of those who unsealed it, for the audit log."""
        keyring = realm.keyring
        self._unsealed_by = list(unsealed_by)
        self._stop = asyncio.Event()
        self._sealing = False
        domain_keys = keyring.domain_keys
        oldest = domain_keys[min(domain_keys)].reveal()
        self._config = config
        self._guardrails = Guardrails(load_guardrails(config.guardrails) if config.guardrails is not None else None)
        self._account = account_of_realm(keyring.realm_id)
        self._store = open_store(config, keyring)
        self._store.deferring = True
        if self._store.needs_key:
            _LOG.warning("the key that seals the state is nearly used up: %s", NEW_KEY_HINT)
        self._anchor = Anchor(config.anchor, realm.anchor_key)
        self._anchor.check(self._store, accept_rollback=config.accept_rollback)
        self._journal = Journal(config.audit, derive(oldest, Label.DOMAIN_AUDIT), os.urandom)
        self._clock = RealmClock(time.time, passed, 0.0 if config.accept_clock else self._journal.last_time)
        self._told_of_jump = False
        behind = self._journal.last_time - time.time()
        if behind > _BEHIND_SECONDS:
            _LOG.warning("the clock is %d s behind the audit log, whose time counts; if it was wrong before and is right now: --accept-clock", behind)
        seed = derive(oldest, Label.DOMAIN_DIGEST)
        self._digests = AuditDigests(config.audit, seed, self._journal, config.digest_seconds)
        self._audit_upkeep = AuditUpkeep(self._journal, self._digests, config.audit_limits)
        spares = SpareKeys()
        self._stores = KeyStores(self._store, config.key_store_tokens)
        self._stores.connect_wanted()
        vault = MaterialVault(keyring.realm_id, domain_keys, os.urandom, spares, self._stores)
        self._registry = KeyRegistry(self._account, self._store, vault)
        prefix, numbers = os.urandom(6).hex(), itertools.count(1)
        self._pipeline = Pipeline(self._journal, self._store, self._clock, lambda: f"{prefix}-{next(numbers)}", self._account)
        self._traces = CallTraces(config.traces) if config.traces is not None else None
        self._pipeline.trace = self._traces.note if self._traces is not None else None
        self._accounts = AccountStore(self._account, self._store)
        settlement = Settlement(self._pipeline, self._store, self._stop.set)
        self._state = ServerState(
            self._pipeline, settlement, self._account, self._clock, self._accounts.of_uid, buckets=Buckets(config.quotas), spares=spares
        )
        self._pipeline.charge = self._state.buckets.spend_on_key
        self._iam = IamStore(self._store)
        self._keys = KeyService(self._registry, self._stores, self._iam.principal_exists)
        self._upkeep = KeyUpkeepService(self._registry)
        self._sessions = SessionTokens(derive(oldest, Label.DOMAIN_SESSION), os.urandom)
        self._imports = ImportService(self._registry, derive(oldest, Label.DOMAIN_IMPORT), os.urandom, spares)
        self._sharing: Sharing | None = None
        self._doors: list[DoorServer] = []
        self._scrapes: DoorServer | None = None
        self._metrics_listener = bind_endpoint(config.metrics) if config.metrics else None
        self._door_listener = bind_endpoint(config.aws_endpoint) if config.aws_endpoint else None
        self._assemble(GrantTokens(derive(oldest, Label.DOMAIN_TOKEN)), realm)
        self._store.loaded()

    def _assemble(self, tokens: GrantTokens, realm: OpenRealm) -> None:
        config, registry, pipeline = self._config, self._registry, self._pipeline
        grants = GrantService(registry, tokens, os.urandom)
        denials = Denials()
        authoriser = Authoriser(registry, grants, tokens, denials, self._guardrails, self._iam, self._accounts)
        loaded = PairStore()
        registry.listeners.append(loaded.forget)
        crypto = CryptoService(os.urandom, loaded)
        pairs = PairService(crypto, loaded, self._state.spares)
        administrators = frozenset(uid_principal(self._account, uid) for uid in config.administrators)
        keepers = administrators | {root_principal(self._account), uid_principal(self._account, 0)}
        self._changes = changes = ChangeLog(os.urandom(8).hex(), self._clock)
        self._parameters = parameters = ParameterService(
            self._account, self._store, pipeline, os.urandom, keepers, changes.publish, self._guardrails, config.parameter_limits
        )
        secret_store = SecretStore(self._store, changes.publish, self._guardrails)
        self._iam.followers += [partial(follow_principal, registry), secret_store.follow_principal]
        self._secrets = SecretService(secret_store, pipeline, os.urandom)
        retirement = RetirementService(registry, (parameters.stored_values, secret_store.stored_values))
        self._volumes = volumes = VolumeService(self._store, self._account, _boot_id(), self._clock(), os.urandom)
        volumes.on_taken_over = self._end_connection
        facts = DaemonFacts(
            os.getpid(),
            os.fspath(config.state),
            realm.keyring.seal_type.name.lower(),
            self._clock(),
            config.private,
            _endpoint_url(self._door_listener),
            config.home_region,
            self._digests.public_key,
        )
        self._usage = KeyUsage(self._store, self._clock())
        registry.listeners.append(self._usage.forget)
        pipeline.note_use = self._usage.note
        dependents = DependentsService(
            registry, self._usage, volumes.under, parameters.key_arns, secret_store.key_arns
        )
        counts = CallCounts()
        pipeline.note_call = counts.note
        self._metrics = MetricsService(
            counts, registry, facts.started,
            {
                "parameters": parameters.count, "secrets": lambda: len(secret_store.everything()),
                "connections": lambda: len(self._state.sessions),
            },
        )  # fmt: skip
        admin = AdminService(facts, registry, authoriser, self._clock)
        batches = BatchService(pipeline, authoriser, crypto)
        codes = MfaCodes(self._iam)
        sts = TokenService(self._sessions, self._iam, codes, self._guardrails)
        self._state.administrators = administrators
        self._book = CredentialBook(self._accounts.of_uid, self._sessions, self._iam, administrators, os.getuid())
        pipeline.bind(
            authoriser,
            bind_handlers(
                Services(
                    self._keys, self._upkeep, pairs, crypto, grants, parameters, ParameterMarkService(parameters),
                    volumes, batches, admin, sts, self._secrets, SecretUpkeepService(secret_store),
                    RotationService(secret_store, os.urandom),
                    *self._identities(), MfaService(self._iam, codes, os.urandom), IamTagService(self._iam), self._imports,
                    retirement, AccessService(registry, authoriser, denials, self._iam, administrators, self._guardrails),
                    dependents, self._metrics, ChangeService(changes, self._account, sealing_keepers(config.administrators)),
                    KeyStoreService(self._stores, registry.in_store, self._store_changed),
                    AccountService(self._accounts, self._iam, os.urandom, config.administrators, realm.keyring.created[min(realm.keyring.created)]),
                    SealService(facts.root_key_source, self._account, sealing_keepers(config.administrators), None if config.ephemeral else self._seal),
                )
            ),
        )  # fmt: skip
        registry.listeners.append(self._push_change)
        registry.listeners.append(lambda key, event: changes.publish(key_change(key, event, authoriser.may_know)))
        changes.listeners.append(self._tell)
        self._accounts.listeners.append(self._account_changed)
        self._state.on_lost = volumes.connection_lost
        if isinstance(self._store, PostgresStore):
            takers: tuple[Taker, ...] = (
                self._accounts.take, self._iam.take, self._take_key_stores, registry.take, self._usage.take, parameters.take,
                secret_store.take, volumes.take,
            )  # fmt: skip
            self._sharing = Sharing(self._store, takers, self._stop.set)

    def _identities(
        self,
    ) -> tuple[tuple[EntityService, ...], IamService, PolicyService, AccessKeyService, SimulationService, OverviewService]:
        iam, rng = self._iam, os.urandom
        kinds = tuple(EntityService(kind, iam, rng) for kind in (USER, GROUP, ROLE))
        keys, simulation = AccessKeyService(iam, rng), SimulationService(iam)
        return kinds, IamService(iam, rng), PolicyService(iam, rng), keys, simulation, OverviewService(iam)

    def serve(self, listener: socket.socket, credentials: socket.socket | None = None) -> bool:
        """Serve until SIGTERM or SIGINT or a Seal, credentials of systemd's units too where there is a socket for them; then close cleanly.

        Returns whether it is to be sealed. The sockets stay open.
        """
        # Keys and policies live as long as the daemon: the collector need not look at them again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_COLLECT_EVERY)
        return uvloop.run(self._serve(listener, credentials))

    async def _serve(self, listener: socket.socket, credentials: socket.socket | None) -> bool:
        loop = asyncio.get_running_loop()
        stop = self._stop
        for number in ENDING:
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        servers = [await loop.create_unix_server(lambda: Session(self._state), sock=listener.dup(), backlog=BACKLOG)]
        if credentials is not None:
            managers = frozenset({0, os.getuid()})
            make = lambda: CredentialSession(self._state, managers)  # noqa: E731
            servers.append(await loop.create_unix_server(make, sock=credentials.dup(), backlog=BACKLOG))
        if self._store.quarantined:
            tables = sorted(Table(table).name.lower() for table, _ in self._store.quarantined)
            _LOG.error("records of the state are damaged, and refused: %s; restore a backup", ", ".join(tables))
            self._record("RecordsQuarantined", params={"tables": " ".join(tables)})
        if self._config.accept_clock:
            self._record("ClockAccepted")
        self._record("DaemonStarted", **({"params": {"unsealed_by": self._unsealed_by}} if self._unsealed_by else {}))
        tasks = [
            asyncio.create_task(self._every(seconds, action))
            for seconds, action in (
                (HEARTBEAT_SECONDS, self._heartbeat),
                (_AUDIT_SYNC_SECONDS, self._settle),
                (_ANCHOR_SECONDS, self._checkpoint),
                (_PURGE_SECONDS, self._purge),
                (min(_PURGE_SECONDS, self._config.digest_seconds), self._keep_audit),
            )
        ]
        beat = watchdog_seconds()
        if beat is not None:
            tasks.append(asyncio.create_task(self._every(beat, self._alive)))
        self._open_doors()
        if self._sharing is not None:
            self._sharing.begin()
        notify("READY=1\nSTATUS=serving")
        await stop.wait()
        notify("STOPPING=1")
        with contextlib.suppress(AuditUnavailable, StorageError):
            self._state.settlement.now()
        if self._sharing is not None:
            self._sharing.close()
        for task in tasks:
            task.cancel()
        for server in servers:
            server.close()
        for http in (*self._doors, self._scrapes):
            if http is not None:
                await http.close()
        for session in list(self._state.sessions):
            session.push(None, {"kind": "closing"})
        self._state.makers.shutdown(wait=False, cancel_futures=True)
        self._close()
        return self._sealing

    def _open_doors(self) -> None:
        """Listen for HTTP where that was asked for, which is what its server is loaded for."""
        if self._door_listener is None and self._config.aws_socket is None and self._metrics_listener is None:
            return
        from kmsd.door.listen import DoorServer

        door = Door(self._state, self._book, self._config.home_region, self._config.socket)
        if self._door_listener is not None:
            self._doors.append(DoorServer(door, self._door_listener))
        if self._config.aws_socket is not None:
            listener = bind_socket(self._config.aws_socket, self._config.socket_mode)
            self._doors.append(DoorServer(door, listener))
        if self._metrics_listener is not None:
            self._scrapes = DoorServer(self._metrics.application(), self._metrics_listener)

    def _seal(self) -> None:
        """Stop once the answers are out, and come back sealed."""
        self._sealing = True
        asyncio.get_running_loop().call_later(_SEAL_SECONDS, self._stop.set)

    def _reload(self) -> None:
        """Read the guardrails again; those that were good stay if the new ones are not."""
        if self._config.guardrails is None:
            return
        try:
            self._guardrails.policies = load_guardrails(self._config.guardrails)
        except KmsfsError as error:
            _LOG.error("the guardrails stay as they were: %s", error)
            return
        self._record("GuardrailsLoaded", names=" ".join(sorted(self._guardrails.policies)))
        self._registry.announce("policy")
        # What clients remember of parameters and secrets may be barred now: their streams end, and begin with nothing known.
        self._changes.forget(os.urandom(8).hex())
        for session in list(self._state.sessions):
            session.end_streams()

    async def _every(self, seconds: float, action: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                action()
            except Exception as error:
                # A disk that is full now has room again later, and no heartbeat would say that the daemon is gone.
                _LOG.error("upkeep failed and is tried again: %s", error, exc_info=not isinstance(error, KmsfsError))

    def _heartbeat(self) -> None:
        now = passed()
        if not self._store.lately_current():
            # Whoever waits for heartbeats is to know that this daemon may not know what others revoked.
            return
        for session in list(self._state.sessions):
            session.push(None, {"kind": "heartbeat", "at": now})
        with self._store.exclusive():
            for grant in self._registry.end_expired_grants(self._clock()):
                self._record("ExpireGrant", key=self._registry.keys[grant.key_id].arn, grant=grant.grant_id)
            self._volumes.end_leases(self._clock())

    def _settle(self) -> None:
        """Make durable what nobody waits for."""
        if self._store.dirty or self._journal.needs_sync:
            with contextlib.suppress(AuditUnavailable, StorageError):
                self._state.settlement.now()
                self._journal.sync()

    def _keep_audit(self) -> None:
        try:
            self._audit_upkeep.act(self._clock())
        except (AuditUnavailable, StorageError) as error:
            _LOG.error("the audit log could not be signed, closed or shortened, which is tried again: %s", error)

    def _checkpoint(self) -> None:
        with contextlib.suppress(KmsfsError):
            self._anchor.write(self._store)
            self._journal.checkpoint()

    def _purge(self) -> None:
        if self._store.lately_current():
            with self._store.exclusive():
                self._act_on_time()

    def _act_on_time(self) -> None:
        if self._clock.jumped and not self._told_of_jump:
            self._told_of_jump = True
            _LOG.warning("the clock is far ahead of what has passed since the start: keys and secrets whose window ends by that alone stay until a restart")
        for arn in self._keys.purge_due(self._clock.steady()):
            self._record("DeleteKey", key=arn)
        for what, arn in self._parameters.act_on_policies(self._clock()):
            self._record("ParameterPolicyAction", key=arn, kind=what)
        for arn in self._secrets.purge_due(self._clock.steady()):
            self._record("DeleteSecret", key=arn)
        for arn in self._imports.expire_due(self._clock()):
            self._record("DeleteExpiredKeyMaterial", key=arn)
        for arn in self._upkeep.rotate_due(self._clock()):
            self._record("RotateKey", key=arn)
        with contextlib.suppress(KmsfsError):
            self._usage.write()
            self._iam.write_uses()
            self._store.tidy()

    def _alive(self) -> None:
        """Tell systemd that work gets done, after doing some; silence makes it start the daemon anew."""
        status = "serving"
        try:
            self._store.probe()
            self._journal.flush()
        except (AuditUnavailable, DatabaseUnreachable, StorageError) as error:
            # A full disk, or a database that is away, is no better after a restart, and whoever is to mend it needs the daemon meanwhile.
            status = f"not serving: {error.detail}"
        except KmsfsError as error:
            _LOG.critical("no sign of life for systemd: %s", error)
            return
        notify(f"WATCHDOG=1\nSTATUS={status}")

    def _push_change(self, key: KmsKey, event: str) -> None:
        message = {"kind": event, "key": key.arn, "generation": key.generation, "state": key.state.value}
        for session in list(self._state.sessions):
            session.push(key.key_id, message)

    def _end_connection(self, number: int) -> None:
        """Cut a mount whose volume another host has taken over: it comes back, and is told."""
        for session in list(self._state.sessions):
            if session.number == number:
                session.end()

    def _take_key_stores(self, changes: Changes) -> None:
        for store_id in self._stores.take(changes):
            self._store_changed(store_id)

    def _store_changed(self, store_id: str) -> None:
        """Let everybody who holds keys of a custom key store ask anew."""
        self._registry.announce("policy", lambda key: key.store == store_id)

    def _account_changed(self, account: str, uids: frozenset[int]) -> None:
        """Let everybody whom it concerns be looked at anew: who holds the account's keys, and its callers."""
        self._registry.announce("policy", lambda key: bool(account) and account_of(key.scope) == account)
        for session in list(self._state.sessions):
            session.end_if(lambda caller: caller.account == account or caller.uid in uids)

    def _tell(self, happened: Happened) -> None:
        event = self._changes.event(happened)
        for session in list(self._state.sessions):
            session.tell(happened.change, event)

    def _record(self, name: str, **fields: Any) -> None:
        record = {
            "ts": round(self._clock(), 3),
            "req": "-",
            "uid": os.getuid(),
            "op": name,
            "res": "ok",
            **fields,
        }
        self._journal.append(record)
        self._journal.sync()

    def _close(self) -> None:
        self._record("DaemonStopped")
        if self._traces is not None:
            self._traces.close()
        with contextlib.suppress(KmsfsError), self._store.exclusive():
            self._usage.write()
        self._anchor.write(self._store)
        self._journal.close()
        self._store.close()


def _endpoint_url(listener: socket.socket | None) -> str:
    if listener is None:
        return ""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
