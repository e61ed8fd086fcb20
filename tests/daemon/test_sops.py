"""SOPS itself, the Go program, through the AWS door: what it encrypts our key policies decide about."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from conftest import DaemonProcess

ACCOUNT = "111122223333"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    made = DaemonProcess(tmp_path_factory.mktemp("sops"), "--aws-endpoint", "127.0.0.1:0")
    assert made.init("--account", ACCOUNT).returncode == 0
    made.start()
    made.call = lambda operation, **parameters: made.session().call(operation, parameters)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def environment(served):
    """What `kmsfs aws env` prints, and nothing of this machine's own AWS settings."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "SOPS_"))}
    printed = subprocess.run(
        [sys.executable, "-m", "kmsfs.cli", "aws", "env"], env={**settings, "KMSFS_SOCKET": str(served.socket)},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    settings |= dict(line.removeprefix("export ").split("=", 1) for line in printed.splitlines())
    return settings


@pytest.fixture
def sops(environment):
    program = shutil.which("sops", path=os.path.dirname(sys.executable))
    assert program, "the test extra brings sops"

    def run(*words, check=True, **options):
        done = subprocess.run([program, *map(str, words)], env=environment, capture_output=True, text=True, timeout=60, **options)
        assert not check or done.returncode == 0, done.stderr
        return done

    return run


def arn(key_id):
    return f"arn:aws:kms:us-east-1:{ACCOUNT}:key/{key_id}"


def test_a_file_goes_round(served, sops, tmp_path):
    key = served.call("CreateKey")["KeyMetadata"]["KeyId"]
    plain, sealed = tmp_path / "app.yaml", tmp_path / "app.enc.yaml"
    plain.write_text("db:\n    password: hunter2\n    port: 5432\n")
    sealed.write_text(sops("encrypt", "--kms", arn(key), plain).stdout)
    assert "hunter2" not in sealed.read_text() and arn(key) in sealed.read_text()
    assert sops("decrypt", sealed).stdout == plain.read_text()
    assert sops("decrypt", "--extract", '["db"]["password"]', sealed).stdout == "hunter2"
    sops("set", sealed, '["db"]["password"]', '"correct horse"')
    before = sealed.read_text()
    sops("rotate", "--in-place", sealed)
    assert sealed.read_text() != before
    assert json.loads(sops("decrypt", "--output-type", "json", sealed).stdout) == {"db": {"password": "correct horse", "port": 5432}}
    # After the KMS key was rotated too: old files open, and so do new ones.
    served.call("RotateKeyOnDemand", KeyId=key)
    assert "correct horse" in sops("decrypt", sealed).stdout
    sops("rotate", "--in-place", sealed)
    assert "correct horse" in sops("decrypt", sealed).stdout


def test_creation_rules_with_an_alias_and_exec(served, sops, tmp_path):
    key = served.call("CreateKey")["KeyMetadata"]["KeyId"]
    served.call("CreateAlias", AliasName="alias/sops", TargetKeyId=key)
    (tmp_path / ".sops.yaml").write_text(f"creation_rules:\n  - kms: arn:aws:kms:us-east-1:{ACCOUNT}:alias/sops\n")
    sealed = tmp_path / "secrets.env"
    sealed.write_text("PASSWORD=hunter2\n")
    sops("encrypt", "--in-place", sealed, cwd=tmp_path)
    assert "hunter2" not in sealed.read_text()
    assert sops("exec-env", sealed, "echo got $PASSWORD", cwd=tmp_path).stdout == "got hunter2\n"


def test_the_keys_policy_and_state_decide(served, sops, tmp_path):
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Principal": {"AWS": f"arn:kmsfs:iam::{ACCOUNT}:root"}, "Action": "kms:*", "Resource": "*"},
            {"Effect": "Deny", "Principal": "*", "Action": "kms:Decrypt", "Resource": "*",
             "Condition": {"StringEquals": {"kms:EncryptionContext:app": "payroll"}}},
        ],
    }  # fmt: skip
    key = served.call("CreateKey", Policy=json.dumps(policy))["KeyMetadata"]["KeyId"]
    plain = tmp_path / "x.json"
    plain.write_text('{"a": "secret"}')
    sealed = {}
    for app in ("payroll", "web"):
        sealed[app] = tmp_path / f"{app}.json"
        sealed[app].write_text(sops("encrypt", "--kms", arn(key), "--encryption-context", f"app:{app}", plain).stdout)
    assert json.loads(sops("decrypt", sealed["web"]).stdout) == {"a": "secret"}
    refused = sops("decrypt", sealed["payroll"], check=False)
    assert refused.returncode and "AccessDeniedException" in refused.stderr
    # A file that says another context than its own is not opened either.
    sealed["payroll"].write_text(sealed["payroll"].read_text().replace('"payroll"', '"web"'))
    assert "InvalidCiphertextException" in sops("decrypt", sealed["payroll"], check=False).stderr
    served.call("DisableKey", KeyId=key)
    assert "DisabledException" in sops("decrypt", sealed["web"], check=False).stderr
    served.call("EnableKey", KeyId=key)
    assert json.loads(sops("decrypt", sealed["web"]).stdout) == {"a": "secret"}


def test_param_import_takes_a_file_of_sops(served, sops, environment, tmp_path):
    key = served.call("CreateKey")["KeyMetadata"]["KeyId"]
    plain, sealed = tmp_path / "c.yaml", tmp_path / "c.enc.yaml"
    plain.write_text("db:\n    password: hunter2\n")
    sealed.write_text(sops("encrypt", "--kms", arn(key), plain).stdout)
    path = f"{os.path.dirname(sys.executable)}:{environment['PATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "kmsfs.cli", "param", "import", "/from/sops", "--file", str(sealed), "--format", "sops"],
        env={**environment, "KMSFS_SOCKET": str(served.socket), "PATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert served.call("GetParameter", Name="/from/sops/db/password", WithDecryption=True)["Parameter"]["Value"] == "hunter2"


def test_one_file_for_a_kms_key_and_an_age_key(served, sops, environment, tmp_path):
    """Whoever has lost one of the two opens it with the other."""
    identity = tmp_path / "age.key"
    subprocess.run(["age-keygen", "-o", identity], check=True, capture_output=True)
    recipient = next(line.split(": ")[1] for line in identity.read_text().splitlines() if "public key" in line)
    key = served.call("CreateKey")["KeyMetadata"]["KeyId"]
    plain, sealed = tmp_path / "b.yaml", tmp_path / "b.enc.yaml"
    plain.write_text("a: both\n")
    sealed.write_text(sops("encrypt", "--kms", arn(key), "--age", recipient, plain).stdout)
    assert sops("decrypt", sealed).stdout == "a: both\n"
    served.call("DisableKey", KeyId=key)
    assert sops("decrypt", sealed, check=False).returncode
    environment["SOPS_AGE_KEY_FILE"] = str(identity)
    try:
        assert sops("decrypt", sealed).stdout == "a: both\n"
    finally:
        del environment["SOPS_AGE_KEY_FILE"]
