"""Shapes of the parameter operations (bounds: botocore ssm/2014-11-06)."""

from typing import Annotated, Literal

from msgspec import Meta, field

from kmsfs.api.operation import Shape
from kmsfs.api.shapes.common import Seconds

Name = Annotated[str, Meta(min_length=1, max_length=2048)]
ParameterType = Literal["SecureString", "StringList", "String"]
Tier = Literal["Standard", "Advanced", "Intelligent-Tiering"]
NextToken = Annotated[str, Meta(min_length=1, max_length=4096)]


Label = Annotated[str, Meta(min_length=1, max_length=100)]
Labels = Annotated[list[Label], Meta(min_length=1, max_length=10)]
TagKey = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[\w\s.:/=+@-]*$")]
ResourceType = Literal[
    "Document", "ManagedInstance", "MaintenanceWindow", "Parameter", "PatchBaseline", "OpsItem", "OpsMetadata",
    "Automation", "Association", "CloudConnector",
]  # fmt: skip


class Tag(Shape, kw_only=True):
    """A tag of a parameter."""

    key: TagKey
    value: Annotated[str, Meta(max_length=256, pattern=r"^[\w\s.:/=+@-]*$")]


Tags = Annotated[list[Tag], Meta(max_length=1000)]


class PutParameterRequest(Shape, kw_only=True):
    """A new parameter or a new version of one."""

    name: Name
    value: str
    type: ParameterType | None = None
    description: Annotated[str, Meta(max_length=1024)] | None = None
    key_id: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    overwrite: bool = False
    allowed_pattern: Annotated[str, Meta(max_length=1024)] | None = None
    tags: Tags = []
    tier: Tier | None = None
    data_type: Annotated[str, Meta(max_length=128)] = "text"
    policies: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None


class PutParameterResponse(Shape, kw_only=True):
    """The new version's number."""

    version: int
    tier: str


class GetParameterRequest(Shape, kw_only=True):
    """A name or selector `name:version`."""

    name: Name
    with_decryption: bool = False


class Parameter(Shape, kw_only=True):
    """A parameter's value and facts."""

    name: str
    type: str
    value: str
    version: int
    selector: str | None = None
    source_result: str | None = None
    last_modified_date: Seconds
    arn: str = field(name="ARN")
    data_type: str = field(default="")


class GetParameterResponse(Shape, kw_only=True):
    """One parameter."""

    parameter: Parameter


class GetParametersRequest(Shape, kw_only=True):
    """Up to ten names or selectors."""

    names: Annotated[list[Name], Meta(min_length=1, max_length=10)]
    with_decryption: bool = False


class GetParametersResponse(Shape, kw_only=True):
    """The parameters found, and the names that were not."""

    parameters: list[Parameter]
    invalid_parameters: list[str]


class StringFilter(Shape, kw_only=True):
    """A filter: Key, Option, Values."""

    key: Annotated[str, Meta(min_length=1, max_length=132)]
    option: Annotated[str, Meta(min_length=1, max_length=10)] | None = None
    values: Annotated[list[Annotated[str, Meta(min_length=1, max_length=1024)]], Meta(max_length=50)] = []


class OldFilter(Shape, kw_only=True):
    """A filter in the older form: names begin with a value, types and keys are one."""

    key: Literal["Name", "Type", "KeyId"]
    values: Annotated[list[Annotated[str, Meta(min_length=1, max_length=1024)]], Meta(min_length=1, max_length=50)]


class InlinePolicy(Shape, kw_only=True):
    """A parameter policy and whether it has acted."""

    policy_text: str
    policy_type: str
    policy_status: str


class GetParametersByPathRequest(Shape, kw_only=True):
    """A path and how to walk below it."""

    path: Name
    recursive: bool = False
    parameter_filters: list[StringFilter] = []
    with_decryption: bool = False
    max_results: Annotated[int, Meta(ge=1, le=10)] = 10
    next_token: NextToken | None = None


class GetParametersByPathResponse(Shape, kw_only=True):
    """A page of parameters."""

    parameters: list[Parameter]
    next_token: str | None = None


class GetParameterHistoryRequest(Shape, kw_only=True):
    """Whose versions."""

    name: Name
    with_decryption: bool = False
    max_results: Annotated[int, Meta(ge=1, le=50)] = 50
    next_token: NextToken | None = None


class ParameterHistory(Shape, kw_only=True):
    """One version."""

    name: str
    type: str
    key_id: str | None = None
    last_modified_date: Seconds
    last_modified_user: str
    description: str | None = None
    value: str
    allowed_pattern: str | None = None
    version: int
    labels: list[str]
    tier: str
    policies: list[InlinePolicy] | None = None
    data_type: str


class GetParameterHistoryResponse(Shape, kw_only=True):
    """A page of versions, oldest first."""

    parameters: list[ParameterHistory]
    next_token: str | None = None


class DescribeParametersRequest(Shape, kw_only=True):
    """A page of descriptions."""

    filters: list[OldFilter] = []
    parameter_filters: list[StringFilter] = []
    shared: bool = False
    max_results: Annotated[int, Meta(ge=1, le=50)] = 10
    next_token: NextToken | None = None


class ParameterMetadata(Shape, kw_only=True):
    """A parameter without its value."""

    name: str
    arn: str = field(name="ARN")
    type: str
    key_id: str | None = None
    last_modified_date: Seconds
    last_modified_user: str
    description: str | None = None
    allowed_pattern: str | None = None
    version: int
    tier: str
    policies: list[InlinePolicy] | None = None
    data_type: str


class DescribeParametersResponse(Shape, kw_only=True):
    """A page of descriptions."""

    parameters: list[ParameterMetadata]
    next_token: str | None = None


class DeleteParameterRequest(Shape, kw_only=True):
    """Which parameter."""

    name: Name


class DeleteParametersRequest(Shape, kw_only=True):
    """Up to ten names."""

    names: Annotated[list[Name], Meta(min_length=1, max_length=10)]


class DeleteParametersResponse(Shape, kw_only=True):
    """What was deleted, and the names that were not there."""

    deleted_parameters: list[str]
    invalid_parameters: list[str]


class LabelParameterVersionRequest(Shape, kw_only=True):
    """Labels for a version; the newest if none is named."""

    name: Name
    parameter_version: int | None = None
    labels: Labels


class LabelParameterVersionResponse(Shape, kw_only=True, omit_defaults=False):
    """Labels that cannot be any, and the version that has the others."""

    invalid_labels: list[str]
    parameter_version: int


class UnlabelParameterVersionRequest(Shape, kw_only=True):
    """Labels to take from a version."""

    name: Name
    parameter_version: int
    labels: Labels


class UnlabelParameterVersionResponse(Shape, kw_only=True, omit_defaults=False):
    """Labels taken, and those that the version does not have."""

    removed_labels: list[str]
    invalid_labels: list[str]


class AddTagsToResourceRequest(Shape, kw_only=True):
    """Tags for a parameter; the value of a key that is there already is replaced."""

    resource_type: ResourceType
    resource_id: Name
    tags: Tags


class RemoveTagsFromResourceRequest(Shape, kw_only=True):
    """Tags to take from a parameter by their keys."""

    resource_type: ResourceType
    resource_id: Name
    tag_keys: list[TagKey]


class ListTagsForResourceRequest(Shape, kw_only=True):
    """Of which parameter."""

    resource_type: ResourceType
    resource_id: Name


class ListTagsForResourceResponse(Shape, kw_only=True):
    """A parameter's tags."""

    tag_list: list[Tag]
