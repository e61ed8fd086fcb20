"""Parameter operations."""

from kmsfs import errors
from kmsfs.api.operation import Operation, Resource
from kmsfs.api.shapes import parameters as p
from kmsfs.api.shapes.keys import Empty

_READ = (
    errors.AccessDenied, errors.ParameterNotFound, errors.InvalidName, errors.InvalidKeyIdForParameter,
    errors.HierarchyLevelLimit,
)  # fmt: skip
_TAGS = (errors.AccessDenied, errors.InvalidResourceId, errors.InvalidResourceType, errors.TooManyTags)
_DECRYPT = (*_READ, errors.ParameterVersionNotFound, errors.InvalidCiphertext)

PARAMETER_OPERATIONS = (
    Operation(
        "PutParameter", "ssm", "ssm:PutParameter", p.PutParameterRequest, p.PutParameterResponse,
        "Store a parameter, or with Overwrite a new version of one.",
        resource=Resource.PARAMETER, resource_field="name", mutates=True,
        audit=("name", "type", "key_id", "overwrite", "tier"), secret=("Value",),
        errors=(*_READ, errors.ParameterAlreadyExists, errors.ParameterMaxVersionLimit, errors.HierarchyTypeMismatch,
                errors.ParameterPatternMismatch, errors.InvalidAllowedPattern, errors.LimitExceeded,
                errors.InvalidParameterPolicyType, errors.InvalidParameterPolicyAttribute,
                errors.IncompatibleParameterPolicy, errors.ParameterPoliciesLimit),
    ),
    Operation(
        "GetParameter", "ssm", "ssm:GetParameter", p.GetParameterRequest, p.GetParameterResponse,
        "Read one parameter, or one version of it by `name:version`.",
        resource=Resource.PARAMETER, resource_field="name", audit=("name", "with_decryption"), errors=_DECRYPT,
    ),
    Operation(
        "GetParameters", "ssm", "ssm:GetParameters", p.GetParametersRequest, p.GetParametersResponse,
        "Read up to ten parameters; names not found come back in InvalidParameters.",
        resource=Resource.PARAMETER, resource_field="names", audit=("names", "with_decryption"), errors=_DECRYPT,
    ),
    Operation(
        "GetParametersByPath", "ssm", "ssm:GetParametersByPath", p.GetParametersByPathRequest,
        p.GetParametersByPathResponse,
        "Read the parameters below a path, one level or all.",
        resource=Resource.PARAMETER, resource_field="path", audit=("path", "recursive", "with_decryption"),
        errors=(*_DECRYPT, errors.InvalidNextToken, errors.InvalidFilter, errors.InvalidFilterOption, errors.InvalidFilterValue),
    ),
    Operation(
        "GetParameterHistory", "ssm", "ssm:GetParameterHistory", p.GetParameterHistoryRequest,
        p.GetParameterHistoryResponse,
        "Read the kept versions of a parameter, oldest first.",
        resource=Resource.PARAMETER, resource_field="name", audit=("name", "with_decryption"),
        errors=(*_DECRYPT, errors.InvalidNextToken),
    ),
    Operation(
        "DescribeParameters", "ssm", "ssm:DescribeParameters", p.DescribeParametersRequest,
        p.DescribeParametersResponse,
        "List parameters without their values.",
        resource=Resource.PARAMETER, audit=("max_results",),
        errors=(errors.InvalidNextToken, errors.InvalidFilter, errors.InvalidFilterOption, errors.InvalidFilterValue),
    ),
    Operation(
        "DeleteParameter", "ssm", "ssm:DeleteParameter", p.DeleteParameterRequest, Empty,
        "Delete a parameter and its versions.",
        resource=Resource.PARAMETER, resource_field="name", mutates=True, audit=("name",), errors=_READ,
    ),
    Operation(
        "DeleteParameters", "ssm", "ssm:DeleteParameters", p.DeleteParametersRequest, p.DeleteParametersResponse,
        "Delete up to ten parameters.",
        resource=Resource.PARAMETER, resource_field="names", mutates=True, audit=("names",), errors=_READ,
    ),
    Operation(
        "LabelParameterVersion", "ssm", "ssm:LabelParameterVersion", p.LabelParameterVersionRequest,
        p.LabelParameterVersionResponse, "Give a version names that selectors take: `name:label`.",
        resource=Resource.PARAMETER, resource_field="name", mutates=True,
        audit=("name", "parameter_version", "labels"),
        errors=(*_READ, errors.ParameterVersionNotFound, errors.ParameterVersionLabelLimit),
    ),
    Operation(
        "UnlabelParameterVersion", "ssm", "ssm:UnlabelParameterVersion", p.UnlabelParameterVersionRequest,
        p.UnlabelParameterVersionResponse, "Take labels from a version.",
        resource=Resource.PARAMETER, resource_field="name", mutates=True,
        audit=("name", "parameter_version", "labels"), errors=(*_READ, errors.ParameterVersionNotFound),
    ),
    Operation(
        "AddTagsToResource", "ssm", "ssm:AddTagsToResource", p.AddTagsToResourceRequest, Empty,
        "Add tags to a parameter.",
        resource=Resource.PARAMETER, resource_field="resource_id", mutates=True, audit=("resource_id",), errors=_TAGS,
    ),
    Operation(
        "RemoveTagsFromResource", "ssm", "ssm:RemoveTagsFromResource", p.RemoveTagsFromResourceRequest, Empty,
        "Take tags from a parameter.",
        resource=Resource.PARAMETER, resource_field="resource_id", mutates=True, audit=("resource_id", "tag_keys"),
        errors=_TAGS,
    ),
    Operation(
        "ListTagsForResource", "ssm", "ssm:ListTagsForResource", p.ListTagsForResourceRequest,
        p.ListTagsForResourceResponse, "List a parameter's tags.",
        resource=Resource.PARAMETER, resource_field="resource_id", audit=("resource_id",), errors=_TAGS,
    ),
)  # fmt: skip
