"""Start, stop, kill, recover: what kmsd promised is still there; what is wrong is said clearly."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from kmsfs import errors


def kmsd(*arguments, **more):
    return subprocess.run([sys.executable, "-m", "kmsd", *arguments], capture_output=True, text=True, **more)


def test_everything_survives_a_restart(fresh_daemon):
    session = fresh_daemon.start().session()
    key = session.call("CreateKey", {"Description": "keep"})["KeyMetadata"]["KeyId"]
    session.call("CreateAlias", {"AliasName": "alias/keep", "TargetKeyId": key})
    session.call("RotateKeyOnDemand", {"KeyId": key})
    blob = session.call("Encrypt", {"KeyId": "alias/keep", "Plaintext": b"x"})["CiphertextBlob"]
    session.call("PutParameter", {"Name": "/a", "Value": "v", "Type": "SecureString", "Tier": "Advanced"})
    who = session.call("GetStatus", {})["Principal"]
    grant = {"KeyId": key, "GranteePrincipal": who, "Operations": ["Decrypt"]}
    grant_id = session.call("CreateGrant", grant)["GrantId"]
    fresh_daemon.stop()
    session = fresh_daemon.start().session()
    assert session.call("Decrypt", {"CiphertextBlob": blob})["Plaintext"] == b"x"
    assert session.call("GetParameter", {"Name": "/a", "WithDecryption": True})["Parameter"]["Value"] == "v"
    assert session.call("ListGrants", {"KeyId": key})["Grants"][0]["GrantId"] == grant_id
    fresh_daemon.stop()
    state = b"".join(p.read_bytes() for p in fresh_daemon.state.glob("state.db*"))
    assert b"alias/keep" not in state and b"keep" not in state


def test_kill_9_during_puts_loses_nothing_acknowledged(fresh_daemon):
    fresh_daemon.start()
    for round_number in range(3):
        acknowledged = []

        def storm(number, into=acknowledged, tag=round_number):
            session = fresh_daemon.session()
            for n in range(1000):
                try:
                    session.call("PutParameter", {"Name": f"/r{tag}/t{number}/n{n}", "Value": str(n), "Type": "String"})
                except errors.KmsfsError:
                    return
                into.append((f"/r{tag}/t{number}/n{n}", str(n)))

        threads = [threading.Thread(target=storm, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.6)
        fresh_daemon.stop(signal.SIGKILL)
        for thread in threads:
            thread.join()
        session = fresh_daemon.start().session()
        assert acknowledged
        for name, value in acknowledged:
            assert session.call("GetParameter", {"Name": name})["Parameter"]["Value"] == value


def test_recovery_code_and_audit_key_are_shown_once_and_work(fresh_daemon):
    shown = json.loads(fresh_daemon.init_output)
    fresh_daemon.start().session().call("CreateKey", {"Description": "x"})
    fresh_daemon.stop()
    (fresh_daemon.state / "root.key").unlink()
    failed = kmsd("serve", "--state", str(fresh_daemon.state), "--socket", str(fresh_daemon.socket))
    assert failed.returncode == errors.ExitCode.SEALED and "recovery code" in failed.stderr
    wrong = kmsd("recover", "--state", str(fresh_daemon.state), input=shown["recovery_code"][:-1] + "\n")
    assert wrong.returncode == errors.ExitCode.SEALED
    assert kmsd("recover", "--state", str(fresh_daemon.state), input=shown["recovery_code"] + "\n").returncode == 0
    session = fresh_daemon.start().session()
    assert len(session.call("ListKeys", {})["Keys"]) == 1
    fresh_daemon.stop()
    log = fresh_daemon.state / "audit" / "audit.jsonl"
    verified = kmsd("verify-audit", str(log), "--key-file", "-", input=shown["audit_verification_key"] + "\n")
    assert verified.returncode == 0 and "chain unbroken" in verified.stdout
    log.write_bytes(log.read_bytes().replace(b'"op":"CreateKey"', b'"op":"ListKeys"', 1))
    assert kmsd("verify-audit", str(log), "--key-file", "-", input=shown["audit_verification_key"] + "\n").returncode == 20


def test_root_key_that_is_wrong_or_readable_by_others(fresh_daemon):
    keyfile = fresh_daemon.state / "root.key"
    keyfile.chmod(0o644)
    assert "only its owner" in kmsd("serve", "--state", str(fresh_daemon.state)).stderr
    keyfile.chmod(0o600)
    keyfile.write_bytes(os.urandom(32))
    failed = kmsd("serve", "--state", str(fresh_daemon.state))
    assert failed.returncode == errors.ExitCode.SEALED and "does not open the keyring" in failed.stderr
    keyfile.write_bytes(b"short")
    assert "32 bytes" in kmsd("serve", "--state", str(fresh_daemon.state)).stderr


def test_passphrase_source(tmp_path):
    phrase = tmp_path / "phrase"
    phrase.write_text("correct horse battery\n")
    phrase.chmod(0o600)
    state = str(tmp_path / "s")
    made = kmsd("init", "--state", state, "--source", "passphrase", "--passphrase-file", str(phrase))
    assert made.returncode == 0, made.stderr
    phrase.write_text("wrong horse battery\n")
    failed = kmsd("serve", "--state", state, "--passphrase-file", str(phrase), "--socket", str(tmp_path / "x.sock"))
    assert failed.returncode == errors.ExitCode.SEALED
    assert kmsd("serve", "--state", state).returncode == errors.ExitCode.SEALED
    assert kmsd("init", "--state", str(tmp_path / "t"), "--source", "passphrase", "--passphrase-file", "-", input="x\n").returncode == 32


def test_systemd_credential_source(tmp_path):
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "kmsfs-root").write_bytes(os.urandom(32))
    (credentials / "kmsfs-root").chmod(0o400)
    environment = {**os.environ, "CREDENTIALS_DIRECTORY": str(credentials)}
    state = str(tmp_path / "s")
    assert kmsd("init", "--state", state, "--source", "credential", env=environment).returncode == 0
    assert not (tmp_path / "s" / "root.key").exists()
    assert "LoadCredential" in kmsd("serve", "--state", state).stderr


def test_a_second_init_and_a_missing_realm_are_refused(fresh_daemon, tmp_path):
    assert fresh_daemon.init().returncode == errors.ExitCode.CONFLICT
    assert kmsd("serve", "--state", str(tmp_path / "none")).returncode == errors.ExitCode.USAGE


def test_a_rolled_back_state_is_refused(fresh_daemon, tmp_path):
    fresh_daemon.start().session().call("CreateKey", {})
    fresh_daemon.stop()
    shutil.copytree(fresh_daemon.state, tmp_path / "old")
    fresh_daemon.start().session().call("CreateKey", {})
    fresh_daemon.stop()
    shutil.rmtree(fresh_daemon.state)
    shutil.copytree(tmp_path / "old", fresh_daemon.state)
    failed = kmsd("serve", "--state", str(fresh_daemon.state), "--socket", str(fresh_daemon.socket))
    assert failed.returncode == errors.ExitCode.INTEGRITY and "older" in failed.stderr
    fresh_daemon.start("--accept-rollback")


def test_a_second_daemon_on_the_same_socket_is_refused(fresh_daemon):
    fresh_daemon.start()
    failed = kmsd("serve", "--state", str(fresh_daemon.state), "--socket", str(fresh_daemon.socket))
    assert failed.returncode != 0 and "another process uses the state" in failed.stderr
    assert fresh_daemon.answers()


@pytest.mark.root
def test_without_an_audit_log_nothing_is_answered(fresh_daemon, tmp_path):
    """The audit folder on a full disk: every call is refused, DisableKey and status stay."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", fresh_daemon.state / "audit"], check=True)
    try:
        shutil.rmtree(fresh_daemon.state / "audit", ignore_errors=True)
        for name in ("state.db", "keyring.kms", "root.key"):
            (fresh_daemon.state / name).unlink()
        assert fresh_daemon.init().returncode == 0
        session = fresh_daemon.start().session()
        key = session.call("CreateKey", {})["KeyMetadata"]["KeyId"]
        with pytest.raises(errors.AuditUnavailable, match="audit log"):
            for _ in range(1000):
                session.call("Encrypt", {"KeyId": key, "Plaintext": b"x"})
        with pytest.raises(errors.AuditUnavailable):
            session.call("CreateKey", {})
        session.call("GetStatus", {})
        session.call("DisableKey", {"KeyId": key})
        subprocess.run(["mount", "-o", "remount,size=4m", fresh_daemon.state / "audit"], check=True)
        assert session.call("DescribeKey", {"KeyId": key})["KeyMetadata"]["KeyState"] == "Disabled"
        fresh_daemon.stop()
        fresh_daemon.start()
    finally:
        fresh_daemon.stop(signal.SIGKILL)
        subprocess.run(["umount", "-l", fresh_daemon.state / "audit"], check=False)


