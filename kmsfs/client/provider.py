"""The key source of a mount: data keys over the socket, one connection, batches for the pool."""

from collections.abc import Callable
from typing import Any

from kmsfs.client.session import ClientSession, PendingCall


class PendingKeys:
    """A KeysUnderWay over a pending call."""

    def __init__(self, call: PendingCall) -> None:
        self._call = call

    def ready(self) -> bool:
        """See KeysUnderWay."""
        return self._call.ready()

    def finish(self) -> list[bytes | None]:
        """See KeysUnderWay."""
        return [item.get("Plaintext") for item in self._call.finish()["Items"]]

    def cancel(self) -> None:
        """See KeysUnderWay."""
        self._call.cancel()


class SocketKeySource:
    """A KeySource over a client session; `asked_by` names the user behind a call, for the audit log only."""

    def __init__(
        self, session: ClientSession, key_arn: str, asked_by: Callable[[], int | None] = lambda: None
    ) -> None:
        self._session = session
        self._key_arn = key_arn
        self._asked_by = asked_by

    def generate(self, contexts: list[dict[str, str]], key_id: str) -> list[tuple[bytes, bytes]]:
        """See KeySource."""
        request: dict[str, Any] = {"KeyId": key_id or self._key_arn, "EncryptionContexts": contexts}
        answer = self._session.call("GenerateDataKeyBatch", request, context_uid=self._asked_by())
        return [(item["Plaintext"], item["CiphertextBlob"]) for item in answer["DataKeys"]]

    def decrypt(self, wrapped: bytes, context: dict[str, str]) -> bytes:
        """See KeySource."""
        request = {"CiphertextBlob": wrapped, "EncryptionContext": context}
        plain: bytes = self._session.call("Decrypt", request, context_uid=self._asked_by())["Plaintext"]
        return plain

    def begin_decrypts(self, items: list[tuple[bytes, dict[str, str]]]) -> "PendingKeys":
        """See KeySource."""
        request = {
            "Items": [{"CiphertextBlob": wrapped, "EncryptionContext": context} for wrapped, context in items]
        }
        return PendingKeys(self._session.begin("DecryptBatch", request, context_uid=self._asked_by()))
