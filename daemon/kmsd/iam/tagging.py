"""Handlers of the tags of users, roles, managed policies and MFA devices (IAM API reference, TagUser to UntagMFADevice)."""

from collections.abc import Sequence
from dataclasses import replace

from kmsd.dispatch.call import Call, Handler
from kmsd.iam.pages import page
from kmsd.iam.records import ROLE, USER, Entity, MfaDevice
from kmsd.iam.store import IamStore
from kmsfs.api.shapes import iam as shapes
from kmsfs.api.shapes.keys import Empty
from kmsfs.errors import IamLimitExceeded, InvalidIamInput, NoSuchEntity

_TAGS_MAX = 50


class IamTagService:
    """TagUser to ListMFADeviceTags."""

    def __init__(self, store: IamStore) -> None:
        self._store = store

    def handlers(self) -> dict[str, Handler]:
        """Return the handlers by their operations' names."""
        found: dict[str, Handler] = {}
        for kind in ("User", "Role", "Policy", "MFADevice"):
            found |= {f"Tag{kind}": self.tag, f"Untag{kind}": self.untag, f"List{kind}Tags": self.listing}
        return found

    def tag(self, call: Call) -> Empty:
        """Give tags; a key that is there, whatever its case, gets the new value."""
        owner = self._owner(call)
        self._put(call, owner, with_tags(owner.tags, call.request.tags))
        return Empty()

    def untag(self, call: Call) -> Empty:
        """Take tags; one that is not there is no error."""
        owner = self._owner(call)
        gone = {key.casefold() for key in call.request.tag_keys}
        self._put(call, owner, {key: value for key, value in owner.tags.items() if key.casefold() not in gone})
        return Empty()

    def listing(self, call: Call) -> shapes.ListIamTagsResponse:
        """List tags by key."""
        tags, more = page(list(self._owner(call).tags.items()), lambda tag: tag[0], call.request)
        return shapes.ListIamTagsResponse(tags=[shapes.Tag(key=key, value=value) for key, value in tags], **more)

    def _owner(self, call: Call) -> Entity | MfaDevice:
        request, account = call.request, call.caller.account
        for kind in (USER, ROLE):
            name = getattr(request, f"{kind}_name", None)
            if name is not None:
                return self._store.find(account, kind, name)
        if hasattr(request, "policy_arn"):
            return self._store.policy(account, request.policy_arn)
        device = self._store.mfa_devices.get(request.serial_number)
        if device is None or device.account != account:
            raise NoSuchEntity(f"MFA Device with serial number {request.serial_number} does not exist.")
        return device

    def _put(self, call: Call, owner: Entity | MfaDevice, tags: dict[str, str]) -> None:
        if isinstance(owner, MfaDevice):
            self._store.put_device(replace(owner, tags=tags))
        else:
            self._store.put(replace(owner, tags=tags, updated=call.now))


def merged(present: dict[str, str], newer: dict[str, str]) -> dict[str, str]:
    """Return tags with newer ones, which replace those whose keys differ in case only."""
    folded = {key.casefold() for key in newer}
    return {key: value for key, value in present.items() if key.casefold() not in folded} | newer


def with_tags(present: dict[str, str], given: Sequence[shapes.Tag]) -> dict[str, str]:
    """Return tags with those of a request.

    Raises:
        InvalidIamInput: if the request has a key twice, whatever its case, or a reserved one.
        IamLimitExceeded: if they are more than 50 then.
    """
    tags = {tag.key: tag.value for tag in given}
    folded = {key.casefold() for key in tags}
    if len(folded) != len(given):
        raise InvalidIamInput("Duplicate tag keys found. Please note that Tag keys are case insensitive.")
    if any(key.startswith("aws:") for key in folded):
        raise InvalidIamInput("Tag keys that begin with aws: are reserved.")
    tags = merged(present, tags)
    if len(tags) > _TAGS_MAX:
        raise IamLimitExceeded(f"The number of tags has reached the maximum limit of {_TAGS_MAX}.")
    return tags
