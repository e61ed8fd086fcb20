"""Keys that are slow to make, made ahead."""

import threading

import pytest

from kmsd.keys.spares import SpareKeys


def make_spares():
    made = []

    def generate(spec):
        made.append(spec)
        return f"{spec} {len(made)}".encode()

    return SpareKeys(generate), made


@pytest.mark.parametrize(
    ("operation", "parameters", "spec"),
    [
        ("CreateKey", {"KeySpec": "RSA_4096"}, "RSA_4096"), ("CreateKey", {"CustomerMasterKeySpec": "RSA_2048"}, "RSA_2048"),
        ("CreateKey", {"KeySpec": "RSA_4096", "Origin": "EXTERNAL"}, None), ("CreateKey", {"KeySpec": "ECC_NIST_P256"}, None),
        ("CreateKey", {"KeySpec": ["RSA_4096"]}, None), ("CreateKey", {}, None), ("CreateKey", {"KeySpec": "RSA_9"}, None),
        ("GenerateDataKeyPair", {"KeyPairSpec": "RSA_3072"}, "RSA_3072"), ("GenerateDataKeyPairWithoutPlaintext", {"KeyPairSpec": "RSA_2048"}, "RSA_2048"),
        ("GetParametersForImport", {"WrappingKeySpec": "RSA_4096"}, "RSA_4096"), ("Encrypt", {"KeySpec": "RSA_4096"}, None),
    ],
)  # fmt: skip
def test_which_calls_may_need_one(operation, parameters, spec):
    spares, _ = make_spares()
    assert spares.lacking(operation, parameters) == spec
    if spec is not None:
        spares.make(spec)
        assert spares.lacking(operation, parameters) is None


def test_each_key_is_given_once_and_others_are_made_when_they_are_wanted():
    spares, made = make_spares()
    spares.make("RSA_2048")
    spares.make("RSA_2048")
    assert made == ["RSA_2048"]
    taken = [spares.take("RSA_2048"), spares.take("RSA_2048"), spares.take("ECC_NIST_P256")]
    assert len(set(taken)) == 3 and made == ["RSA_2048", "RSA_2048", "ECC_NIST_P256"]


def test_many_that_want_one_at_once_make_one():
    spares, made = make_spares()
    threads = [threading.Thread(target=spares.make, args=("RSA_2048",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == ["RSA_2048"]
