"""Handlers of secrets and their values. The KMS steps run as the caller, `kms:ViaService` secretsmanager."""

import contextlib
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from kmsd.dispatch.call import Call, InternalCalls
from kmsd.dispatch.conditionkeys import values_of_management
from kmsd.dispatch.paging import ANSWER_VALUES_BYTES, Names, Page, marker_after
from kmsd.dispatch.servicekey import make_service_key
from kmsd.parameters.secure import open_message, seal_message
from kmsd.secrets.filters import make_test
from kmsd.secrets.password import make_password
from kmsd.secrets.records import CURRENT, OWN_STAGES, Secret, Version, move_stage, prune, with_version
from kmsd.secrets.schedule import rotation_ended
from kmsd.secrets.store import SERVICE, SecretStore
from kmsfs.aead.nonces import Rng
from kmsfs.api.shapes import secrets as shapes
from kmsfs.errors import (
    AccessDenied,
    Conflict,
    InvalidCiphertext,
    InvalidMarker,
    InvalidParameter,
    InvalidSecretRequest,
    InvalidSecretToken,
    KmsfsError,
    NotFound,
    SecretDecryptionFailure,
    SecretEncryptionFailure,
    SecretExists,
    SecretNotFound,
    UnsupportedOperation,
)
from kmsfs.ids import secret_arn

DEFAULT_KEY = "alias/kmsfs/secretsmanager"
_NAME = re.compile(r"[A-Za-z0-9/_+=.@!-]+\Z")
_SUFFIX_ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
VALUE_MAX_BYTES = 65_536
TAGS_MAX = 50

BATCH_MAX = 20
"""Secrets that BatchGetSecretValue answers at once."""


