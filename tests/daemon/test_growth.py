"""What a call costs does not grow with what is there: listings, policies, and what goes when a key goes."""

import asyncio
import json
import os
import time

import pytest
from kmsd.app import Daemon
from kmsd.authz.decide import Question, decide
from kmsd.authz.grants import Grant
from kmsd.authz.policy import compile_policy, default_policy
from kmsd.authz.principal import make_caller
from kmsd.authz.statement import Statement
from kmsd.config import Config
from kmsd.keys.material import MaterialVault
from kmsd.keys.registry import Alias, KeyRegistry, KmsKey
from kmsd.realm import initialise, open_realm
from kmsd.root.keyring import SealType
from kmsd.store.sqlite import SqliteStore
from kmsd.store.sealing import RowSealer
from kmsfs.api.operation import KeyState
from kmsfs.errors import StorageError
from kmsfs.ids import key_arn, scope_of, uid_principal

ACCOUNT = "111122223333"
SCOPE = scope_of(ACCOUNT)
ME = uid_principal(ACCOUNT, 1000)


@pytest.fixture
def registry(tmp_path):
    config = Config(tmp_path / "state", tmp_path / "socket")
    initialise(config, SealType.KEYFILE, None)
    realm = open_realm(config, None)
    keys = realm.keyring.domain_keys
    store = SqliteStore(config.database, RowSealer(keys, os.urandom))
    yield KeyRegistry(ACCOUNT, store, MaterialVault(realm.keyring.realm_id, keys, os.urandom))
    store.close()


def add_key(registry, name):
    policy = compile_policy(default_policy(ME))
    key = KmsKey(name, key_arn(SCOPE, name), "", KeyState.ENABLED, 0.0, None, policy, 1, 1, ME, scope=SCOPE)
    key.materials[1] = registry.vault.make(key.spec)
    registry.add_key(key)
    return key


def grant(key, number, expires=None):
    return Grant(f"{number:064d}", key.key_id, ME, ME, frozenset({"Decrypt"}), None, None, None, 0.0, "", expires)


def names(index):
    return [index[place] for place in range(len(index))]


def same_listings(registry):
    again = KeyRegistry(ACCOUNT, registry.store, registry.vault)
    for old, new in ((registry.listed, again.listed),):
        assert names(old.keys_in(SCOPE)) == names(new.keys_in(SCOPE)) == sorted(registry.keys)
        assert names(old.aliases_in(SCOPE)) == names(new.aliases_in(SCOPE)) == sorted(registry.aliases)
        for key in registry.keys.values():
            assert names(old.grants_of(key.key_id)) == names(new.grants_of(key.key_id)) == sorted(key.grants)
            assert registry.aliases_of(key.key_id) == again.aliases_of(key.key_id)
        assert names(old.retirable(SCOPE, ME)) == names(new.retirable(SCOPE, ME))


def test_listings_follow_what_comes_and_goes(registry):
    first, second = add_key(registry, "b" * 36), add_key(registry, "a" * 36)
    for number in (3, 1, 2):
        registry.add_grant(first, grant(first, number))
    registry.put_alias(Alias("alias/one", first.key_id, 0.0, 0.0, SCOPE))
    registry.put_alias(Alias("alias/two", first.key_id, 0.0, 0.0, SCOPE))
    same_listings(registry)
    registry.put_alias(Alias("alias/one", second.key_id, 0.0, 1.0, SCOPE))
    registry.remove_grant(first, first.grants[f"{1:064d}"])
    same_listings(registry)
    assert [alias.name for alias in registry.aliases_of(second.key_id)] == ["alias/one"]
    registry.destroy(first)
    same_listings(registry)
    assert len(registry.listed.retirable(SCOPE, ME)) == 0
    assert names(registry.listed.aliases_in(SCOPE)) == [Alias("alias/one", "", 0.0, 0.0, SCOPE).arn]
    registry.delete_alias(registry.aliases[f"arn:kmsfs:kms:{SCOPE}:alias/one"])
    same_listings(registry)


def test_a_grant_that_would_end_after_its_key_is_gone(registry):
    key = add_key(registry, "c" * 36)
    registry.add_grant(key, grant(key, 1, expires=100.0))
    registry.destroy(key)
    assert registry.end_expired_grants(1000.0) == []


def test_upkeep_that_fails_is_tried_again(caplog):
    calls = []

    def act():
        calls.append(1)
        if len(calls) < 3:
            raise StorageError("the disk is full") if len(calls) == 1 else RuntimeError("a bug")

    async def run():
        task = asyncio.create_task(Daemon._every(None, 0.001, act))
        while len(calls) < 4:
            await asyncio.sleep(0.001)
        task.cancel()

    asyncio.run(asyncio.wait_for(run(), 10))
    assert "the disk is full" in caplog.text
    assert "a bug" in caplog.text


def test_a_decision_looks_at_the_statements_that_concern_it(monkeypatch):
    mine = json.loads(default_policy(ME))
    others = [
        {"Effect": "Allow", "Principal": {"AWS": uid_principal(ACCOUNT, 5000 + number)}, "Action": "kms:Decrypt", "Resource": "*"}
        for number in range(100)
    ]
    mine["Statement"] = [*others, *mine["Statement"]]
    policy = compile_policy(json.dumps(mine))
    looked = []
    holds = Statement.holds
    monkeypatch.setattr(Statement, "holds", lambda self, *args: looked.append(self) or holds(self, *args))
    question = Question("kms:Decrypt", "k")
    caller = make_caller(ACCOUNT, 1000, 1000, 1, ())
    for _ in range(3):
        assert decide(caller, question, policy, ()).by == "policy:Creator"
    assert len(looked) == 3
    other = make_caller(ACCOUNT, 5007, 5007, 1, ())
    assert decide(other, question, policy, ()).by == "policy:7"
    assert not decide(other, Question("kms:Encrypt", "k"), policy, ()).allowed
    assert not decide(make_caller(ACCOUNT, 1, 1, 1, ()), question, policy, ()).allowed
    # However many callers come, what is remembered of them stays small.
    for uid in range(2000):
        decide(make_caller(ACCOUNT, uid, uid, 1, ()), question, policy, ())
    assert len(policy._relevant) <= 256


def test_the_same_policy_is_compiled_once():
    assert compile_policy(default_policy(ME)) is compile_policy(default_policy(ME))
    began = time.process_time()
    for _ in range(2000):
        compile_policy(default_policy(ME))
    assert time.process_time() - began < 0.5


def test_truncated_is_told_where_it_is_false(call):
    key = call("CreateKey")["KeyMetadata"]["KeyId"]
    me = call("GetStatus")["Principal"]
    lists = (("ListAliases", {"KeyId": key}), ("ListGrants", {"KeyId": key}), ("ListRetirableGrants", {"RetiringPrincipal": me}))
    for name, parameters in lists:
        assert call(name, **parameters)["Truncated"] is False, name
    assert call("ListKeys", Limit=1000)["Truncated"] is False
