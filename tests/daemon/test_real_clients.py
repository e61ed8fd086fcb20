"""Programs and libraries made for AWS, unchanged, with plain AWS settings: each does its ordinary work against the door."""

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import boto3
import pytest

BIN = Path(sys.executable).parent
SDK = Path(sys.prefix) / "js"
"""Where `.ci/run` puts Amazon's JavaScript SDK."""
COLLECTIONS = Path(sys.prefix) / "ansible"
"""Where it puts Ansible's modules for AWS."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    from conftest import DaemonProcess

    daemon = DaemonProcess(tmp_path_factory.mktemp("kmsd"), "--aws-endpoint", "127.0.0.1:0")
    assert daemon.init().returncode == 0
    daemon.start()
    session = daemon.session()
    made = session.call("GetSessionToken", {})["Credentials"]
    yield {
        **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
        "AWS_ENDPOINT_URL": session.call("GetStatus", {})["AwsEndpoint"], "AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": made["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": made["SecretAccessKey"],
        "AWS_SESSION_TOKEN": made["SessionToken"], "AWS_EC2_METADATA_DISABLED": "true", "AWS_PAGER": "",
    }  # fmt: skip
    daemon.stop()


@pytest.fixture
def settings(environment, monkeypatch):
    """The same settings for libraries in this process; sessions made before know them not."""
    for name, value in environment.items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    return environment


@pytest.fixture
def aws(environment, tmp_path):
    def run(*arguments, refused=None):
        done = subprocess.run(
            [BIN / "aws", *arguments, "--output", "json"], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        if refused:
            assert done.returncode == 255 and f"({refused})" in done.stderr, done
            return None
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if done.stdout.strip() else None

    return run


def test_the_aws_cli_with_keys(aws, tmp_path):
    key = aws("kms", "create-key", "--description", "cli", "--tags", "TagKey=team,TagValue=blue")["KeyMetadata"]
    aws("kms", "create-alias", "--alias-name", "alias/cli", "--target-key-id", key["KeyId"])
    (tmp_path / "plain").write_bytes(b"\0only copy")
    sealed = aws("kms", "encrypt", "--key-id", "alias/cli", "--plaintext", "fileb://plain", "--encryption-context", "a=b")
    (tmp_path / "sealed").write_bytes(base64.b64decode(sealed["CiphertextBlob"]))
    blob = ["--ciphertext-blob", "fileb://sealed"]
    opened = aws("kms", "decrypt", *blob, "--encryption-context", "a=b", "--query", "Plaintext")
    assert base64.b64decode(opened) == b"\0only copy"
    aws("kms", "decrypt", *blob, "--encryption-context", "a=c", refused="InvalidCiphertextException")
    aws("kms", "enable-key-rotation", "--key-id", key["KeyId"], "--rotation-period-in-days", "90")
    assert aws("kms", "get-key-rotation-status", "--key-id", key["KeyId"])["RotationPeriodInDays"] == 90
    assert aws("kms", "list-resource-tags", "--key-id", key["KeyId"])["Tags"] == [{"TagKey": "team", "TagValue": "blue"}]
    assert aws("kms", "get-key-last-usage", "--key-id", key["KeyId"])["KeyLastUsage"]["Operation"] == "Decrypt"
    aws("kms", "disable-key", "--key-id", key["KeyId"])
    aws("kms", "decrypt", *blob, "--encryption-context", "a=b", refused="DisabledException")


def test_the_aws_cli_with_parameters_secrets_and_identities(aws):
    for number in range(12):
        aws("ssm", "put-parameter", "--name", f"/cli/{number}", "--value", f"v{number}", "--type", "SecureString")
    tree = aws("ssm", "get-parameters-by-path", "--path", "/cli", "--recursive", "--with-decryption", "--page-size", "5")
    assert {p["Name"]: p["Value"] for p in tree["Parameters"]} == {f"/cli/{n}": f"v{n}" for n in range(12)}
    aws("ssm", "get-parameter", "--name", "/cli/none", refused="ParameterNotFound")
    made = aws("secretsmanager", "create-secret", "--name", "cli", "--secret-string", '{"user": "u"}')
    aws("secretsmanager", "put-secret-value", "--secret-id", made["ARN"], "--secret-string", "next")
    assert aws("secretsmanager", "get-secret-value", "--secret-id", "cli")["SecretString"] == "next"
    previous = aws("secretsmanager", "get-secret-value", "--secret-id", "cli", "--version-stage", "AWSPREVIOUS")
    assert previous["SecretString"] == '{"user": "u"}'
    aws("iam", "create-user", "--user-name", "cli")
    assert [u["UserName"] for u in aws("iam", "list-users")["Users"]] == ["cli"]
    assert aws("sts", "get-caller-identity")["Arn"].startswith("arn:aws:iam::")


def test_powertools_parameters(settings):
    from aws_lambda_powertools.utilities import parameters

    boto3.client("ssm").put_parameter(Name="/tools/db/password", Value="s3cret", Type="SecureString")
    parameters.set_parameter(name="/tools/db/user", value="app")
    boto3.client("secretsmanager").create_secret(Name="tools", SecretString='{"a": 1}')
    assert parameters.get_parameter("/tools/db/password", decrypt=True) == "s3cret"
    assert parameters.get_parameters("/tools", recursive=True, decrypt=True) == {"db/password": "s3cret", "db/user": "app"}
    assert parameters.get_secret("tools", transform="json") == {"a": 1}


def test_ssm_cache(settings):
    from ssm_cache import SSMParameterGroup

    boto3.client("ssm").put_parameter(Name="/cached/one", Value="1", Type="SecureString")
    boto3.client("ssm").put_parameter(Name="/cached/two", Value="a,b", Type="StringList")
    group = SSMParameterGroup(base_path="/cached", max_age=300)
    assert (group.parameter("/one").value, group.parameter("/two").value) == ("1", ["a", "b"])


def test_secretsmanager_caching(settings):
    from aws_secretsmanager_caching import SecretCache

    client = boto3.client("secretsmanager")
    client.create_secret(Name="cached", SecretString="held")
    assert SecretCache(client=client).get_secret_string("cached") == "held"


def test_pydantic_settings(settings):
    from pydantic import SecretStr
    from pydantic_settings import AWSSecretsManagerSettingsSource, BaseSettings

    boto3.client("secretsmanager").create_secret(Name="app", SecretString='{"password": "s3cret", "port": "5432"}')

    class App(BaseSettings):
        password: SecretStr
        port: int

        @classmethod
        def settings_customise_sources(cls, settings_cls, **_sources):
            return (AWSSecretsManagerSettingsSource(settings_cls, "app"),)

    assert (App().password.get_secret_value(), App().port) == ("s3cret", 5432)


SCRIPT = """
import { KMSClient, CreateKeyCommand, EncryptCommand, DecryptCommand, GenerateDataKeyCommand, SignCommand, VerifyCommand,
         paginateListKeys } from "@aws-sdk/client-kms";
