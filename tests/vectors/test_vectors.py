"""Published vectors through our own rooms: Wycheproof (C2SP, Apache-2.0) and NIST (package cryptography-vectors)."""

import json
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode

from kmsfs.aead.derived import LABEL, kdf_by, kdf_of
from kmsfs.aead.ed25519ph import sign_prehashed, verify_prehashed
from kmsfs.aead.gcm import GcmKey
from kmsfs.aead.kdf import hkdf_expand_sha512, hkdf_extract_sha512, hmac_sha256
from kmsfs.aead.siv import SivKey
from kmsfs.errors import AuthenticationFailed

FOLDER = Path(__file__).parents[3] / "shared" / "vectors" / "wycheproof"
wycheproof = pytest.mark.skipif(not FOLDER.is_dir(), reason="the Wycheproof files are not beside this checkout")


def cases(name, **sizes):
    document = json.loads((FOLDER / name).read_text())
    for group in document["testGroups"]:
        if all(group.get(key) == value for key, value in sizes.items()):
            for case in group["tests"]:
                yield {key: bytes.fromhex(v) if isinstance(v, str) and key in _HEX else v for key, v in case.items()}


_HEX = {"key", "iv", "aad", "msg", "ct", "tag", "ikm", "salt", "info", "okm"}


@wycheproof
def test_aes_gcm():
    ran = 0
    for case in cases("aes_gcm_test.json", ivSize=96, keySize=256):
        key, pin = GcmKey(case["key"]), case["iv"] + case["tag"]
        if case["result"] == "valid":
            assert key.open_detached(pin, case["ct"], case["aad"]) == case["msg"]
        else:
            with pytest.raises(AuthenticationFailed):
                key.open_detached(pin, case["ct"], case["aad"])
        ran += 1
    assert ran > 50


@wycheproof
def test_aes_siv():
    ran = 0
    for case in cases("aes_siv_cmac_test.json", keySize=512):
        if not case["msg"]:
            continue
        key = SivKey(case["key"])
        if case["result"] == "valid":
            assert key.seal(case["msg"], [case["aad"]]) == case["ct"]
            assert key.open(case["ct"], [case["aad"]]) == case["msg"]
        else:
            with pytest.raises(AuthenticationFailed):
                key.open(case["ct"], [case["aad"]])
        ran += 1
    assert ran > 50


@wycheproof
def test_hmac_and_hkdf():
    for case in cases("hmac_sha256_test.json", tagSize=256):
        assert (hmac_sha256(case["key"], case["msg"]) == case["tag"]) == (case["result"] == "valid")
    for case in cases("hkdf_sha512_test.json"):
        if case["result"] == "valid":
            prk = hkdf_extract_sha512(case["salt"], case["ikm"])
            assert hkdf_expand_sha512(prk, case["info"], case["size"]) == case["okm"]


def test_ed25519ph():
    """RFC 8032 section 7.3."""
    seed = bytes.fromhex("833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42")
    public = bytes.fromhex("ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf")
    signature = bytes.fromhex(
        "98a70222f0b8121aa9d30f813d683f809e462b469c7ff87639499bb94e6dae41"
        "31f85042463c2a355a2003d062adf5aaa10b8c61e636062aaad11c2a26083406"
    )
    assert sign_prehashed(seed, public, b"abc") == signature
    verify_prehashed(public, b"abc", signature)
    with pytest.raises(AuthenticationFailed):
        verify_prehashed(public, b"abd", signature)


def test_nist_gcm_256():
    vectors = pytest.importorskip("cryptography_vectors")
    ran, case = 0, {}
    with vectors.open_vector_file("ciphers/AES/GCM/gcmDecrypt256.rsp", "r") as stream:
        for line in stream:
            line = line.strip()
            if " = " in line or line.endswith("="):
                name, _, value = line.partition("=")
                case[name.strip()] = value.strip()
            elif line == "FAIL":
                case["FAIL"] = "1"
            if not line and "Tag" in case:
                iv, tag = bytes.fromhex(case["IV"]), bytes.fromhex(case["Tag"])
                if len(iv) == 12 and len(tag) == 16:
                    key = GcmKey(bytes.fromhex(case["Key"]))
                    arguments = iv + tag, bytes.fromhex(case["CT"]), bytes.fromhex(case["AAD"])
                    if "FAIL" in case:
                        with pytest.raises(AuthenticationFailed):
                            key.open_detached(*arguments)
                    else:
                        assert key.open_detached(*arguments) == bytes.fromhex(case["PT"])
                    ran += 1
                case = {}
    assert ran > 300


def test_the_derivation_of_kms_keys_is_the_librarys():
    """SP 800-108r1, counter mode, out of two HMACs: by software and by a token alike."""
    for width in (0, 1, 40, 200):
        key, context = os.urandom(32), os.urandom(width)
        oracle = KBKDFHMAC(
            algorithm=hashes.SHA256(), mode=Mode.CounterMode, length=64, rlen=4, llen=4,
            location=CounterLocation.BeforeFixed, label=LABEL, context=context, fixed=None,
        )  # fmt: skip
        assert kdf_of(key)(context) == kdf_by(lambda message: hmac_sha256(key, message))(context) == oracle.derive(key)  # noqa: B023
