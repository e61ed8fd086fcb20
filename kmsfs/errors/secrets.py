"""Failures of Secrets Manager's operations, under its own names."""

from kmsfs.errors.core import Conflict, ExitCode, IntegrityError, InvalidRequest, KmsfsError, NotFound


class InvalidParameter(InvalidRequest):
    """A parameter of a Secrets Manager request has a value that it may not have."""

    code = "InvalidParameterException"


class InvalidSecretToken(InvalidRequest):
    """The pagination token was not made here."""

    code = "InvalidNextTokenException"


class PublicPolicy(InvalidRequest):
    """A secret's policy would let everybody in."""

    code = "PublicPolicyException"


class SecretNotFound(NotFound):
    """No secret or version has this name, or the caller may not know."""

    code = "ResourceNotFoundException"


class SecretExists(Conflict):
    """A secret of this name, or a version with this token and another value, exists."""

    code = "ResourceExistsException"


class InvalidSecretRequest(Conflict):
    """The secret's state does not allow this: it is marked for deletion, say."""

    code = "InvalidRequestException"


class SecretDecryptionFailure(IntegrityError):
    """A secret's value cannot be opened with its KMS key."""

    code = "DecryptionFailure"
    audience = "caller"


class SecretEncryptionFailure(Conflict):
    """A secret's value cannot be sealed with the KMS key: it is not there, disabled or of another kind."""

    code = "EncryptionFailure"


class RotationFailed(KmsfsError):
    """A step of a rotation did not succeed; the secret's current version is what it was."""

    code = "RotationFailedException"
    exit_code = ExitCode.STORAGE
    audience = "caller"
