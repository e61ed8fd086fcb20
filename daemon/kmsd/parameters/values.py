"""The value of a parameter: sealed and opened under KMS as the caller, or fetched from Secrets Manager."""

import base64
import json
from typing import Any

from kmsd.dispatch.call import Call, InternalCalls
from kmsd.dispatch.servicekey import make_service_key
from kmsd.parameters.records import ParameterFacts
from kmsd.parameters.secure import CONTEXT_KEY, open_message, seal_message
from kmsfs.aead.nonces import Rng
from kmsfs.api.shapes import parameters as shapes
from kmsfs.errors import (
    AccessDenied,
    Conflict,
    InvalidKeyIdForParameter,
    InvalidRequest,
    NotFound,
    ParameterNotFound,
)

DEFAULT_KEY = "alias/kmsfs/ssm"
SERVICE = "ssm"
SECRET_PREFIX = "/aws/reference/secretsmanager/"  # noqa: S105  (a name's beginning)
DATA_TYPES = ("text", "aws:ec2:image", "aws:ssm:integration")


def check_data_type(data_type: str) -> None:
    """Check a parameter's data type. There are no images here to look a value of aws:ec2:image up in: it is text.

    Raises:
        InvalidRequest: for an unknown type.
    """
    if data_type not in DATA_TYPES:
        raise InvalidRequest(
            f"The following data type is not supported: {data_type} (Data type names are all lowercase.)"
        )


class ParameterValues:
    """Seals and opens the values of parameters."""

    def __init__(self, calls: InternalCalls, rng: Rng) -> None:
        self._calls = calls
        self._rng = rng

    def seal(self, call: Call, facts: ParameterFacts, value: str) -> tuple[bytes, str | None]:
        """Return (what is stored, ARN of the KMS key that sealed it or None).

        Raises:
            AccessDenied, InvalidKeyIdForParameter: if the KMS key cannot be used.
        """
        plain = value.encode()
        if facts.key is None:
            return plain, None
        context = {CONTEXT_KEY: facts.arn}
        if facts.key == DEFAULT_KEY:
            make_service_key(
                self._calls, call, DEFAULT_KEY, SERVICE, "Default key of SecureString parameters"
            )
        if facts.tier == "Standard":
            answer = self._kms(
                call, "Encrypt", {"KeyId": facts.key, "Plaintext": plain, "EncryptionContext": context}
            )
            return answer.ciphertext_blob, answer.key_id
        answer = self._kms(
            call, "GenerateDataKey", {"KeyId": facts.key, "KeySpec": "AES_256", "EncryptionContext": context}
        )
        sealed = seal_message(
            plain, context, answer.key_id, answer.plaintext, answer.ciphertext_blob, self._rng
        )
        return sealed, answer.key_id

    def show(self, call: Call, facts: ParameterFacts, stored: bytes, *, decrypt: bool) -> str:
        """Return a value as it is answered: a SecureString decrypted, or its ciphertext in base64.

        Raises:
            AccessDenied, InvalidKeyIdForParameter: if the KMS key cannot be used.
        """
        if facts.key is None:
            return stored.decode()
        if not decrypt:
            return base64.b64encode(stored).decode()
        context = {CONTEXT_KEY: facts.arn}

        def unwrap(blob: bytes) -> bytes:
            parameters = {"CiphertextBlob": blob, "EncryptionContext": context}
            plaintext: bytes = self._kms(call, "Decrypt", parameters).plaintext
            return plaintext

        plain = unwrap(stored) if facts.tier == "Standard" else open_message(stored, context, unwrap)
        return plain.decode()

    def of_secret(self, call: Call, text: str, arn: str, *, decrypt: bool) -> shapes.Parameter:
        """Return a secret as a parameter: `/aws/reference/secretsmanager/NAME`, NAME:VERSION or NAME:STAGE.

        Source: Systems Manager user guide, "Referencing Secrets Manager secrets from Parameter Store parameters".

        Raises:
            InvalidRequest: without WithDecryption.
            ParameterNotFound: if there is no such secret or version.
        """
        if not decrypt:
            raise InvalidRequest("WithDecryption flag must be True for retrieving a Secret Manager secret.")
        name, _, chosen = text.removeprefix(SECRET_PREFIX).partition(":")
        request: dict[str, Any] = {"SecretId": name}
        if chosen:
            version = len(chosen) >= 32 and "-" in chosen
            request["VersionId" if version else "VersionStage"] = chosen
        try:
            secret = self._calls.internal(call, "GetSecretValue", request, SERVICE)
        except (NotFound, Conflict) as error:
            raise ParameterNotFound(
                "An error occurred (ParameterNotFound) when referencing Secrets Manager: "
                f"Secret {text[:256]} not found."
            ) from error
        value = secret.secret_string
        if value is None:
            value = base64.b64encode(secret.secret_binary or b"").decode()
        source = {
            "ARN": secret.arn, "Name": secret.name, "VersionId": secret.version_id, "VersionStages": secret.version_stages,
            "CreatedDate": secret.created_date,
        }  # fmt: skip
        return shapes.Parameter(
            name=text, type="SecureString", value=value, version=0, source_result=json.dumps(source),
            last_modified_date=secret.created_date, arn=arn, data_type="text",
        )  # fmt: skip

    def _kms(self, call: Call, operation: str, parameters: dict[str, Any]) -> Any:
        try:
            return self._calls.internal(call, operation, parameters, SERVICE)
        except AccessDenied:
            raise
        except (NotFound, Conflict) as error:
            raise InvalidKeyIdForParameter(error.detail) from error
