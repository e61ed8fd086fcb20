"""Handlers of rotation: kmsd keeps the schedule and the state, `kmsfs secret rotate` runs what changes the password."""

import re
import uuid
from dataclasses import replace
from operator import attrgetter
from typing import Any

import msgspec

from kmsd.dispatch.call import Call
from kmsd.secrets.records import PENDING, Secret, Version, prune, with_version
from kmsd.secrets.schedule import next_rotation
from kmsd.secrets.service import require_not_deleted
from kmsd.secrets.store import SecretStore
from kmsfs.aead.nonces import Rng
from kmsfs.api.shapes import secrets as shapes
from kmsfs.errors import InvalidParameter, InvalidSecretRequest

_ROTATOR = re.compile(r"(arn:[a-z-]{1,16}:lambda:[a-z0-9-]{1,32}:\d{12}:function:)?[A-Za-z0-9_-]{1,64}(:[A-Za-z0-9$_-]{1,64})?\Z")
_ROTATE = "secretsmanager:RotateSecret"


class RotationService:
    """RotateSecret, CancelRotateSecret, ListDueRotations."""

    def __init__(self, store: SecretStore, rng: Rng) -> None:
        self._store = store
        self._rng = rng

    def rotate_secret(self, call: Call) -> shapes.SecretVersionResponse:
        """RotateSecret: begin a rotation now, or by its schedule."""
        request: shapes.RotateSecretRequest = call.request
        secret = self._usable(call, _ROTATE)
        rotator = request.rotation_lambda_arn or secret.rotator
        if rotator is None:
            raise InvalidSecretRequest("No Lambda rotation function ARN is associated with this secret.")
        if not _ROTATOR.match(rotator):
            raise InvalidParameter("A rotation function is named by its ARN, or by its name of letters, digits, - and _.")
        rules: dict[str, Any] | None = secret.rotation_rules
        if request.rotation_rules is not None:
            rules = {k: v for k, v in msgspec.structs.asdict(request.rotation_rules).items() if v is not None}
        due = next_rotation(rules, call.now)
        if not secret.versions:
            raise InvalidSecretRequest("You can't rotate a secret that has no value.")
        changed = replace(
            secret, rotator=rotator, rotation_rules=rules, rotation_enabled=True, changed=call.now,
            next_rotation=due,
        )  # fmt: skip
        if not request.rotate_immediately:
            self._store.put(changed)
            return shapes.SecretVersionResponse(arn=secret.arn, name=secret.name)
        version_id = request.client_request_token or str(uuid.UUID(bytes=self._rng(16), version=4))
        present = secret.version(version_id)
        gone: list[str] = []
        if present is None:
            changed, gone = self._begin(call, changed, version_id)
        elif version_id != secret.rotation_token:
            raise InvalidSecretRequest(f"The version {version_id} exists already: a rotation makes a new one.")
        self._store.put(changed, gone=gone)
        return shapes.SecretVersionResponse(arn=secret.arn, name=secret.name, version_id=version_id)

    def _begin(self, call: Call, secret: Secret, version_id: str) -> tuple[Secret, list[str]]:
        if secret.rotating:
            raise InvalidSecretRequest("A previous rotation isn't complete. That rotation will be reattempted.")
        versions, gone = prune(with_version(secret.versions, Version(version_id, call.now, (PENDING,), "")))
        return replace(secret, versions=versions, rotation_token=version_id, rotation_since=call.now), gone

    def cancel_rotate_secret(self, call: Call) -> shapes.SecretVersionResponse:
        """CancelRotateSecret: what is pending keeps its stage, as at AWS."""
        secret = self._usable(call, "secretsmanager:CancelRotateSecret")
        if not secret.rotation_enabled:
            raise InvalidSecretRequest("You tried to cancel the rotation of a secret that has none.")
        self._store.put(
            replace(
                secret, rotation_enabled=False, next_rotation=None, rotation_token=None, rotation_since=None,
                changed=call.now,
            )
        )  # fmt: skip
        return shapes.SecretVersionResponse(arn=secret.arn, name=secret.name)

    def list_due_rotations(self, call: Call) -> shapes.ListDueRotationsResponse:
        """ListDueRotations: begun and not ended, or with their time come; those that the caller may rotate."""
        due = [
            shapes.DueRotation(
                arn=secret.arn, name=secret.name, rotation_lambda_arn=secret.rotator or "",
                client_request_token=secret.rotation_token, pending_since=secret.rotation_since,
            )
            for secret in sorted(self._store.all_in(call.scope), key=attrgetter("name"))
            if secret.rotation_enabled and secret.deleted is None and _due(secret, call.now)
            and self._store.may_see(call, secret) and self._store.may(call.caller, secret, _ROTATE, call.now)
        ]  # fmt: skip
        return shapes.ListDueRotationsResponse(rotations=due)

    def _usable(self, call: Call, action: str) -> Secret:
        secret = self._store.find(call, call.request.secret_id, action)
        require_not_deleted(secret)
        return secret


def _due(secret: Secret, now: float) -> bool:
    return secret.rotation_token is not None or (secret.next_rotation is not None and secret.next_rotation <= now)

