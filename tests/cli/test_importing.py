"""Other people's formats: what is read, and what is refused."""

import json
import os
import subprocess
import sys

import pytest

from kmsfs.cli import importing
from kmsfs.cli.importing import read_values
from kmsfs.errors import UsageError

YAML = """
db:
  host: db.example
  port: 5432
  flags: [a, b]
token: |
  two
  lines
on: true
7: seven
when: 2026-11-26
"""


def test_yaml_is_read_as_json_is():
    assert read_values("yaml", YAML) == {
        "db/host": "db.example", "db/port": "5432", "db/flags": '["a", "b"]', "token": "two\nlines\n", "true": "true", "7": "seven",
        "when": '"2026-11-26"',
    }  # fmt: skip


@pytest.mark.parametrize("text", ["a: 1\na: 2", "a: {b: 1, b: 2}", "- a", "just text", "a: [", "!!python/object/apply:os.system ['true']", ""])
def test_yaml_that_is_refused(text):
    with pytest.raises(UsageError):
        read_values("yaml", text)


def test_a_small_file_that_stands_for_a_big_one_is_refused():
    lines = ["a0: &a0 {" + ", ".join(f"k{n}: v" for n in range(10)) + "}"]
    lines += [f"a{level}: &a{level} {{" + ", ".join(f"k{n}: *a{level - 1}" for n in range(10)) + "}" for level in range(1, 9)]
    with pytest.raises(UsageError, match="more than 100000"):
        read_values("yaml", "\n".join(lines))


def test_vault_of_both_versions():
    second = {"request_id": "x", "data": {"data": {"user": "u", "deep": {"n": 1}}, "metadata": {"version": 3}}}
    first = {"request_id": "x", "data": {"user": "u", "data": "plain"}}
    assert read_values("vault", json.dumps(second)) == {"user": "u", "deep/n": "1"}
    assert read_values("vault", json.dumps(first)) == {"user": "u", "data": "plain"}
    for wrong in ("{}", "[]", '{"data": 5}', "rubbish"):
        with pytest.raises(UsageError):
            read_values("vault", wrong)


SEALED = json.dumps({"password": "ENC[AES256_GCM,data:…]", "sops": {"mac": "ENC[…]"}})


@pytest.fixture
def sops(tmp_path, monkeypatch):
    """A program of that name, which says what it was asked."""

    def make(script):
        program = tmp_path / "sops"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return make


def test_sops_decrypts_itself(sops):
    sops('[ "$*" = "decrypt --input-type json --output-type json /dev/stdin" ] && grep -q ENC && echo \'{"password": "s3cret", "deep": {"a": "b"}}\'')
    assert read_values("sops", SEALED) == {"password": "s3cret", "deep/a": "b"}


def test_sops_that_cannot(sops, monkeypatch):
    sops("echo no key for this >&2; exit 128")
    with pytest.raises(UsageError, match="no key for this"):
        read_values("sops", SEALED)
    with pytest.raises(UsageError, match="no `sops` section"):
        read_values("sops", "a: b")
    monkeypatch.setattr(importing.shutil, "which", lambda _: None)
    with pytest.raises(UsageError, match="not installed"):
        read_values("sops", SEALED)


def test_an_unknown_format():
    with pytest.raises(UsageError, match="toml"):
        read_values("toml", "")


def kmsfs(daemon, *words, stdin="", **environment):
    return subprocess.run(
        [sys.executable, "-m", "kmsfs.cli", *words], env={**os.environ, "KMSFS_SOCKET": str(daemon.socket), **environment},
        capture_output=True, text=True, timeout=60, input=stdin,
    )  # fmt: skip


def test_yaml_there_and_back(daemon):
    assert kmsfs(daemon, "param", "import", "/yaml", "--file", "-", "--format", "yaml", stdin=YAML).returncode == 0
    out = kmsfs(daemon, "param", "export", "/yaml", "--format", "yaml").stdout
    assert read_values("yaml", out) == read_values("yaml", YAML)
    assert kmsfs(daemon, "param", "import", "/yaml").returncode == 2
    assert kmsfs(daemon, "param", "import", "/yaml", "--file", "-", "--from-aws", "/x").returncode == 2


def test_from_aws_types_and_all(make_daemon):
    """AWS is a daemon with the door open, which boto3 cannot tell from AWS."""
    theirs = make_daemon("--aws-endpoint", "127.0.0.1:0")
    session = theirs.session()
    for number in range(12):
        session.call("PutParameter", {"Name": f"/prod/deep/n{number}", "Value": f"v{number}", "Type": "String"})
    session.call("PutParameter", {"Name": "/prod/secret", "Value": "s3cret", "Type": "SecureString"})
    session.call("PutParameter", {"Name": "/prod/list", "Value": "a,b", "Type": "StringList"})
    made = session.call("GetSessionToken", {})["Credentials"]
    environment = {
        "AWS_ENDPOINT_URL": session.call("GetStatus", {})["AwsEndpoint"], "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": made["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": made["SecretAccessKey"], "AWS_SESSION_TOKEN": made["SessionToken"],
    }  # fmt: skip
    ours = make_daemon()
    done = kmsfs(ours, "param", "import", "/app", "--from-aws", "/prod", **environment)
    assert done.returncode == 0, done.stderr
    found = {p["Name"]: (p["Type"], p["Value"]) for p in ours.session().call("GetParameters", {"Names": ["/app/secret", "/app/list", "/app/deep/n7"], "WithDecryption": True})["Parameters"]}
    assert found == {"/app/secret": ("SecureString", "s3cret"), "/app/list": ("StringList", "a,b"), "/app/deep/n7": ("String", "v7")}
    refused = kmsfs(ours, "param", "import", "/app", "--from-aws", "/prod", **{**environment, "AWS_SECRET_ACCESS_KEY": "x"})
    assert refused.returncode == 2 and "AWS could not be asked" in refused.stderr and "s3cret" not in refused.stderr
    session.close()