import { SSMClient, PutParameterCommand, GetParameterCommand, paginateGetParametersByPath } from "@aws-sdk/client-ssm";
const kms = new KMSClient({}), ssm = new SSMClient({});
const key = (await kms.send(new CreateKeyCommand({Description: "js"}))).KeyMetadata;
const sealed = await kms.send(new EncryptCommand({KeyId: key.KeyId, Plaintext: Buffer.from("only copy"), EncryptionContext: {a: "b"}}));
const opened = await kms.send(new DecryptCommand({CiphertextBlob: sealed.CiphertextBlob, EncryptionContext: {a: "b"}}));
let refused = "";
try { await kms.send(new DecryptCommand({CiphertextBlob: sealed.CiphertextBlob})); } catch (error) { refused = error.name; }
const data = await kms.send(new GenerateDataKeyCommand({KeyId: key.Arn, KeySpec: "AES_256"}));
const signer = (await kms.send(new CreateKeyCommand({KeySpec: "ECC_NIST_P256", KeyUsage: "SIGN_VERIFY"}))).KeyMetadata;
const what = {KeyId: signer.KeyId, Message: Buffer.from("m"), SigningAlgorithm: "ECDSA_SHA_256"};
const signature = (await kms.send(new SignCommand(what))).Signature;
const valid = (await kms.send(new VerifyCommand({...what, Signature: signature}))).SignatureValid;
let keys = 0;
for await (const page of paginateListKeys({client: kms, pageSize: 1}, {})) keys += page.Keys.length;
for (let n = 0; n < 12; n++)
  await ssm.send(new PutParameterCommand({Name: `/js/p${n}`, Value: `v${n}`, Type: "SecureString"}));
const one = (await ssm.send(new GetParameterCommand({Name: "/js/p3", WithDecryption: true}))).Parameter;
const names = [];
for await (const page of paginateGetParametersByPath({client: ssm}, {Path: "/js", WithDecryption: true}))
  names.push(...page.Parameters.map(p => p.Value));
console.log(JSON.stringify({plain: Buffer.from(opened.Plaintext).toString(), refused, bytes: data.Plaintext.length, valid,
  keys, created: key.CreationDate instanceof Date, value: one.Value, modified: one.LastModifiedDate instanceof Date, names: names.length}));
"""


def node_is_new_enough():
    """The SDK wants node 20; Debian 12 has 18."""
    try:
        return int(subprocess.run(["node", "--version"], capture_output=True, text=True).stdout.lstrip("v").split(".")[0]) >= 20
    except (OSError, ValueError):
        return False


@pytest.mark.skipif(not (SDK / "node_modules").is_dir(), reason=f"no JavaScript SDK in {SDK}: .ci/run installs it")
@pytest.mark.skipif(not node_is_new_enough(), reason="the JavaScript SDK wants node 20")
def test_the_javascript_sdk(environment, tmp_path):
    (tmp_path / "work.mjs").write_text(SCRIPT)
    (tmp_path / "node_modules").symlink_to(SDK / "node_modules")
    done = subprocess.run(["node", "work.mjs"], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("keys") >= 2
    assert found == {
        "plain": "only copy", "refused": "InvalidCiphertextException", "bytes": 32, "valid": True, "created": True, "value": "v3",
        "modified": True, "names": 12,
    }  # fmt: skip


@pytest.mark.skipif(not COLLECTIONS.is_dir(), reason=f"no collections in {COLLECTIONS}: .ci/run fetches them")
def test_ansible_changes_what_differs_and_nothing_else(environment, tmp_path):
    variables = {
        **environment, "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_HOME": str(tmp_path), "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_LOCALHOST_WARNING": "false", "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
    }  # fmt: skip
    command = [BIN / "ansible-playbook", "-i", "localhost,", Path(__file__).with_name("playbook.yml")]
    done = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    results = re.findall(r"^TASK \[.*: (\w+)\] \**\n(?:.*\n)*?(\w+): \[localhost\]", done.stdout, re.MULTILINE)
    assert len(results) == 32 and all(wanted == was for wanted, was in results), done.stdout
