"""Every failure kmsfs can name, with its wire code, exit code, errno and retryability.

No built-in exception crosses a room's door. The wire codes are AWS's where the meaning is the same
(KMS and Systems Manager API references, "Errors"). docs/reference/errors.md is generated from here.
"""

import errno as _errno
from enum import Enum, IntEnum
from typing import ClassVar, Literal, Self

Audience = Literal["caller", "operator", "bug"]


class ExitCode(IntEnum):
    """Process exit codes by family. A number is never reused."""

    OK = 0
    BUG = 1
    USAGE = 2
    DENIED = 10
    NOT_FOUND = 11
    CONFLICT = 12
    INTEGRITY = 20
    DAMAGE_FOUND = 21
    UNSUPPORTED_FORMAT = 22
    WARNINGS_FOUND = 23
    UNAVAILABLE = 30
    STORAGE = 31
    SEALED = 32
    PROTOCOL = 40


class IntegrityReason(Enum):
    """Why bytes were refused: for logs, vectors and `check`; callers of the API never see it."""

    HEADER_SHAPE = "header_shape"
    HEADER_MAC = "header_mac"
    WRAPPED_KEY = "wrapped_key"
    COMMITMENT = "commitment"
    MAP = "map"
    NODE = "node"
    CHUNK_TAG = "chunk_tag"
    LENGTH = "length"
    HOME = "home"
    NAME = "name"
    OTHER_SLOT = "other_slot"
    EMPTY = "empty"
    IDENTITY = "identity"
    ROLLED_BACK = "rolled_back"


