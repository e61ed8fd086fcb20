"""Shapes of the Security Token Service (AWS STS API reference, 2011-06-15)."""

from typing import Annotated

from msgspec import Meta

from kmsfs.api.operation import Shape

SESSION_SECONDS = 43_200


class CallerIdentity(Shape, kw_only=True):
    """Who calls: `user_id` is the local user's number."""

    user_id: str
    account: str
    arn: str


class GetSessionTokenRequest(Shape, kw_only=True):
    """How long the credentials shall work, in seconds: 900 to 129,600."""

    duration_seconds: Annotated[int, Meta(ge=900, le=129_600)] = SESSION_SECONDS


class Credentials(Shape, kw_only=True):
    """Temporary credentials for AWS's signature; `expiration` in seconds since the epoch."""

    access_key_id: str
    secret_access_key: str
    session_token: str
    expiration: float


class GetSessionTokenResponse(Shape, kw_only=True):
    """New credentials."""

    credentials: Credentials
