"""The key state machine, pure: which state allows what, and AWS's words when it does not."""

from kmsfs.api.operation import KeyState, Operation
from kmsfs.errors import InvalidKeyUsage, KeyDisabled, KeyInvalidState

SECONDS_PER_DAY = 86_400
ROTATIONS_MAX = 25


def check_usage(operation: Operation, usage: str, key_arn: str) -> None:
    """Let the call pass if the key's usage is one that the operation needs.

    Raises:
        InvalidKeyUsage: with AWS's text.
    """
    if operation.usages and usage not in operation.usages:
        raise InvalidKeyUsage(f"{key_arn} key usage is {usage} which is not valid for {operation.name}.")


def check_state(operation: Operation, state: KeyState, key_arn: str) -> None:
    """Let the call pass if the declaration allows this state.

    Raises:
        KeyDisabled: if the key is disabled.
        KeyInvalidState: if it is pending deletion or import, or not pending deletion where that is needed.
    """
    if state in operation.key_states:
        return
    if state is KeyState.DISABLED and not operation.key_states <= {KeyState.PENDING_DELETION}:
        raise KeyDisabled(f"{key_arn} is disabled.", hint="kmsfs key enable KEY")
    words = {KeyState.PENDING_DELETION: "pending deletion", KeyState.PENDING_IMPORT: "pending import"}.get(
        state, "not pending deletion"
    )
    raise KeyInvalidState(f"{key_arn} is {words}.")
