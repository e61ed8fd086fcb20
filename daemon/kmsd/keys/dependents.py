"""What depends on a KMS key: asked before it is deleted, and answered as numbers and volumes' ids, never as names of secrets."""

from collections.abc import Callable, Iterable

from kmsd.dispatch.call import Call
from kmsd.keys.registry import KeyRegistry
from kmsd.keys.usage import KeyUsage, LastUse
from kmsfs.api.shapes import admin
from kmsfs.api.shapes import keys as shapes

KeysOf = Callable[[], Iterable[str]]
"""The ARN of the KMS key of each parameter or secret."""


class DependentsService:
    """GetKeyLastUsage and ListKeyDependents."""

    def __init__(
        self, registry: KeyRegistry, usage: KeyUsage, volumes: Callable[[str], list[str]], parameters: KeysOf, secrets: KeysOf
    ) -> None:
        self._registry = registry
        self._usage = usage
        self._volumes = volumes
        self._parameters = parameters
        self._secrets = secrets

    def get_key_last_usage(self, call: Call) -> shapes.GetKeyLastUsageResponse:
        """GetKeyLastUsage."""
        key = call.the_key
        return shapes.GetKeyLastUsageResponse(
            key_id=key.arn,
            key_last_usage=_shown(self._usage.of(key)),
            tracking_start_date=self._usage.since,
            key_creation_date=key.created,
        )

    def list_key_dependents(self, call: Call) -> admin.ListKeyDependentsResponse:
        """ListKeyDependents: parameters and secrets count by their newest versions."""
        key = call.the_key
        return admin.ListKeyDependentsResponse(
            key_id=key.arn,
            aliases=[alias.name for alias in self._registry.aliases_of(key.key_id)],
            grants=len(key.grants),
            volumes=self._volumes(key.key_id),
            parameters=sum(arn == key.arn for arn in self._parameters()),
            secrets=sum(arn == key.arn for arn in self._secrets()),
            key_last_usage=_shown(self._usage.of(key)),
        )


def _shown(last: LastUse | None) -> shapes.KeyLastUsage | None:
    if last is None:
        return None
    return shapes.KeyLastUsage(
        operation=last.operation, timestamp=last.at, cloud_trail_event_id=last.call_id, kms_request_id=last.call_id
    )
