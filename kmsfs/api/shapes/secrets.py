"""Shapes of Secrets Manager's operations (bounds: botocore secretsmanager/2017-10-17)."""

from typing import Annotated, Literal

from msgspec import Meta, field

from kmsfs.api.operation import Shape
from kmsfs.api.shapes.common import Seconds

SecretId = Annotated[str, Meta(min_length=1, max_length=2048)]
SecretName = Annotated[str, Meta(min_length=1, max_length=512)]
Token = Annotated[str, Meta(min_length=32, max_length=64)]
Text = Annotated[str, Meta(max_length=65536)]
Binary = Annotated[bytes, Meta(max_length=65536)]
Description = Annotated[str, Meta(max_length=2048)]
KeyText = Annotated[str, Meta(max_length=2048)]
Stage = Annotated[str, Meta(min_length=1, max_length=256)]
Stages = Annotated[list[Stage], Meta(min_length=1, max_length=20)]
NextToken = Annotated[str, Meta(min_length=1, max_length=4096)]
MaxResults = Annotated[int, Meta(ge=1, le=100)]
PolicyName = Annotated[str, Meta(min_length=1, max_length=128)]
PolicyText = Annotated[str, Meta(min_length=1, max_length=20480)]
FilterKey = Literal["description", "name", "tag-key", "tag-value", "primary-region", "owning-service", "all"]


class Tag(Shape, kw_only=True):
    """A tag of a secret."""

    key: Annotated[str, Meta(min_length=1, max_length=128)]
    value: Annotated[str, Meta(max_length=256)] = ""


class ReplicaRegion(Shape, kw_only=True):
    """Where a replica is wanted."""

    region: Annotated[str, Meta(min_length=1, max_length=128)]
    kms_key_id: KeyText | None = None


class CreateSecretRequest(Shape, kw_only=True):
    """A new secret, with its first value or without one."""

    name: SecretName
    client_request_token: Token | None = None
    description: Description | None = None
    kms_key_id: KeyText | None = None
    secret_binary: Binary | None = None
    secret_string: Text | None = None
    tags: list[Tag] = []
    add_replica_regions: list[ReplicaRegion] = []
    force_overwrite_replica_secret: bool = False
    type: str | None = None


class SecretRequest(Shape, kw_only=True):
    """A secret by name, ARN, or ARN without its random end."""

    secret_id: SecretId


class SecretNameResponse(Shape, kw_only=True):
    """What most changes answer."""

    arn: str = field(name="ARN")
    name: str


class SecretVersionResponse(Shape, kw_only=True):
    """A secret and the version that was made, if one was."""

    arn: str = field(name="ARN")
    name: str
    version_id: str | None = None


class PutSecretValueResponse(Shape, kw_only=True):
    """The version that was made, and its stages."""

    arn: str = field(name="ARN")
    name: str
    version_id: str
    version_stages: list[str]


class GetSecretValueRequest(Shape, kw_only=True):
    """A secret's value by version or stage; AWSCURRENT if neither is named."""

    secret_id: SecretId
    version_id: Token | None = None
    version_stage: Stage | None = None


class SecretValue(Shape, kw_only=True):
    """One version's value."""

    arn: str = field(name="ARN")
    name: str
    version_id: str
    secret_string: str | None = None
    secret_binary: bytes | None = None
    version_stages: list[str]
    created_date: Seconds


class Filter(Shape, kw_only=True):
    """Prefixes of which one must match; a leading `!` negates."""

    key: FilterKey | None = None
    values: (
        Annotated[list[Annotated[str, Meta(max_length=512)]], Meta(min_length=1, max_length=10)] | None
    ) = None


Filters = Annotated[list[Filter], Meta(max_length=10)]


class BatchGetSecretValueRequest(Shape, kw_only=True):
    """Up to twenty secrets by id, or those that filters find."""

    secret_id_list: Annotated[list[SecretId], Meta(min_length=1, max_length=20)] | None = None
    filters: Filters | None = None
    max_results: Annotated[int, Meta(ge=1, le=20)] | None = None
    next_token: NextToken | None = None


