"""Operations of Secrets Manager."""

from kmsfs import errors
from kmsfs.api.operation import Operation, Resource, Shape
from kmsfs.api.shapes import secrets as s
from kmsfs.api.shapes.keys import Empty
from kmsfs.errors import KmsfsError

_FIND = (errors.SecretNotFound, errors.AccessDenied)
_USE = (*_FIND, errors.InvalidSecretRequest, errors.InvalidParameter)
_SEAL = (*_USE, errors.SecretEncryptionFailure, errors.SecretExists, errors.LimitExceeded)
_OPEN = (*_USE, errors.SecretDecryptionFailure)


def _declare(
    name: str,
    request: type[Shape],
    response: type[Shape],
    summary: str,
    declared: tuple[type[KmsfsError], ...],
    *,
    audit: tuple[str, ...] = ("secret_id",),
    secret: tuple[str, ...] = (),
    mutates: bool = True,
    wire: str = "",
) -> Operation:
    field = "secret_id" if "secret_id" in request.__struct_fields__ else "name"
    return Operation(
        name, "secretsmanager", f"secretsmanager:{name}", request, response, summary,
        resource=Resource.SECRET, resource_field=field, mutates=mutates, audit=audit, secret=secret,
        errors=declared, wire=wire,
    )  # fmt: skip


_VALUES = ("SecretString", "SecretBinary")

SECRET_OPERATIONS = (
    _declare("CreateSecret", s.CreateSecretRequest, s.SecretVersionResponse, "Make a secret.",
             (*_SEAL, errors.UnsupportedOperation), audit=("name", "kms_key_id"), secret=_VALUES),
    _declare("GetSecretValue", s.GetSecretValueRequest, s.SecretValue, "Read a secret's value.", _OPEN,
             audit=("secret_id", "version_id", "version_stage"), mutates=False),
    _declare("BatchGetSecretValue", s.BatchGetSecretValueRequest, s.BatchGetSecretValueResponse,
             "Read up to twenty secrets; what cannot be read is listed.", (*_OPEN, errors.InvalidSecretToken),
             audit=("secret_id_list",), mutates=False),
    _declare("PutSecretValue", s.PutSecretValueRequest, s.PutSecretValueResponse, "Give a secret a new version.", _SEAL,
             audit=("secret_id", "version_stages"), secret=_VALUES),
    _declare("UpdateSecret", s.UpdateSecretRequest, s.SecretVersionResponse, "Change a secret.", _SEAL,
             audit=("secret_id", "kms_key_id"), secret=_VALUES),
    _declare("DescribeSecret", s.SecretRequest, s.DescribeSecretResponse, "Tell of a secret, without its value.", _FIND,
             mutates=False),
    _declare("ListSecrets", s.ListSecretsRequest, s.ListSecretsResponse, "List the secrets that the caller may see.",
             (errors.InvalidSecretToken, errors.InvalidParameter), audit=(), mutates=False),
    _declare("DeleteSecret", s.DeleteSecretRequest, s.DeleteSecretResponse,
             "Mark a secret for deletion, or delete it at once.", _USE,
             audit=("secret_id", "recovery_window_in_days", "force_delete_without_recovery")),
    _declare("RestoreSecret", s.SecretRequest, s.SecretNameResponse, "Keep a secret that was marked for deletion.", _USE),
    _declare("ListSecretVersionIds", s.ListSecretVersionIdsRequest, s.ListSecretVersionIdsResponse,
             "List a secret's versions.", (*_FIND, errors.InvalidSecretToken), mutates=False),
    _declare("UpdateSecretVersionStage", s.UpdateSecretVersionStageRequest, s.SecretNameResponse,
             "Move a stage between versions.", (*_USE, errors.LimitExceeded),
             audit=("secret_id", "version_stage", "remove_from_version_id", "move_to_version_id")),
    _declare("GetRandomPassword", s.GetRandomPasswordRequest, s.GetRandomPasswordResponse, "Make a random password.",
             (errors.InvalidParameter,), audit=("password_length",), mutates=False),
    _declare("TagResource", s.TagSecretRequest, Empty, "Set tags of a secret.", _USE, wire="TagSecret"),
    _declare("UntagResource", s.UntagSecretRequest, Empty, "Remove tags of a secret.", _USE,
             audit=("secret_id", "tag_keys"), wire="UntagSecret"),
    _declare("PutResourcePolicy", s.PutResourcePolicyRequest, s.SecretNameResponse, "Say who else may use a secret.",
             (*_USE, errors.MalformedPolicy, errors.PublicPolicy)),
    _declare("ListResourcePolicies", s.ListResourcePoliciesRequest, s.ListResourcePoliciesResponse,
             "List the names of a secret's policies.", _USE, mutates=False),
    _declare("GetResourcePolicy", s.ResourcePolicyRequest, s.GetResourcePolicyResponse, "Read a secret's policy.", _USE,
             mutates=False),
    _declare("DeleteResourcePolicy", s.ResourcePolicyRequest, s.SecretNameResponse, "Remove a secret's policy.", _USE),
    _declare("ValidateResourcePolicy", s.ValidateResourcePolicyRequest, s.ValidateResourcePolicyResponse,
             "Look whether a policy could be put.", _USE, mutates=False),
    _declare("RotateSecret", s.RotateSecretRequest, s.SecretVersionResponse,
             "Rotate a secret now and by a schedule.", _USE,
             audit=("secret_id", "rotation_lambda_arn", "rotate_immediately")),
    _declare("CancelRotateSecret", s.SecretRequest, s.SecretVersionResponse, "Rotate a secret no more by itself.", _USE),
    Operation(
        "ListDueRotations", "kmsfs", "secretsmanager:RotateSecret", Empty, s.ListDueRotationsResponse,
        "List the rotations that wait to be run by `kmsfs secret rotate-due`.",
    ),
)  # fmt: skip
