"""Files encrypted and decrypted by age itself, under KMS keys."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsfs.errors import ShapeError
from kmsfs.formats import bech32
from kmsfs.formats.stanza import Stanza, read_stanza
from support.peers import as_user

BIN = Path(sys.executable).parent


@pytest.fixture
def run(daemon, tmp_path):
    environment = {**os.environ, "KMSFS_SOCKET": str(daemon.socket), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}

    def run(*words, input=b"", refused=None):
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, input=input, check=False, timeout=60)
        if refused:
            assert done.returncode and refused in done.stderr.decode(), done
            return b""
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_age_encrypts_by_a_key_and_who_may_decrypts(run, call, daemon, tmp_path):
    first, second = (call("CreateKey")["KeyMetadata"]["KeyId"] for _ in range(2))
    call("CreateAlias", AliasName="alias/age-test", TargetKeyId=first)
    to_first = run("kmsfs", "age", "recipient", "alias/age-test").decode().strip()
    to_second = run("kmsfs", "age", "recipient", second).decode().strip()
    text = os.urandom(200_000)
    (tmp_path / "x.age").write_bytes(run("age", "-r", to_first, "-r", to_second, input=text))
    assert run("age", "-d", "-j", "kmsfs", "x.age") == text
    # Either key opens it; without both, nobody does.
    call("DisableKey", KeyId=first)
    assert run("age", "-d", "-j", "kmsfs", "x.age") == text
    call("DisableKey", KeyId=second)
    run("age", "-d", "-j", "kmsfs", "x.age", refused="disabled")
    run("age", "-r", to_first, input=text, refused="disabled")
    call("EnableKey", KeyId=first)
    (tmp_path / "identity").write_text(f"# kmsfs\n{bech32.encode('age-plugin-kmsfs-', b'').upper()}\n")
    assert run("age", "-d", "-i", "identity", "x.age") == text
    # Under its own context: what is wrapped for age opens for nothing else.
    body = (tmp_path / "x.age").read_bytes()
    assert b"-> kmsfs\n" in body
    with as_user(daemon, 4322) as other:
        with pytest.raises(Exception, match="not authorized|InvalidCiphertext"):
            other("Decrypt", CiphertextBlob=read_stanza(io.BytesIO(body.split(b"\n", 1)[1]).readline).body, EncryptionContext={"kmsfs:age": "v1"})
    # With age's own recipients beside it.
    key = subprocess.run(["age-keygen"], capture_output=True, text=True, check=True).stdout
    (tmp_path / "age.key").write_text(key)
    public = next(line.split()[-1] for line in key.splitlines() if "public key" in line)
    (tmp_path / "both.age").write_bytes(run("age", "-r", to_first, "-r", public, input=text))
    assert run("age", "-d", "-i", "age.key", "both.age") == text == run("age", "-d", "-j", "kmsfs", "both.age")


def test_what_is_refused(run, call):
    missing = bech32.encode("age1kmsfs", b"alias/age-missing")
    run("age", "-r", missing, input=b"x", refused="age-missing")
    run("age-plugin-kmsfs", refused="is started by age")
    run("age-plugin-kmsfs", "--age-plugin=rubbish-v9", refused="is started by age")
    run("age-plugin-kmsfs", "--age-plugin=identity-v1", input=b"rubbish\n", refused="no stanza")
    run("age-plugin-kmsfs", "--age-plugin=identity-v1", refused="ended the conversation early")
    talk = lambda *stanzas: b"".join(stanza.encode() for stanza in stanzas)  # noqa: E731
    done, ok = Stanza("done"), Stanza("ok")
    newer = bech32.encode("age-plugin-kmsfs-", b"2").upper()
    said = run("age-plugin-kmsfs", "--age-plugin=identity-v1", input=talk(Stanza("add-identity", (newer,)), Stanza("grease", ("x",), b"y"), done, ok))
    assert said.startswith(b"-> error identity 0\n") and said.endswith(b"-> done\n\n")
    said = run("age-plugin-kmsfs", "--age-plugin=recipient-v1", input=talk(Stanza("add-recipient", ("age1rubbish",)), done, ok))
    assert said.startswith(b"-> error recipient 0\n")
    any_identity = bech32.encode("age-plugin-kmsfs-", b"").upper()
    said = run("age-plugin-kmsfs", "--age-plugin=recipient-v1", input=talk(Stanza("add-identity", (any_identity,)), done, ok))
    assert said.startswith(b"-> error identity 0\n")


@given(st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=20), st.binary(max_size=200), st.data())
def test_bech32(prefix, data, draw):
    text = bech32.encode(prefix, data)
    assert bech32.decode(text) == (prefix, data) == bech32.decode(text.upper())
    place = draw.draw(st.integers(len(prefix) + 1, len(text) - 1))
    with pytest.raises(ShapeError):
        bech32.decode(text[:place] + ("q" if text[place] != "q" else "p") + text[place + 1 :])
    with pytest.raises(ShapeError):
        bech32.decode(text[:-1].upper() + text[-1] if text[-1].isalpha() else text.capitalize())


def test_bech32_of_the_standard():
    # BIP-173, test vectors; age's specification, an X25519 identity's prefix.
    for good in ("A12UEL5L", "abcdef1qpzry9x8gf2tvdw0s3jn54khce6mua7lmqqqxw", "11qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqc8247j"):
        try:
            prefix, data = bech32.decode(good)
        except ShapeError as error:
            assert "left over" in error.detail
        else:
            assert bech32.encode(prefix, data) == good.lower()
    for bad in ("pzry9x0s0muk", "1pzry9x0s0muk", "x1b4n0q5v", "li1dgmt3", "A1G7SGD8", "10a06t8", "1qzzfhee", ""):
        with pytest.raises(ShapeError):
            bech32.decode(bad)


@given(st.lists(st.text("abc-123", min_size=1, max_size=5), min_size=1, max_size=4), st.binary(max_size=300))
def test_stanzas(words, body):
    stanza = Stanza(words[0], tuple(words[1:]), body)
    stream = io.BytesIO(stanza.encode() + b"rest")
    assert read_stanza(stream.readline) == stanza and stream.read() == b"rest"


@pytest.mark.parametrize("text", [b"x\n", b"-> \n\n", b"-> a\nA\n", b"-> a\nQR\n", b"-> a\n****\n", b"-> a", b"-> a\n" + b"A" * 65 + b"\n", b"-> a\nQQ==\n", b"-> \xff\n\n"])
def test_rubbish_is_no_stanza(text):
    with pytest.raises(ShapeError):
        read_stanza(io.BytesIO(text).readline)
