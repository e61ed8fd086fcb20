"""The default KMS key of a service, made on first use."""

from kmsd.authz.policy import service_key_policy
from kmsd.dispatch.call import Call, InternalCalls
from kmsfs.errors import AccessDenied, NotFound


def make_service_key(calls: InternalCalls, call: Call, alias: str, service: str, description: str) -> None:
    """Make the key `alias` of a service in the call's scope unless it is there already."""
    try:
        calls.internal(call, "DescribeKey", {"KeyId": alias}, service)
    except NotFound:
        parameters = {
            "Description": description,
            "Policy": service_key_policy(call.caller.account, call.caller.principal, service),
        }
        made = calls.internal(call, "CreateKey", parameters, service)
        target = {"AliasName": alias, "TargetKeyId": made.key_metadata.key_id}
        calls.internal(call, "CreateAlias", target, service)
    except AccessDenied:
        # It is there, and only its service's other operations are for this caller.
        return
