"""Our own rotators: a random value, and the password of a PostgreSQL role."""

import base64
import hashlib
import hmac
import json
import os
import secrets
import subprocess
from typing import Any, Protocol

from kmsfs.client.session import ClientSession
from kmsfs.errors import InvalidRequest, NotFound, StorageError, UsageError
from kmsfs.rotation.event import RotationEvent

_LENGTH = 32
_SCRAM_ITERATIONS = 4096
_PSQL_SECONDS = 60


class Rotator(Protocol):
    """What each kind of secret needs; making, testing and finishing versions is the same for all."""

    def fresh(self, current: str, password: str) -> str:
        """Return the new value of a secret."""
        ...

    def set(self, values: list[str], pending: str) -> None:
        """Let the service take the pending value, with the first of `values` that it still takes."""
        ...

    def test(self, pending: str) -> None:
        """Raise if the service does not take the pending value."""
        ...


class RandomRotator:
    """A secret that is a random text, or has one as `password` in a JSON object. Nobody has to be told."""

    def fresh(self, current: str, password: str) -> str:
        """See Rotator."""
        try:
            document = json.loads(current)
        except ValueError:
            return password
        return json.dumps({**document, "password": password}) if isinstance(document, dict) else password

    def set(self, values: list[str], pending: str) -> None:
        """See Rotator: there is nothing to do."""

    def test(self, pending: str) -> None:
        """See Rotator: there is nothing to ask."""


class PostgresRotator:
    """{"username", "password", "host", "port", "dbname"}, as AWS's rotation functions have it; the role changes its own password."""

    def fresh(self, current: str, password: str) -> str:
        """See Rotator."""
        return json.dumps({**self._parsed(current), "password": password})

    def set(self, values: list[str], pending: str) -> None:
        """See Rotator: the server gets a SCRAM verifier, so the password is in no log of its."""
        wanted = self._parsed(pending)
        role = wanted["username"].replace('"', '""')
        statement = f"ALTER ROLE \"{role}\" PASSWORD '{scram_verifier(wanted['password'])}'"
        for value in (pending, *values):
            if self._ask(self._parsed(value), statement) is None:
                return
        raise StorageError("the database takes neither the pending nor the current nor the previous password")

    def test(self, pending: str) -> None:
        """See Rotator."""
        problem = self._ask(self._parsed(pending), "SELECT 1")
        if problem is not None:
            raise StorageError(f"the database does not take the pending password: {problem}")

    def _parsed(self, value: str) -> dict[str, Any]:
        try:
            document: dict[str, Any] = json.loads(value)
            if not all(isinstance(document[name], str) for name in ("username", "password")):
                raise InvalidRequest("username and password are strings")
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidRequest("the secret is no JSON object with username and password") from error
        return document

    def _ask(self, place: dict[str, Any], statement: str) -> str | None:
        """Run a statement as a role; return what went wrong, None if nothing did."""
        environment = {
            **os.environ, "PGUSER": place["username"], "PGPASSWORD": place["password"], "PGHOST": str(place.get("host", "")),
            "PGPORT": str(place.get("port", 5432)), "PGDATABASE": str(place.get("dbname", "postgres")), "PGCONNECT_TIMEOUT": "10",
        }  # fmt: skip
        try:
            done = subprocess.run(
                ["psql", "-X", "-q", "-w", "-v", "ON_ERROR_STOP=1", "-f", "-"],
                input=statement, env=environment, capture_output=True, text=True, check=False, timeout=_PSQL_SECONDS,
            )  # fmt: skip
        except FileNotFoundError as error:
            raise UsageError("psql is not installed", hint="apt install postgresql-client") from error
        except subprocess.TimeoutExpired:
            return "no answer in time"
        return None if done.returncode == 0 else done.stderr.strip()[-200:]


ROTATORS: dict[str, type[RandomRotator | PostgresRotator]] = {"random": RandomRotator, "postgresql": PostgresRotator}


def scram_verifier(password: str, salt: bytes | None = None) -> str:
    """Return what PostgreSQL stores of a password (RFC 5802; PostgreSQL documentation, "pg_authid"). ASCII passwords."""
    salt = salt or secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, _SCRAM_ITERATIONS)
    client = hmac.digest(salted, b"Client Key", "sha256")
    stored = hashlib.sha256(client).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    texts = [base64.b64encode(raw).decode() for raw in (salt, stored, server)]
    return f"SCRAM-SHA-256${_SCRAM_ITERATIONS}:{texts[0]}${texts[1]}:{texts[2]}"


def run_step(rotator: Rotator, session: ClientSession, event: RotationEvent) -> None:
    """Run one step. Every step may come twice.

    Raises:
        KmsfsError: why it failed.
    """
    if event.step == "createSecret":
        _create(rotator, session, event)
    elif event.step == "setSecret":
        stages = [_value(session, event, "AWSCURRENT"), _value(session, event, "AWSPREVIOUS")]
        rotator.set([value for value in stages if value is not None], _pending(session, event))
    elif event.step == "testSecret":
        rotator.test(_pending(session, event))
    else:
        _finish(session, event)


def _create(rotator: Rotator, session: ClientSession, event: RotationEvent) -> None:
    if _value(session, event, "AWSPENDING", event.token) is not None:
        return
    current = _value(session, event, "AWSCURRENT")
    if current is None:
        raise NotFound("the secret has no current value")
    password = session.call("GetRandomPassword", {"PasswordLength": _LENGTH, "ExcludePunctuation": True})["RandomPassword"]
    session.call(
        "PutSecretValue",
        {
            "SecretId": event.secret_id, "ClientRequestToken": event.token, "VersionStages": ["AWSPENDING"],
            "SecretString": rotator.fresh(current, password),
        },
    )  # fmt: skip


def _finish(session: ClientSession, event: RotationEvent) -> None:
    stages = session.call("DescribeSecret", {"SecretId": event.secret_id})["VersionIdsToStages"]
    current = next((version for version, held in stages.items() if "AWSCURRENT" in held), None)
    if current == event.token:
        return
    request = {"SecretId": event.secret_id, "VersionStage": "AWSCURRENT", "MoveToVersionId": event.token}
    session.call("UpdateSecretVersionStage", {**request, "RemoveFromVersionId": current} if current else request)


def _pending(session: ClientSession, event: RotationEvent) -> str:
    value = _value(session, event, "AWSPENDING", event.token)
    if value is None:
        raise NotFound("the pending version has no value yet: createSecret comes first")
    return value


def _value(session: ClientSession, event: RotationEvent, stage: str, version_id: str | None = None) -> str | None:
    request = {"SecretId": event.secret_id, "VersionStage": stage}
    if version_id is not None:
        request["VersionId"] = version_id
    try:
        value: str | None = session.call("GetSecretValue", request).get("SecretString")
    except NotFound:
        return None
    return value
