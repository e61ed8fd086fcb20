"""What a template or a synced path reads, and which changes concern it."""

import json
from typing import Any

from kmsfs.client.changes import RESET
from kmsfs.client.session import ClientSession
from kmsfs.client.tree import variable_name
from kmsfs.errors import InvalidRequest


class Sources:
    """Reads through a session, and remembers what was read. Its functions raise the errors of the operations."""

    def __init__(self, session: ClientSession) -> None:
        self._session = session
        self._names: set[str] = set()
        self._paths: set[str] = set()
        self._secrets = False

    def param(self, name: str) -> str:
        """Return a parameter's value, a SecureString in the clear; `name` may have a selector."""
        self._names.add(name.partition(":")[0].lstrip("/"))
        answer = self._session.call("GetParameter", {"Name": name, "WithDecryption": True})
        value: str = answer["Parameter"]["Value"]
        return value

    def tree(self, path: str) -> dict[str, str]:
        """Return the values of all parameters below a path by the names of their variables, in the order of these."""
        found = {variable_name(name, path): value for name, value in self.below(path).items()}
        return dict(sorted(found.items()))

    def below(self, path: str) -> dict[str, str]:
        """Return the values of all parameters below a path by their full names."""
        self._paths.add(path.strip("/"))
        request = {"Path": path, "Recursive": True, "WithDecryption": True}
        found = self._session.pages("GetParametersByPath", "Parameters", request)
        return {parameter["Name"]: parameter["Value"] for parameter in found}

    def secret(self, secret_id: str) -> str:
        """Return a secret's text.

        Raises:
            InvalidRequest: if it is binary.
        """
        self._secrets = True
        answer = self._session.call("GetSecretValue", {"SecretId": secret_id})
        if "SecretString" not in answer:
            raise InvalidRequest(f"the secret {secret_id} is no text")
        value: str = answer["SecretString"]
        return value

    def secret_json(self, secret_id: str) -> Any:
        """Return what the JSON text of a secret says.

        Raises:
            InvalidRequest: if it is none.
        """
        try:
            return json.loads(self.secret(secret_id))
        except ValueError as error:
            raise InvalidRequest(f"the secret {secret_id} is no JSON") from error

    def touched_by(self, event: dict[str, Any]) -> bool:
        """Whether a change may concern what was read."""
        if event["kind"] == RESET:
            return True
        if event["source"] != "ssm":
            return self._secrets and event["source"] == "secretsmanager"
        name: str = event["name"].lstrip("/")
        return name in self._names or any(not path or name.startswith(path + "/") for path in self._paths)
