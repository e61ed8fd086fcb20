"""Commits and tags signed by KMS keys, checked by git and OpenSSH themselves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent


class Repository:
    def __init__(self, folder, socket):
        self.folder = folder
        self.environment = {
            **os.environ, "KMSFS_SOCKET": str(socket), "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_NAME": "A",
            "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@example.org",
        }  # fmt: skip
        self.run("git", "init", "-q")

    def run(self, *words, refused=None):
        done = subprocess.run(words, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False)
        if refused:
            assert done.returncode and refused in done.stderr, done
            return done
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def kmsfs(self, *words, **more):
        return self.run(BIN / "kmsfs", *words, **more)

    def trust(self, line):
        (self.folder / "signers").write_text(f"a@example.org {line}")
        self.run("git", "config", "gpg.ssh.allowedSignersFile", "signers")


@pytest.fixture
def repository(daemon, tmp_path):
    return Repository(tmp_path, daemon.socket)


@pytest.mark.parametrize("spec", ["ECC_NIST_EDWARDS25519", "ECC_NIST_P521", "RSA_2048"])
def test_commits_and_tags_are_signed_and_checked_by_openssh(repository, call, spec):
    key = call("CreateKey", KeySpec=spec, KeyUsage="SIGN_VERIFY")["KeyMetadata"]["KeyId"]
    repository.kmsfs("git-sign", "configure", key)
    repository.trust(repository.kmsfs("git-sign", "public-key", key))
    # Signatures whose numbers have fewer bytes than most come once in a while.
    for number in range(3):
        repository.run("git", "commit", "-q", "--allow-empty", "-m", f"message-{number}")
        assert "Good \"git\" signature for a@example.org" in repository.run("git", "verify-commit", "HEAD")
    repository.run("git", "tag", "-m", "t", "v1")
    assert "Good" in repository.run("git", "verify-tag", "v1")
    # Somebody else's line is not trusted, and what was changed is not good.
    other = call("CreateKey", KeySpec=spec, KeyUsage="SIGN_VERIFY")["KeyMetadata"]["KeyId"]
    repository.trust(repository.kmsfs("git-sign", "public-key", other))
    repository.run("git", "verify-commit", "HEAD", refused="No principal matched")
    commit = repository.run("git", "cat-file", "commit", "HEAD").replace("message-2", "message-X")
    (repository.folder / "changed").write_text(commit)
    changed = repository.run("git", "hash-object", "-t", "commit", "-w", "changed").strip()
    repository.run("git", "verify-commit", changed, refused="ncorrect signature")


def test_what_is_refused(repository, call):
    plain = call("CreateKey")["KeyMetadata"]["KeyId"]
    refused = repository.kmsfs("git-sign", "configure", plain, refused="kmsfs:")
    assert "sign" in refused.stderr
    curve = call("CreateKey", KeySpec="ECC_SECG_P256K1", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["KeyId"]
    repository.kmsfs("git-sign", "configure", curve, refused="ECC_NIST_EDWARDS25519")
    make = lambda: call("CreateKey", KeySpec="ECC_NIST_EDWARDS25519", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["KeyId"]  # noqa: E731
    key, other = make(), make()
    call("CreateAlias", AliasName="alias/git-refused", TargetKeyId=key)
    repository.kmsfs("git-sign", "configure", "alias/git-refused")
    commit = ("git", "commit", "-q", "--allow-empty", "-m", "c")
    repository.run(*commit)
    # The alias points to another key: what git was told would no longer be what signs.
    call("UpdateAlias", AliasName="alias/git-refused", TargetKeyId=other)
    repository.run(*commit, refused="another key than git was set up with")
    call("UpdateAlias", AliasName="alias/git-refused", TargetKeyId=key)
    call("DisableKey", KeyId=key)
    repository.run(*commit, refused="disabled")
    call("EnableKey", KeyId=key)
    repository.run(*commit)
    repository.run("git", "config", "user.signingkey", "key::ssh-ed25519 AAAA")
    repository.run(*commit, refused="no SSH public key")
    repository.run(BIN / "kmsfs-git-sign", "-Y", "sign", "rubbish", refused="is called by git")
    (repository.folder / "elsewhere").mkdir()
    outside = subprocess.run(
        [BIN / "kmsfs", "git-sign", "configure", key], cwd="/", env=repository.environment, capture_output=True, text=True, check=False
    )
    assert outside.returncode == 2 and "--global" in outside.stderr
    repository.kmsfs("git-sign", "configure", key, "--global")
    assert "ssh-ed25519" in (repository.folder / ".gitconfig").read_text()