class SecretService:
    """CreateSecret to UpdateSecretVersionStage. A secret belongs to the principal who made it."""

    def __init__(self, store: SecretStore, calls: InternalCalls, rng: Rng) -> None:
        self._store = store
        self._calls = calls
        self._rng = rng

    # --- making and changing --------------------------------------------------------------------------------

    def create_secret(self, call: Call) -> shapes.SecretVersionResponse:
        """CreateSecret."""
        request: shapes.CreateSecretRequest = call.request
        if request.add_replica_regions:
            raise UnsupportedOperation("Replication of secrets to other regions is not offered here.")
        if not _NAME.match(request.name):
            raise InvalidParameter(
                "Invalid name. Must be a valid name containing alphanumeric characters, or any of the following: -/_+=.@!"
            )
        tags = {tag.key: tag.value for tag in request.tags}
        check_tags(tags)
        present = self._store.named(call.scope, request.name)
        if present is not None:
            return self._created_before(call, request, present)
        self._store.require_new(call, secret_arn(call.scope, request.name))
        suffix = "".join(_SUFFIX_ALPHABET[byte % 62] for byte in self._rng(6))
        secret = Secret(
            secret_arn(call.scope, f"{request.name}-{suffix}"), request.name, call.scope, call.caller.principal,
            call.now, call.now, request.description, request.kms_key_id, tags,
        )  # fmt: skip
        if request.secret_string is None and request.secret_binary is None:
            self._store.put(secret)
            return shapes.SecretVersionResponse(arn=secret.arn, name=secret.name)
        version = self._add_version(call, secret, request, (CURRENT,))
        return shapes.SecretVersionResponse(arn=secret.arn, name=secret.name, version_id=version.version_id)

    def _created_before(
        self, call: Call, request: shapes.CreateSecretRequest, present: Secret
    ) -> shapes.SecretVersionResponse:
        """Answer a repeated request as the first one; anything else is a conflict."""
        if present.deleted is not None:
            raise InvalidSecretRequest(
                "You can't create this secret because a secret with this name is already scheduled for deletion."
            )
        token = request.client_request_token
        version = present.version(token) if token is not None else None
        mine = self._store.may(call.caller, present, "secretsmanager:PutSecretValue", call.now, values_of_management(call))
        if version is not None and mine and self._same_value(call, present, version, request):
            return shapes.SecretVersionResponse(
                arn=present.arn, name=present.name, version_id=version.version_id
            )
        if version is not None and mine:
            raise SecretExists(
                f"You can't use ClientRequestToken {token} because that value is already in use for a version of secret "
                f"{present.arn}."
            )
        raise SecretExists(f"The operation failed because the secret {request.name} already exists.")

    def put_secret_value(self, call: Call) -> shapes.PutSecretValueResponse:
        """PutSecretValue."""
        request: shapes.PutSecretValueRequest = call.request
        if request.secret_string is None and request.secret_binary is None:
            raise InvalidSecretRequest("You must provide either SecretString or SecretBinary.")
        secret = self._usable(call, request.secret_id, "secretsmanager:PutSecretValue")
        stages = tuple(dict.fromkeys(request.version_stages or [CURRENT]))
        if secret.staged(CURRENT) is None and CURRENT not in stages:
            stages = (*stages, CURRENT)
        version = self._add_version(call, secret, request, stages)
        return shapes.PutSecretValueResponse(
            arn=secret.arn,
            name=secret.name,
            version_id=version.version_id,
            version_stages=list(version.stages),
        )

    def update_secret(self, call: Call) -> shapes.SecretVersionResponse:
        """UpdateSecret."""
        request: shapes.UpdateSecretRequest = call.request
        secret = self._usable(call, request.secret_id, "secretsmanager:UpdateSecret")
        changed = replace(
            secret,
            description=request.description if request.description is not None else secret.description,
            key=request.kms_key_id if request.kms_key_id is not None else secret.key,
            changed=call.now,
        )
        values: list[tuple[Version, dict[str, Any]]] = []
        if (changed.key or DEFAULT_KEY) != (secret.key or DEFAULT_KEY):
            changed, values = self._sealed_anew(call, changed)
        if request.secret_string is None and request.secret_binary is None:
            self._store.put(changed, values)
            return shapes.SecretVersionResponse(arn=secret.arn, name=secret.name)
        version = self._add_version(call, changed, request, (CURRENT,), values)
        return shapes.SecretVersionResponse(arn=secret.arn, name=secret.name, version_id=version.version_id)

    def _sealed_anew(self, call: Call, secret: Secret) -> tuple[Secret, list[tuple[Version, dict[str, Any]]]]:
        """Seal the versions of AWS's own stages under a secret's new key; under the one before, they stay sealed as well.

        Secrets Manager API, UpdateSecret, "KmsKeyId"; user guide, "Change the encryption key": what the caller may not decrypt, or not
        encrypt under the new key, stays as it is.

        Raises:
            SecretEncryptionFailure: if there is no such key, or it is not enabled.
        """
        anew: dict[str, tuple[Version, dict[str, Any]]] = {}
        for version in secret.versions:
            if not version.key_arn or not OWN_STAGES.intersection(version.stages):
                continue
            stored = self._store.sealed_value(secret, version)
            try:
                plain = self._open(call, secret, version, stored)
                message, key_arn = self._seal(call, secret, version.version_id, plain)
            except (AccessDenied, SecretDecryptionFailure):
                continue
            if key_arn != version.key_arn:
                sealed = {"created": version.created, "binary": stored["binary"], "value": message, "former": stored["value"]}
                anew[version.version_id] = (replace(version, key_arn=key_arn, former=version.key_arn), sealed)
        versions = tuple(anew[v.version_id][0] if v.version_id in anew else v for v in secret.versions)
        return replace(secret, versions=versions), list(anew.values())

    def _add_version(
        self, call: Call, secret: Secret, request: Any, stages: tuple[str, ...], others: Sequence[tuple[Version, dict[str, Any]]] = ()
    ) -> Version:
        """Seal a request's value as a new version, or find that it was made by the same request before.

        `others` are versions that are sealed anew, stored together with it.
        """
        plain, binary = _value_of(request)
        version_id = request.client_request_token or str(uuid.UUID(bytes=self._rng(16), version=4))
        present = secret.version(version_id)
        if present is not None and not present.key_arn:
            # A rotation made the version; this is its value.
            stages = tuple(dict.fromkeys((*present.stages, *stages)))
            secret = replace(secret, versions=tuple(v for v in secret.versions if v is not present))
        elif present is not None:
            if not self._same_value(call, secret, present, request):
                raise SecretExists(
                    f"You can't use ClientRequestToken {version_id} because that value is already in use for a "
                    f"version of secret {secret.arn}."
                )
            if secret is not self._store.at(secret.scope, secret.name):
                # The value is there; what else UpdateSecret was asked for is new.
                self._store.put(secret, others)
            return present
        message, key_arn = self._seal(call, secret, version_id, plain)
        *older, new = with_version(secret.versions, Version(version_id, call.now, stages, key_arn))
        versions, gone = prune((*older, new))
        changed = replace(secret, versions=versions, changed=call.now)
        self._store.put(changed, [(new, {"created": call.now, "binary": binary, "value": message}), *others], gone)
        return new

    def _same_value(self, call: Call, secret: Secret, version: Version, request: Any) -> bool:
        plain, binary = _value_of(request)
        stored = self._store.sealed_value(secret, version)
        return stored["binary"] == binary and self._open(call, secret, version, stored) == plain

    # --- reading ----------------------------------------------------------------------------------------------

    def get_secret_value(self, call: Call) -> shapes.SecretValue:
        """GetSecretValue."""
        request: shapes.GetSecretValueRequest = call.request
        return self._value(call, request.secret_id, request.version_id, request.version_stage)

    def batch_get_secret_value(self, call: Call) -> shapes.BatchGetSecretValueResponse:
        """BatchGetSecretValue."""
        request: shapes.BatchGetSecretValueRequest = call.request
        if (request.secret_id_list is None) == (request.filters is None):
            raise InvalidParameter("Either 'SecretIdList' or 'Filters' must be provided, but not both.")
        if request.filters is None and request.max_results is not None:
            raise InvalidParameter(
                "'Filters' not specified. 'Filters' must also be specified when 'MaxResults' is provided."
            )
        token: str | None = None
        if request.secret_id_list is not None:
            # What does not fit into one answer is had by the same list and the token.
            ids = {f"{position:02d}": secret_id for position, secret_id in enumerate(request.secret_id_list)}
            wanted, _ = secret_page(Names(ids), BATCH_MAX, request.next_token)
        else:
            ids = {}
            test = make_test(request.filters)
            names = self._store.names_in(call.scope)

            def chosen(name: str) -> bool:
                secret = self._store.at(call.scope, name)
                return secret.deleted is None and test(secret) and self._store.may_see(call, secret)

            wanted, token = secret_page(names, request.max_results or BATCH_MAX, request.next_token, chosen)
        values, errors, size = [], [], 0
        for mark in wanted:
            secret_id = ids.get(mark, mark)
            try:
                value = self._value(call, secret_id, None, None)
            except KmsfsError as error:
                errors.append(
                    shapes.BatchError(secret_id=secret_id, error_code=error.code, message=error.detail)
                )
                continue
            values.append(value)
            size += len((value.secret_string or "").encode()) + len(value.secret_binary or b"")
            if size >= ANSWER_VALUES_BYTES and mark != wanted[-1]:
                token = marker_after(mark)
                break
        return shapes.BatchGetSecretValueResponse(secret_values=values, errors=errors, next_token=token)

    def _value(
        self, call: Call, secret_id: str, version_id: str | None, stage: str | None
    ) -> shapes.SecretValue:
        secret = self._store.find(call, secret_id, "secretsmanager:GetSecretValue")
        if secret.deleted is not None:
            raise InvalidSecretRequest(
                "You can't perform this operation on the secret because it was marked for deletion."
            )
        version = secret.version(version_id) if version_id is not None else secret.staged(stage or CURRENT)
        if version is None:
            what = (
                f"VersionId: {version_id}" if version_id is not None else f"staging label: {stage or CURRENT}"
            )
            raise SecretNotFound(f"Secrets Manager can't find the specified secret value for {what}")
        if version_id is not None and stage is not None and stage not in version.stages:
            raise InvalidSecretRequest(
                "You provided a VersionStage that is not associated to the provided VersionId."
            )
        if not version.key_arn:
            raise SecretNotFound(
                f"Secrets Manager can't find the specified secret value for VersionId: {version.version_id}"
            )
        stored = self._store.sealed_value(secret, version)
        plain = self._open(call, secret, version, stored)
        self._store.read_today(secret, call.now)
        return shapes.SecretValue(
            arn=secret.arn,
            name=secret.name,
            version_id=version.version_id,
            secret_string=None if stored["binary"] else plain.decode(),
            secret_binary=plain if stored["binary"] else None,
            version_stages=list(version.stages),
            created_date=version.created,
        )

    def get_random_password(self, call: Call) -> shapes.GetRandomPasswordResponse:
        """GetRandomPassword."""
        return shapes.GetRandomPasswordResponse(random_password=make_password(call.request, self._rng))

    # --- stages and deletion --------------------------------------------------------------------------------

    def update_secret_version_stage(self, call: Call) -> shapes.SecretNameResponse:
        """UpdateSecretVersionStage."""
        request: shapes.UpdateSecretVersionStageRequest = call.request
        secret = self._usable(call, request.secret_id, "secretsmanager:UpdateSecretVersionStage")
        versions = move_stage(
            secret, request.version_stage, request.remove_from_version_id, request.move_to_version_id
        )
        changed = replace(secret, versions=versions, changed=call.now)
        current = changed.staged(CURRENT)
        if current is not None and not current.key_arn:
            raise InvalidSecretRequest("You can't make a version the current one that has no value.")
        if current is not None and current.version_id == secret.rotation_token:
            changed = rotation_ended(changed, call.now)
        self._store.put(changed)
        return shapes.SecretNameResponse(arn=secret.arn, name=secret.name)

    def delete_secret(self, call: Call) -> shapes.DeleteSecretResponse:
        """DeleteSecret."""
        request: shapes.DeleteSecretRequest = call.request
        window = request.recovery_window_in_days
        if window is not None and not 7 <= window <= 30:
            raise InvalidParameter(
                "The RecoveryWindowInDays value must be between 7 and 30 days (inclusive)."
            )
        if request.force_delete_without_recovery and window is not None:
            raise InvalidParameter(
                "You can't use ForceDeleteWithoutRecovery in conjunction with RecoveryWindowInDays."
            )
        try:
            secret = self._store.find(call, request.secret_id, "secretsmanager:DeleteSecret")
        except SecretNotFound:
            if not request.force_delete_without_recovery:
                raise
            # Deleting by force what is not there succeeds (Secrets Manager API, DeleteSecret).
            name = request.secret_id.rpartition(":secret:")[2]
            return shapes.DeleteSecretResponse(
                arn=secret_arn(call.scope, name), name=name, deletion_date=call.now
            )
        if request.force_delete_without_recovery:
            self._store.remove(secret)
            return shapes.DeleteSecretResponse(arn=secret.arn, name=secret.name, deletion_date=call.now)
        if secret.deleted is not None:
            raise InvalidSecretRequest(
                "You tried to perform the operation on a secret that's currently marked deleted."
            )
        deletion = call.now + (window or 30) * 86_400
        self._store.put(replace(secret, deleted=call.now, deletion=deletion))
        return shapes.DeleteSecretResponse(arn=secret.arn, name=secret.name, deletion_date=deletion)

    def restore_secret(self, call: Call) -> shapes.SecretNameResponse:
        """RestoreSecret."""
        secret = self._store.find(call, call.request.secret_id, "secretsmanager:RestoreSecret")
        if secret.deleted is not None:
            self._store.put(replace(secret, deleted=None, deletion=None))
        return shapes.SecretNameResponse(arn=secret.arn, name=secret.name)

    def purge_due(self, now: float) -> list[str]:
        """Remove secrets whose recovery window is over; return their ARNs."""
        due = [s for s in self._store.everything() if s.deletion is not None and s.deletion <= now]
        for secret in due:
            self._store.remove(secret)
        return [secret.arn for secret in due]

    # --- sealing ----------------------------------------------------------------------------------------------

    def _usable(self, call: Call, secret_id: str, action: str) -> Secret:
        secret = self._store.find(call, secret_id, action)
        require_not_deleted(secret)
        return secret

    def _seal(self, call: Call, secret: Secret, version_id: str, plain: bytes) -> tuple[bytes, str]:
        key = secret.key or DEFAULT_KEY
        if key == DEFAULT_KEY:
            make_service_key(self._calls, call, DEFAULT_KEY, SERVICE, "Default key of secrets")
        context = _context(secret, version_id)
        parameters = {"KeyId": key, "KeySpec": "AES_256", "EncryptionContext": context}
        try:
            made = self._calls.internal(call, "GenerateDataKey", parameters, SERVICE)
        except AccessDenied as error:
            raise AccessDenied("Access to KMS is not allowed", evidence=error.detail) from error
        except (NotFound, Conflict) as error:
            raise SecretEncryptionFailure(
                f"Secrets Manager can't encrypt the secret value using the specified KMS key: {error.detail}"
            ) from error
        return seal_message(
            plain, context, made.key_id, made.plaintext, made.ciphertext_blob, self._rng
        ), made.key_id

    def _open(self, call: Call, secret: Secret, version: Version, stored: dict[str, Any]) -> bytes:
        """Open a stored value, under whichever of its keys does it; if none does, the error is that of the secret's own."""
        try:
            return self._opened(call, secret, version, stored["value"])
        except (AccessDenied, SecretDecryptionFailure):
            if not stored.get("former"):
                raise
            with contextlib.suppress(AccessDenied, SecretDecryptionFailure):
                return self._opened(call, secret, version, stored["former"])
            raise

    def _opened(self, call: Call, secret: Secret, version: Version, message: bytes) -> bytes:
        context = _context(secret, version.version_id)

        def unwrap(blob: bytes) -> bytes:
            parameters = {"CiphertextBlob": blob, "EncryptionContext": context}
            plaintext: bytes = self._calls.internal(call, "Decrypt", parameters, SERVICE).plaintext
            return plaintext

        try:
            return open_message(message, context, unwrap)
        except AccessDenied as error:
            raise AccessDenied("Access to KMS is not allowed", evidence=error.detail) from error
        except (NotFound, Conflict, InvalidCiphertext) as error:
            raise SecretDecryptionFailure(
                "Secrets Manager can't decrypt the protected secret text using the provided KMS key."
            ) from error


