"""One daemon's HTTP door, seen by several callers of IAM's."""

import json
import uuid

import boto3
import botocore.exceptions
import pytest
from botocore.config import Config

REGION = "us-east-1"


class World:
    """One daemon's door, seen by several callers."""

    def __init__(self, daemon):
        self.daemon = daemon
        session = daemon.session()
        self.endpoint = session.call("GetStatus", {})["AwsEndpoint"]
        made = session.call("GetSessionToken", {})["Credentials"]
        self.admin = (made["AccessKeyId"], made["SecretAccessKey"], made["SessionToken"])

    def client(self, service, who=None, region=REGION):
        key, secret, token = (*(who or self.admin), None)[:3]
        return boto3.client(
            service, endpoint_url=self.endpoint, region_name=region, aws_access_key_id=key, aws_secret_access_key=secret,
            aws_session_token=token, config=Config(retries={"max_attempts": 0}),
        )  # fmt: skip

    def user(self, name=None, policy=None, **options):
        name = name or f"u-{uuid.uuid4().hex[:8]}"
        iam = self.client("iam")
        iam.create_user(UserName=name, **options)
        if policy is not None:
            iam.put_user_policy(UserName=name, PolicyName="own", PolicyDocument=document(*policy))
        made = iam.create_access_key(UserName=name)["AccessKey"]
        return name, (made["AccessKeyId"], made["SecretAccessKey"])


def allow(actions, resource="*", **more):
    return {"Effect": "Allow", "Action": actions, "Resource": resource, **more}


def deny(actions, resource="*", **more):
    return {**allow(actions, resource, **more), "Effect": "Deny"}


def document(*statements):
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


def refused(call, **parameters):
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        call(**parameters)
    return caught.value.response["Error"]["Code"]
