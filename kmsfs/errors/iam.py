"""Failures of IAM's operations, under its own names (IAM API reference, "Common errors")."""

from kmsfs.errors.core import Conflict, InvalidRequest, NotFound


class NoSuchEntity(NotFound):
    """There is no such user, group, role, policy or access key."""

    code = "NoSuchEntity"
    http_status = 404


class EntityAlreadyExists(Conflict):
    """A user, group, role or policy of this name exists."""

    code = "EntityAlreadyExists"
    http_status = 409


class DeleteConflict(Conflict):
    """Something still hangs on what shall be deleted: policies, keys, members."""

    code = "DeleteConflict"
    http_status = 409


class IamLimitExceeded(Conflict):
    """An account may have no more of these."""

    code = "LimitExceeded"
    http_status = 409


class InvalidAuthenticationCode(InvalidRequest):
    """The codes are not those that the MFA device shows one after the other."""

    code = "InvalidAuthenticationCode"
    http_status = 403


class MalformedIdentityPolicy(InvalidRequest):
    """A policy of IAM could not be read."""

    code = "MalformedPolicyDocument"


class InvalidSessionTag(InvalidRequest):
    """A session's transitive tags do not fit its tags, or those that it has already (IAM user guide, "Chaining roles with session tags")."""

    code = "InvalidParameterValue"


class InvalidIamInput(InvalidRequest):
    """A parameter of an IAM request has a value that it may not have."""

    code = "InvalidInput"
