"""What a rotator is told, and the steps in which it is asked (Secrets Manager user guide, "Rotation function overview")."""

import json
import os
from dataclasses import dataclass

from kmsfs.errors import UsageError

STEPS = ("createSecret", "setSecret", "testSecret", "finishSecret")
SECRET, TOKEN, STEP = "KMSFS_SECRET_ID", "KMSFS_CLIENT_REQUEST_TOKEN", "KMSFS_ROTATION_STEP"


@dataclass(frozen=True, slots=True)
class RotationEvent:
    """One step of one rotation: the secret's ARN, and the version that it makes."""

    step: str
    secret_id: str
    token: str

    def environment(self) -> dict[str, str]:
        """Return the variables that a rotator gets."""
        return {SECRET: self.secret_id, TOKEN: self.token, STEP: self.step}

    def document(self) -> str:
        """Return what a rotator reads on standard input: the event of AWS's rotation functions."""
        return json.dumps({"Step": self.step, "SecretId": self.secret_id, "ClientRequestToken": self.token})


def event_of_environment() -> RotationEvent:
    """Return the event that this process was started for.

    Raises:
        UsageError: if it was started for none.
    """
    step, secret_id, token = (os.environ.get(name, "") for name in (STEP, SECRET, TOKEN))
    if step not in STEPS or not secret_id or not token:
        raise UsageError("this is run by `kmsfs secret rotate`, one step at a time")
    return RotationEvent(step, secret_id, token)
