"""Quotas: buckets per principal and class, refilled by time."""

import pytest

from kmsd.server import throttle
from kmsd.server.throttle import Buckets, OperationClass, parse_quotas
from kmsfs.errors import Throttled, UsageError

RATES = {OperationClass.CRYPTOGRAPHIC: 10.0, OperationClass.ASYMMETRIC: 2.0, OperationClass.MANAGEMENT: 0.25}


def spent(buckets, principal, operation, now, parameters=None, most=1000):
    for count in range(most):
        try:
            buckets.spend(principal, operation, parameters or {}, now)
        except Throttled:
            return count
    return most


def test_each_principal_and_each_class_has_a_bucket_of_its_own():
    buckets = Buckets(RATES)
    assert spent(buckets, "a", "Decrypt", 0.0) == 20
    assert spent(buckets, "b", "Decrypt", 0.0) == 20
    assert spent(buckets, "a", "Sign", 0.0) == 4
    assert spent(buckets, "a", "GetParameter", 0.0) == 1000
    # Symmetric and HMAC keys share one; what is no operation counts too.
    assert spent(buckets, "a", "GenerateMac", 0.0) == 0
    assert spent(buckets, "a", "Nonsense", 0.0) == 1
    assert spent(buckets, "a", "CreateKey", 0.0) == 0


def test_time_refills_up_to_the_burst_and_no_clock_takes_away():
    buckets = Buckets(RATES)
    spent(buckets, "a", "Decrypt", 100.0)
    assert spent(buckets, "a", "Decrypt", 100.55) == 5
    assert spent(buckets, "a", "Decrypt", 50.0) == 0
    assert spent(buckets, "a", "Decrypt", 51.0) == 10
    assert spent(buckets, "a", "Decrypt", 1000.0) == 20


def test_a_batch_costs_its_items_and_one_bigger_than_the_bucket_waits_for_a_full_one():
    buckets = Buckets(RATES)
    assert spent(buckets, "a", "DecryptBatch", 0.0, {"Items": [{}] * 8}) == 2
    assert spent(buckets, "b", "GenerateDataKeyBatch", 0.0, {"EncryptionContexts": [{}] * 128}) == 1
    assert spent(buckets, "b", "Decrypt", 0.0) == 0
    assert spent(buckets, "c", "DecryptBatch", 0.0, {"Items": "rubbish"}) == 20


def test_a_key_pair_costs_what_key_pairs_cost():
    buckets = Buckets(RATES)
    for _ in range(4):
        buckets.spend_on_key("a", "RSA_2048", "Decrypt", 0.0)
    with pytest.raises(Throttled, match="exceeded the rate"):
        buckets.spend_on_key("a", "RSA_2048", "Decrypt", 0.0)
    # Sign has paid as an operation on pairs already; symmetric keys cost nothing more.
    for _ in range(50):
        buckets.spend_on_key("a", "RSA_2048", "Sign", 0.0)
        buckets.spend_on_key("a", "SYMMETRIC_DEFAULT", "Decrypt", 0.0)


def test_full_buckets_are_forgotten(monkeypatch):
    monkeypatch.setattr(throttle, "_PRINCIPALS_MAX", 100)
    buckets = Buckets(RATES)
    spent(buckets, "hungry", "Decrypt", 0.0)
    for number in range(300):
        buckets.spend(f"p{number}", "Decrypt", {}, number * 0.001)
    assert len(buckets._levels) > 100
    for number in range(300):
        buckets.spend(f"q{number}", "Decrypt", {}, 0.9)
    assert spent(buckets, "hungry", "Decrypt", 0.9) == 9
    buckets.spend("last", "Decrypt", {}, 100.0)
    assert len(buckets._levels) == 1


def test_quotas_are_read_or_refused():
    assert parse_quotas(["asymmetric=5", "management=0.5"]) == {OperationClass.ASYMMETRIC: 5.0, OperationClass.MANAGEMENT: 0.5}
    for wrong in ("asymmetric", "asymmetric=", "asymmetric=0", "asymmetric=-1", "asymmetric=nan", "asymmetric=inf", "all=5", "=5"):
        with pytest.raises(UsageError):
            parse_quotas([wrong])


def test_every_operation_has_a_class():
    assert set(throttle._CLASSES.values()) == set(OperationClass)