def _context(secret: Secret, version_id: str) -> dict[str, str]:
    """Secrets Manager user guide, "Secret encryption and decryption": ARN and version."""
    return {"SecretARN": secret.arn, "SecretVersionId": version_id}


def _value_of(request: Any) -> tuple[bytes, bool]:
    if request.secret_string is not None and request.secret_binary is not None:
        raise InvalidParameter(
            "You can't specify both a binary secret value and a string secret value in the same secret."
        )
    if request.secret_binary is not None:
        plain, binary = bytes(request.secret_binary), True
    else:
        try:
            plain, binary = (request.secret_string or "").encode(), False
        except UnicodeEncodeError as error:
            raise InvalidParameter("The secret value is not Unicode text.") from error
    if len(plain) > VALUE_MAX_BYTES:
        raise InvalidParameter(f"A secret value has at most {VALUE_MAX_BYTES} bytes.")
    return plain, binary


def require_not_deleted(secret: Secret) -> None:
    """Refuse changes of a secret that is marked for deletion.

    Raises:
        InvalidSecretRequest: then.
    """
    if secret.deleted is not None:
        raise InvalidSecretRequest(
            "You can't perform this operation on the secret because it was marked for deletion."
        )


def check_tags(tags: dict[str, str]) -> None:
    """Refuse too many tags, and reserved ones.

    Raises:
        InvalidParameter: then.
    """
    if len(tags) > TAGS_MAX:
        raise InvalidParameter(f"A secret has at most {TAGS_MAX} tags.")
    if any(key.lower().startswith("aws:") for key in tags):
        raise InvalidParameter("Tag keys that begin with aws: are reserved.")


def secret_page(
    names: Names, limit: int, token: str | None, wanted: Callable[[str], bool] = lambda _name: True
) -> Page:
    """Return a page of the wanted names, with Secrets Manager's error for a bad token.

    Raises:
        InvalidSecretToken: if the token was not made here.
    """
    try:
        return names.page(limit, token, wanted)
    except InvalidMarker as error:
        raise InvalidSecretToken("Invalid NextToken") from error
