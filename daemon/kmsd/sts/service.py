"""Handlers of GetCallerIdentity and GetSessionToken."""

from kmsd.dispatch.call import Call
from kmsd.sts.tokens import SessionTokens
from kmsfs.api.shapes import sts as shapes
from kmsfs.errors import AccessDenied


class TokenService:
    """The Security Token Service of local users: who they are comes from the socket."""

    def __init__(self, account: str, tokens: SessionTokens) -> None:
        self._account = account
        self._tokens = tokens

    def get_caller_identity(self, call: Call) -> shapes.CallerIdentity:
        """GetCallerIdentity."""
        caller = call.caller
        return shapes.CallerIdentity(user_id=str(caller.uid), account=self._account, arn=caller.principal)

    def get_session_token(self, call: Call) -> shapes.GetSessionTokenResponse:
        """GetSessionToken: not with credentials that are temporary themselves, as at AWS."""
        request: shapes.GetSessionTokenRequest = call.request
        if call.caller.access_key_id:
            raise AccessDenied("Cannot call GetSessionToken with session credentials")
        made = self._tokens.issue(call.caller, call.caller.groups, call.now, request.duration_seconds)
        return shapes.GetSessionTokenResponse(
            credentials=shapes.Credentials(
                access_key_id=made.access_key_id,
                secret_access_key=made.secret,
                session_token=made.token,
                expiration=made.expires,
            )
        )
