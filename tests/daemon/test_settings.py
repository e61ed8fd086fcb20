"""Settings of programs out of the parameter tree: the guide's examples as printed, and what is wrong."""

import re
from pathlib import Path

import boto3
import pytest
from pydantic_settings import BaseSettings

from kmsfs import client, errors
from kmsfs.client.env import Env
from kmsfs.client.settings import ParameterSource

GUIDE = Path(__file__).parents[2] / "docs/guides/settings.md"


@pytest.fixture
def ssm(daemon, monkeypatch):
    monkeypatch.setenv("KMSFS_SOCKET", str(daemon.socket))
    made = client("ssm")
    yield made
    for page in made.get_paginator("describe_parameters").paginate():
        for entry in page["Parameters"]:
            made.delete_parameter(Name=entry["Name"])
    made.close()


def fill(ssm):
    """What the guide's first block does."""
    lines = re.findall(r"printf (\S+) +\| kmsfs param put (\S+) --type (\w+)", GUIDE.read_text())
    assert len(lines) == 4
    for value, name, kind in lines:
        ssm.put_parameter(Name=name, Value=value, Type=kind)


def blocks():
    return re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)


def test_the_guide_as_printed(ssm):
    fill(ssm)
    environ, pydantic = blocks()
    first, second = {}, {}
    exec(environ, first)
    assert first["DATABASES"] == {"default": {"PASSWORD": "s3cret", "PORT": 5432}}
    assert first["DEBUG"] is True and first["ALLOWED_HOSTS"] == ["a", "b"]
    exec(pydantic, second)
    found = second["settings"]
    assert (found.db.password.get_secret_value(), found.db.port, found.debug, found.hosts) == ("s3cret", 5432, True, ["a", "b"])
    assert "s3cret" not in repr(first["env"]) + repr(found)


def test_env(ssm, monkeypatch):
    ssm.put_parameter(Name="/e/json", Value='{"a": [1]}', Type="SecureString")
    ssm.put_parameter(Name="/e/rate", Value="0.5", Type="String")
    ssm.put_parameter(Name="/e/word", Value="hunter2", Type="SecureString")
    env = Env("/e/", client=ssm)
    assert (env.json("JSON"), env.float("RATE"), env("NONE", default=None)) == ({"a": [1]}, 0.5, None)
    with pytest.raises(errors.ParameterNotFound, match="/e/"):
        env("NONE")
    for method in (env.int, env.bool, env.json, env.float):
        with pytest.raises(errors.InvalidRequest) as caught:
            method("WORD")
        assert "hunter2" not in str(caught.value) and caught.value.__cause__ is None and caught.value.__suppress_context__
    monkeypatch.setenv("WORD", "mine")
    assert env("WORD") == "mine" and Env("/e", client=ssm, environ={})("WORD") == "hunter2"
    ssm.put_parameter(Name="/e/rate", Value="0.75", Overwrite=True)
    assert env.float("RATE") == 0.5
    env.refresh()
    assert env.float("RATE") == 0.75
    ssm.put_parameter(Name="/e/RA-TE", Value="x", Type="String")
    ssm.put_parameter(Name="/e/RA_TE", Value="y", Type="String")
    with pytest.raises(errors.InvalidRequest, match="RA_TE"):
        Env("/e", client=ssm)("OTHER")


def test_pydantic_source(ssm):
    class Settings(BaseSettings):
        name: str = "default"
        size: int = 1

        @classmethod
        def settings_customise_sources(cls, settings_cls, **_sources):
            return (ParameterSource(settings_cls, "/p", client=ssm),)

    assert Settings().name == "default"
    ssm.put_parameter(Name="/p/NAME", Value="tree", Type="SecureString")
    ssm.put_parameter(Name="/p/nobody/wants", Value="x", Type="String")
    assert (Settings().name, Settings().size) == ("tree", 1)
    ssm.put_parameter(Name="/p/name/below", Value="x", Type="String")
    with pytest.raises(errors.InvalidRequest, match="one setting"):
        Settings()


def test_with_boto3_against_the_door(make_daemon):
    daemon = make_daemon("--aws-endpoint", "127.0.0.1:0")
    session = daemon.session()
    made = session.call("GetSessionToken", {})["Credentials"]
    ssm = boto3.client(
        "ssm", endpoint_url=session.call("GetStatus", {})["AwsEndpoint"], region_name="eu-west-1",
        aws_access_key_id=made["AccessKeyId"], aws_secret_access_key=made["SecretAccessKey"], aws_session_token=made["SessionToken"],
    )  # fmt: skip
    for number in range(11):
        ssm.put_parameter(Name=f"/b/n{number}", Value=str(number), Type="SecureString")
    env = Env("/b", client=ssm)
    assert [env.int(f"N{number}") for number in range(11)] == list(range(11))
