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
        audit=("duration_seconds",), errors=(errors.AccessDenied,),
    ),
)  # fmt: skip