class BatchError(Shape, kw_only=True):
    """Why one secret of a batch was not read."""

    secret_id: str
    error_code: str
    message: str


class BatchGetSecretValueResponse(Shape, kw_only=True):
    """Values, and what could not be read."""

    secret_values: list[SecretValue] = field(name="SecretValues")
    errors: list[BatchError] = field(name="Errors")
    next_token: str | None = None


class PutSecretValueRequest(Shape, kw_only=True):
    """A new version of a secret."""

    secret_id: SecretId
    client_request_token: Token | None = None
    secret_binary: Binary | None = None
    secret_string: Text | None = None
    version_stages: Stages | None = None
    rotation_token: Annotated[str, Meta(min_length=36, max_length=256)] | None = None


class UpdateSecretRequest(Shape, kw_only=True):
    """Changes of a secret, with a new value or without one."""

    secret_id: SecretId
    client_request_token: Token | None = None
    description: Description | None = None
    kms_key_id: KeyText | None = None
    secret_binary: Binary | None = None
    secret_string: Text | None = None
    type: str | None = None


class RotationRules(Shape, kw_only=True):
    """When a secret rotates by itself."""

    automatically_after_days: Annotated[int, Meta(ge=1, le=1000)] | None = None
    duration: Annotated[str, Meta(min_length=2, max_length=3, pattern=r"^[0-9h]+$")] | None = None
    schedule_expression: (
        Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[0-9A-Za-z\(\)#\?\*\-\/, ]+$")] | None
    ) = None


class DescribeSecretResponse(Shape, kw_only=True):
    """What is known of a secret, without any value."""

    arn: str = field(name="ARN")
    name: str
    description: str | None = None
    kms_key_id: str | None = None
    rotation_enabled: bool | None = None
    rotation_lambda_arn: str | None = field(name="RotationLambdaARN", default=None)
    rotation_rules: RotationRules | None = None
    last_rotated_date: Seconds | None = None
    last_changed_date: Seconds | None = None
    last_accessed_date: Seconds | None = None
    deleted_date: Seconds | None = None
    next_rotation_date: Seconds | None = None
    tags: list[Tag] | None = None
    version_ids_to_stages: dict[str, list[str]] | None = None
    created_date: Seconds


class SecretListEntry(Shape, kw_only=True):
    """One secret of a list."""

    arn: str = field(name="ARN")
    name: str
    description: str | None = None
    kms_key_id: str | None = None
    rotation_enabled: bool | None = None
    rotation_lambda_arn: str | None = field(name="RotationLambdaARN", default=None)
    rotation_rules: RotationRules | None = None
    last_rotated_date: Seconds | None = None
    last_changed_date: Seconds | None = None
    last_accessed_date: Seconds | None = None
    deleted_date: Seconds | None = None
    next_rotation_date: Seconds | None = None
    tags: list[Tag] | None = None
    secret_versions_to_stages: dict[str, list[str]] | None = None
    created_date: Seconds


class ListSecretsRequest(Shape, kw_only=True):
    """Secrets, those marked for deletion only if asked for."""

    include_planned_deletion: bool = False
    max_results: MaxResults = 100
    next_token: NextToken | None = None
    filters: Filters | None = None
    sort_order: Literal["asc", "desc"] = "asc"
    sort_by: Literal["created-date", "last-accessed-date", "last-changed-date", "name"] = "created-date"


class ListSecretsResponse(Shape, kw_only=True):
    """A page of secrets."""

    secret_list: list[SecretListEntry] = field(name="SecretList")
    next_token: str | None = None


class DeleteSecretRequest(Shape, kw_only=True):
    """Mark a secret for deletion, or delete it at once."""

    secret_id: SecretId
    recovery_window_in_days: int | None = None
    force_delete_without_recovery: bool = False


class DeleteSecretResponse(Shape, kw_only=True):
    """When the secret goes."""

    arn: str = field(name="ARN")
    name: str
    deletion_date: Seconds


class ListSecretVersionIdsRequest(Shape, kw_only=True):
    """Versions that have a stage, or all of them."""

    secret_id: SecretId
    max_results: MaxResults = 100
    next_token: NextToken | None = None
    include_deprecated: bool = False


class SecretVersionsListEntry(Shape, kw_only=True):
    """One version."""

    version_id: str
    version_stages: list[str] | None = None
    created_date: Seconds
    kms_key_ids: list[str] | None = None


class ListSecretVersionIdsResponse(Shape, kw_only=True):
    """A page of versions."""

    versions: list[SecretVersionsListEntry]
    next_token: str | None = None
    arn: str = field(name="ARN")
    name: str


class UpdateSecretVersionStageRequest(Shape, kw_only=True):
    """Move a stage from one version to another, or take it away."""

    secret_id: SecretId
    version_stage: Stage
    remove_from_version_id: Token | None = None
    move_to_version_id: Token | None = None


class GetRandomPasswordRequest(Shape, kw_only=True):
    """What a random password may hold."""

    password_length: int = 32
    exclude_characters: Annotated[str, Meta(max_length=4096)] = ""
    exclude_numbers: bool = False
    exclude_punctuation: bool = False
    exclude_uppercase: bool = False
    exclude_lowercase: bool = False
    include_space: bool = False
    require_each_included_type: bool = True


class GetRandomPasswordResponse(Shape, kw_only=True):
    """A password made by the system's random generator."""

    random_password: str


class TagSecretRequest(Shape, kw_only=True):
    """Tags to set."""

    secret_id: SecretId
    tags: list[Tag]


class UntagSecretRequest(Shape, kw_only=True):
    """Tags to remove."""

    secret_id: SecretId
    tag_keys: list[Annotated[str, Meta(min_length=1, max_length=128)]]


class PutResourcePolicyRequest(Shape, kw_only=True):
    """Who else may use a secret."""

    secret_id: SecretId
    resource_policy: PolicyText
    policy_name: PolicyName = "default"
    block_public_policy: bool = False


class ResourcePolicyRequest(Shape, kw_only=True):
    """A secret's policy: there is one, `default`."""

    secret_id: SecretId
    policy_name: PolicyName = "default"


class GetResourcePolicyResponse(Shape, kw_only=True):
    """A secret's policy, if it has one."""

    arn: str = field(name="ARN")
    name: str
    resource_policy: str | None = None


class ListResourcePoliciesRequest(Shape, kw_only=True):
    """The names of a secret's policies."""

    secret_id: SecretId
    max_results: MaxResults = 100
    next_token: NextToken | None = None


class ResourcePolicySummary(Shape, kw_only=True):
    """The name of a policy."""

    policy_name: str


class ListResourcePoliciesResponse(Shape, kw_only=True):
    """The names of a secret's policies."""

    resource_policies: list[ResourcePolicySummary]
    next_token: str | None = None


class ValidateResourcePolicyRequest(Shape, kw_only=True):
    """A policy to be looked at."""

    secret_id: SecretId | None = None
    resource_policy: PolicyText


class PolicyProblem(Shape, kw_only=True):
    """What is wrong with a policy."""

    check_name: str
    error_message: str


class ValidateResourcePolicyResponse(Shape, kw_only=True):
    """Whether a policy could be put."""

    policy_validation_passed: bool
    validation_errors: list[PolicyProblem]


class RotateSecretRequest(Shape, kw_only=True):
    """How a secret rotates, and whether now."""

    secret_id: SecretId
    client_request_token: Token | None = None
    rotation_lambda_arn: Annotated[str, Meta(max_length=2048)] | None = field(
        name="RotationLambdaARN", default=None
    )
    rotation_rules: RotationRules | None = None
    rotate_immediately: bool = True


class DueRotation(Shape, kw_only=True):
    """A rotation that waits to be run: begun, if it has a token, or with its time come."""

    arn: str = field(name="ARN")
    name: str
    rotation_lambda_arn: str = field(name="RotationLambdaARN")
    client_request_token: str | None = None
    pending_since: Seconds | None = None


class ListDueRotationsResponse(Shape, kw_only=True):
    """Those that the caller may run."""

    rotations: list[DueRotation]