def test_secrets_stay_out_of_log_and_audit(fresh_daemon):
    session = fresh_daemon.start().session()
    key = session.call("CreateKey", {})["KeyMetadata"]["KeyId"]
    made = session.call("GenerateDataKey", {"KeyId": key, "KeySpec": "AES_256", "EncryptionContext": {"who": "me"}})
    session.call("Encrypt", {"KeyId": key, "Plaintext": b"TOPSECRETVALUE"})
    session.call("PutParameter", {"Name": "/s", "Value": "TOPSECRETVALUE", "Type": "SecureString"})
    session.call("GetParameter", {"Name": "/s", "WithDecryption": True})
    fresh_daemon.stop()
    audit = (fresh_daemon.state / "audit" / "audit.jsonl").read_text()
    assert "TOPSECRET" not in audit and made["Plaintext"].hex() not in audit
    records = [json.loads(line) for line in audit.splitlines()]
    [record] = [r for r in records if r["op"] == "GenerateDataKey" and r.get("ec") == {"who": "me"}]
    assert record["uid"] == os.getuid() and record["key"].endswith(key) and record["by"].startswith("policy:")


def test_one_state_has_one_daemon(make_daemon, tmp_path):
    daemon = make_daemon()
    second = subprocess.run(
        [sys.executable, "-m", "kmsd", "serve", "--state", str(daemon.state), "--socket", str(tmp_path / "other"), "--private"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert second.returncode == 12 and str(daemon.process.pid) in second.stderr
    assert daemon.session().call("ListKeys", {})["Keys"] == []
    daemon.stop(9)
    daemon.start()


def test_a_private_daemon_is_found_from_another_runtime_directory(tmp_path):
    def kmsfs(runtime, *words):
        (tmp_path / runtime).mkdir(mode=0o700, exist_ok=True)
        environment = {
            **{k: v for k, v in os.environ.items() if k != "KMSFS_SOCKET"},
            "XDG_STATE_HOME": str(tmp_path / "state"), "XDG_RUNTIME_DIR": str(tmp_path / runtime),
        }  # fmt: skip
        return subprocess.run([sys.executable, "-m", "kmsfs.cli", *words], env=environment, capture_output=True, text=True, check=False)

    made = kmsfs("one", "key", "create")
    assert made.returncode == 0 and "recovery code" in made.stderr
    found = kmsfs("two", "key", "list", "--json")
    assert found.returncode == 0 and made.stdout.strip() in found.stdout and "started" not in found.stderr
    assert kmsfs("one", "daemon", "stop").returncode == 0


def test_a_broken_audit_log_has_a_way_out(make_daemon):
    daemon = make_daemon()
    key = daemon.session().call("CreateKey", {})["KeyMetadata"]["KeyId"]
    daemon.stop(9)
    log = daemon.state / "audit" / "audit.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:-1]) + lines[-1].replace('"ok"', '"no"'))
    with pytest.raises(RuntimeError, match="restart-audit"):
        daemon.start()
    command = [sys.executable, "-m", "kmsd", "restart-audit", "--state", str(daemon.state)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2
    done = subprocess.run([*command, "--yes"], capture_output=True, text=True, check=True)
    verification_key = done.stdout.split()[-1]
    daemon.start()
    assert daemon.session().call("DescribeKey", {"KeyId": key})["KeyMetadata"]["KeyState"] == "Enabled"
    daemon.stop()
    first = json.loads(log.read_text().splitlines()[0])
    kept = log.with_name(first["params"]["old_log"])
    assert first["op"] == "AuditRestarted" and hashlib.sha256(kept.read_bytes()).hexdigest() == first["params"]["old_sha256"]
    verify = [sys.executable, "-m", "kmsd", "verify-audit", str(log), "--key-file", "-"]
    assert "chain unbroken" in subprocess.run(verify, input=verification_key, capture_output=True, text=True, check=True).stdout
    daemon.start()
    busy = subprocess.run([*command, "--yes"], capture_output=True, text=True, check=False)
    assert busy.returncode == 12


def test_last_use_and_dependents(fresh_daemon):
    session = fresh_daemon.start().session()
    call = lambda operation, **parameters: session.call(operation, parameters)  # noqa: E731
    key, other = (call("CreateKey")["KeyMetadata"]["KeyId"] for _ in range(2))
    assert "KeyLastUsage" not in call("GetKeyLastUsage", KeyId=key)
    blob = call("Encrypt", KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    assert call("GetKeyLastUsage", KeyId=key)["KeyLastUsage"]["Operation"] == "Encrypt"
    with pytest.raises(errors.InvalidCiphertext):
        call("Decrypt", CiphertextBlob=blob, EncryptionContext={"a": "b"})
    assert call("GetKeyLastUsage", KeyId=key)["KeyLastUsage"]["Operation"] == "Encrypt"  # only what succeeded
    call("ReEncrypt", CiphertextBlob=blob, DestinationKeyId=other)
    assert {call("GetKeyLastUsage", KeyId=k)["KeyLastUsage"]["Operation"] for k in (key, other)} == {"ReEncrypt"}
    call("DecryptBatch", Items=[{"CiphertextBlob": blob}])
    used = call("GetKeyLastUsage", KeyId=key)
    assert used["KeyLastUsage"]["Operation"] == "Decrypt" and used["TrackingStartDate"] <= used["KeyCreationDate"]
    call("CreateAlias", AliasName="alias/dep", TargetKeyId=key)
    call("PutParameter", Name="/dep", Value="x", Type="SecureString", KeyId="alias/dep")
    call("CreateSecret", Name="dep", SecretString="x", KmsKeyId=key)
    call("OpenVolumeSession", KeyId=key, VolumeId="ab" * 16)
    found = call("ListKeyDependents", KeyId=key)
    assert (found["Aliases"], found["Volumes"]) == (["alias/dep"], ["ab" * 16])
    assert (found["Parameters"], found["Secrets"], found["Grants"]) == (1, 1, 0)
    session.close()
    fresh_daemon.stop()
    after = fresh_daemon.start().session()
    assert after.call("GetKeyLastUsage", {"KeyId": key})["KeyLastUsage"]["Operation"] == "GenerateDataKey"
    assert after.call("GetKeyLastUsage", {"KeyId": key})["TrackingStartDate"] == used["TrackingStartDate"]