class KmsfsError(Exception):
    """Root of all errors. `detail` is safe to show, `evidence` is for the log only."""

    code: ClassVar[str] = "KMSInternalException"
    exit_code: ClassVar[ExitCode] = ExitCode.BUG
    errno: ClassVar[int] = _errno.EIO
    retryable: ClassVar[bool] = False
    audience: ClassVar[Audience] = "bug"
    http_status: ClassVar[int] = 400

    def __init__(self, detail: str = "", *, hint: str = "", evidence: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        self.evidence = evidence

    def __str__(self) -> str:
        return self.detail

    def again(self) -> Self:
        """Return this error to be raised once more; what its last raise held, frames with all that was in them, is let go."""
        return self.with_traceback(None)


# --- InvalidRequest: you asked wrongly -------------------------------------------------------------------


class InvalidRequest(KmsfsError):
    """The request is malformed or breaks a limit."""

    code = "ValidationException"
    exit_code = ExitCode.USAGE
    errno = _errno.EINVAL
    audience = "caller"


class ShapeError(InvalidRequest):
    """A field is missing, unknown, of the wrong type or out of its bounds."""


class InvalidName(InvalidRequest):
    """A name breaks the rules of its kind."""


class InvalidAliasName(InvalidName):
    """An alias does not start with `alias/` or has a character that aliases may not have."""

    code = "InvalidAliasNameException"


class InvalidAliasCharacters(InvalidAliasName):
    """An alias has a character that aliases may not have, or is too long."""

    code = "ValidationException"


class ReservedAlias(InvalidAliasName):
    """Aliases that begin with `alias/aws/` are the services' own."""

    code = "NotAuthorizedException"


class InvalidArn(InvalidRequest):
    """An ARN-like name or a principal could not be read."""

    code = "InvalidArnException"


class InvalidMarker(InvalidRequest):
    """A pagination marker was not made by this operation."""

    code = "InvalidMarkerException"


class InvalidNextToken(InvalidRequest):
    """A parameter pagination token was not made by this operation."""

    code = "InvalidNextToken"


class InvalidGrantToken(InvalidRequest):
    """A grant token was not made by this daemon."""

    code = "InvalidGrantTokenException"


class InvalidGrantId(InvalidRequest):
    """No grant on this key has this id."""

    code = "InvalidGrantIdException"


class MalformedPolicy(InvalidRequest):
    """A key policy is not one, or would bar its author from changing it."""

    code = "MalformedPolicyDocumentException"


class LimitExceeded(InvalidRequest):
    """A quota of the service was reached."""

    code = "LimitExceededException"


class UnsupportedOperation(InvalidRequest):
    """The operation or this value of a parameter is not offered."""

    code = "UnsupportedOperationException"


class UnknownOperation(InvalidRequest):
    """No operation has this name."""

    code = "UnknownOperationException"


class InvalidResourceType(InvalidRequest):
    """Resources of this type are not kept here."""

    code = "InvalidResourceType"


class InvalidResourceId(InvalidRequest):
    """What is to be tagged does not exist."""

    code = "InvalidResourceId"


class TooManyTags(InvalidRequest):
    """A parameter would have more than 50 tags."""

    code = "TooManyTagsError"


class ParameterVersionLabelLimit(InvalidRequest):
    """A version would have more than ten labels."""

    code = "ParameterVersionLabelLimitExceeded"


class InvalidTag(InvalidRequest):
    """A tag is doubled, reserved or one too many."""

    code = "TagException"


class SerializationFailed(InvalidRequest):
    """The body of an HTTP request is not what its protocol says."""

    code = "SerializationException"


class RequestTooLarge(InvalidRequest):
    """The body of an HTTP request is too long."""

    code = "RequestEntityTooLargeException"
    http_status = 413


class DryRunSucceeded(InvalidRequest):
    """DryRun was set and the request would have succeeded."""

    code = "DryRunOperationException"
    http_status = 412


class ParameterPatternMismatch(InvalidRequest):
    """The value does not match the parameter's AllowedPattern."""

    code = "ParameterPatternMismatchException"


class InvalidAllowedPattern(InvalidRequest):
    """AllowedPattern is not a pattern that this service accepts."""

    code = "InvalidAllowedPatternException"


class HierarchyLevelLimit(InvalidRequest):
    """A parameter name has more than 15 levels."""

    code = "HierarchyLevelLimitExceededException"


class InvalidFilter(InvalidRequest):
    """A parameter filter names an unknown key or option."""

    code = "InvalidFilterKey"


class InvalidKeyIdForParameter(InvalidRequest):
    """The KMS key of a SecureString cannot be used; the text carries KMS's reason."""

    code = "InvalidKeyId"


class UsageError(InvalidRequest):
    """The command line or the set-up does not make sense."""


# --- Denied ----------------------------------------------------------------------------------------------


class AccessDenied(KmsfsError):
    """No, and no hint why: the audit log knows."""

    code = "AccessDeniedException"
    exit_code = ExitCode.DENIED
    errno = _errno.EACCES
    audience = "caller"


class AuthenticationError(KmsfsError):
    """The request does not prove whose it is (the HTTP door)."""

    code = "UnrecognizedClientException"
    exit_code = ExitCode.DENIED
    errno = _errno.EACCES
    audience = "caller"


class UnknownCredentials(AuthenticationError):
    """Credentials that this daemon did not give out."""


class MissingAuthentication(AuthenticationError):
    """An unsigned request."""

    code = "MissingAuthenticationTokenException"


class IncompleteSignature(AuthenticationError):
    """A signature that lacks a part."""

    code = "IncompleteSignatureException"


class InvalidSignature(AuthenticationError):
    """A signature that does not fit the request, or is not from now."""

    code = "InvalidSignatureException"


class TokenExpired(AuthenticationError):
    """Temporary credentials whose time is over."""

    code = "ExpiredTokenException"


# --- NotFound --------------------------------------------------------------------------------------------


class NotFound(KmsfsError):
    """The thing named is not there."""

    code = "NotFoundException"
    exit_code = ExitCode.NOT_FOUND
    errno = _errno.ENOENT
    audience = "caller"


class KeyNotFound(NotFound):
    """No KMS key has this id, or the caller may not know."""


class DecisionNotFound(NotFound):
    """No denial with this id is remembered, or the caller may not look into it."""


class AliasNotFound(NotFound):
    """No alias has this name."""


class GrantNotFound(NotFound):
    """No grant has this id."""


class ParameterNotFound(NotFound):
    """No parameter has this name, or the caller may not know."""

    code = "ParameterNotFound"


class ParameterVersionNotFound(NotFound):
    """The parameter has no such version or label."""

    code = "ParameterVersionNotFound"


# --- Conflict --------------------------------------------------------------------------------------------


class Conflict(KmsfsError):
    """The thing is not in a state in which this can be done."""

    code = "ConflictException"
    exit_code = ExitCode.CONFLICT
    errno = _errno.EEXIST
    audience = "caller"


class AlreadyExists(Conflict):
    """An alias with this name exists."""

    code = "AlreadyExistsException"


class ParameterAlreadyExists(Conflict):
    """The parameter exists and Overwrite is not set."""

    code = "ParameterAlreadyExists"


class ParameterMaxVersionLimit(Conflict):
    """The oldest of 100 versions carries a label and cannot make room."""

    code = "ParameterMaxVersionLimitExceeded"


class HierarchyTypeMismatch(Conflict):
    """The type of an existing parameter cannot change."""

    code = "HierarchyTypeMismatchException"


class KeyDisabled(Conflict):
    """The KMS key is disabled."""

    code = "DisabledException"
    errno = _errno.EKEYREVOKED


class KeyInvalidState(Conflict):
    """The KMS key's state does not allow this operation."""

    code = "KMSInvalidStateException"
    errno = _errno.EKEYREVOKED


class InvalidKeyUsage(Conflict):
    """The KMS key's usage does not allow this operation."""

    code = "InvalidKeyUsageException"
    errno = _errno.EKEYREJECTED


class IncorrectKey(Conflict):
    """The ciphertext was made under another KMS key than the one named."""

    code = "IncorrectKeyException"
    errno = _errno.EKEYREJECTED


class VolumeBusy(Conflict):
    """Another writer holds the volume."""

    code = "VolumeBusyException"
    errno = _errno.EBUSY


# --- Integrity -------------------------------------------------------------------------------------------


class IntegrityError(KmsfsError):
    """Bytes are not what was written."""

    code = "InvalidCiphertextException"
    exit_code = ExitCode.INTEGRITY
    errno = _errno.EIO
    audience: ClassVar[Audience] = "operator"


class InvalidCiphertext(IntegrityError):
    """The ciphertext, its context or its key is not right. One text for every cause."""

    audience = "caller"


class SignatureMismatch(IntegrityError):
    """A signature is not one of this message under this key."""

    code = "KMSInvalidSignatureException"


class MacMismatch(IntegrityError):
    """An HMAC is not this message's under this key."""

    code = "KMSInvalidMacException"


class AuthenticationFailed(IntegrityError):
    """A tag or commitment did not verify: the aead room's only failure."""


class CorruptFile(IntegrityError):
    """A file's bytes are not what was written."""

    def __init__(
        self, detail: str, reason: IntegrityReason, *, chunk_index: int = -1, hint: str = ""
    ) -> None:
        super().__init__(detail, hint=hint, evidence=reason.value)
        self.reason = reason
        self.chunk_index = chunk_index


class CorruptVolume(IntegrityError):
    """The volume configuration or a directory id is not what was written."""


class CorruptStore(IntegrityError):
    """kmsd's state is damaged, was edited, or is older than its anchor."""

    code = "StateDamagedException"
    http_status = 500


class AuditChainBroken(IntegrityError):
    """The audit log's chain does not verify."""


class UnsupportedFormat(IntegrityError):
    """The bytes say a version, suite or feature that this program does not know."""

    code = "UnsupportedFormatException"
    exit_code = ExitCode.UNSUPPORTED_FORMAT


# --- Unavailable -----------------------------------------------------------------------------------------


class Unavailable(KmsfsError):
    """Try later."""

    code = "DependencyTimeoutException"
    exit_code = ExitCode.UNAVAILABLE
    errno = _errno.EAGAIN
    retryable = True
    audience = "operator"
    http_status = 503


class DaemonUnreachable(Unavailable):
    """No kmsd answers on the socket."""


class DaemonSealed(Unavailable):
    """kmsd has no root key."""

    code = "DaemonSealedException"
    exit_code = ExitCode.SEALED


class DeadlineExceeded(Unavailable):
    """No answer in time."""

    code = "DeadlineExceededException"
    errno = _errno.ETIMEDOUT


class Throttled(Unavailable):
    """The caller asked more often than it may."""

    code = "ThrottlingException"
    http_status = 400


class AuditUnavailable(Unavailable):
    """The audit log cannot be written, so nothing is answered."""

    code = "AuditUnavailableException"


class StorageError(Unavailable):
    """The disk refused a read or a write."""

    code = "StorageException"
    exit_code = ExitCode.STORAGE
    errno = _errno.EIO

    def __init__(
        self, detail: str = "", *, hint: str = "", evidence: str = "", os_errno: int = _errno.EIO
    ) -> None:
        super().__init__(detail, hint=hint, evidence=evidence)
        self.os_errno = os_errno


class RootKeyMissing(Unavailable):
    """The root key source has no usable key."""

    code = "RootKeyException"
    exit_code = ExitCode.SEALED


class TokenUnavailable(Unavailable):
    """The hardware or software token that keeps a key is not there, or does not do what it is asked for."""

    code = "KeyUnavailableException"
    http_status = 500


class KeyLease(Unavailable):
    """The watch stream is silent past its lease: cached keys are unusable until it is back."""

    errno = _errno.EKEYEXPIRED


# --- Protocol --------------------------------------------------------------------------------------------


class ProtocolError(KmsfsError):
    """The peer speaks otherwise; the connection is closed after one answer."""

    code = "ProtocolException"
    exit_code = ExitCode.PROTOCOL
    errno = _errno.EPROTO
    audience = "caller"


class FrameTooLarge(ProtocolError):
    """A frame announces more bytes than the limit."""


class BadFrame(ProtocolError):
    """A frame is not a well-formed message."""


class VersionMismatch(ProtocolError):
    """The peer speaks another protocol version."""


# --- Bug -------------------------------------------------------------------------------------------------


class InvariantBroken(KmsfsError):
    """Our fault; the log has the traceback."""
