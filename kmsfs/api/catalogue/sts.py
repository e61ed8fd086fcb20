"""Operations of the Security Token Service."""

from kmsfs import errors
from kmsfs.api.operation import Operation
from kmsfs.api.shapes import sts
from kmsfs.api.shapes.keys import Empty

STS_OPERATIONS = (
    Operation(
        "GetCallerIdentity", "sts", "sts:GetCallerIdentity", Empty, sts.CallerIdentity,
        "Tell as whom the caller is seen.",
    ),
    Operation(
        "GetSessionToken", "sts", "sts:GetSessionToken", sts.GetSessionTokenRequest, sts.GetSessionTokenResponse,
        "Give the caller temporary credentials for AWS's own clients.",
        audit=("duration_seconds", "serial_number"), errors=(errors.AccessDenied,),
    ),
    Operation(
        "AssumeRole", "sts", "sts:AssumeRole", sts.AssumeRoleRequest, sts.AssumeRoleResponse,
        "Act in a role for a while, if its trust policy and one's own policies allow it.",
        audit=("role_arn", "role_session_name", "duration_seconds", "serial_number"),
        errors=(
            errors.AccessDenied, errors.MalformedIdentityPolicy, errors.NoSuchEntity, errors.IamLimitExceeded, errors.InvalidIamInput,
            errors.InvalidSessionTag,
        ),
    ),
    Operation(
        "GetAccessKeyInfo", "sts", "sts:GetAccessKeyInfo", sts.AccessKeyInfoRequest, sts.AccessKeyInfoResponse,
        "Tell the account of an access key.", audit=("access_key_id",), errors=(errors.AccessDenied,),
    ),
)  # fmt: skip
