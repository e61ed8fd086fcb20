"""KMS keys against a model of them: states, materials, rotations, imports, aliases, deletion, time and restarts, in any order."""

import itertools
import os

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from kmsd.store.schema import Table
from kmsfs import errors
from tests.daemon.test_import import bring
from support.realmworld import RealmMachine, compare

DAY = 86_400.0
ENABLED, DISABLED, LEAVING, WAITING = "Enabled", "Disabled", "PendingDeletion", "PendingImport"
places = st.integers(0, 2)
aliases = st.sampled_from(("alias/a", "alias/b"))
contexts = st.sampled_from(({}, {"a": "b"}, {"a": "b", "c": "d"}))


class Key:
    """What the model keeps of one key; its materials are numbered from 1, and of an imported key named by what they are."""

    def __init__(self, arn, origin, state):
        self.arn, self.origin, self.state = arn, origin, state
        self.term = 1
        self.held = set() if origin == "EXTERNAL" else {1}
        self.bytes, self.until = {}, {}
        self.deletion = self.period = self.due = None
        self.asked = 0

    @property
    def complete(self):
        """Whether all material that was ever current is there."""
        return all(term in self.held for term in range(1, self.term + 1))

    def drop(self, term):
        """Imported material goes: what was current once is waited for, what waits for its rotation is forgotten."""
        self.held = self.held - {term}
        if term > self.term:
            del self.bytes[term]
        elif self.state != LEAVING:
            self.state = WAITING


class KeyLife(RealmMachine):
    def begin(self):
        self.keys, self.gone, self.blobs, self.aliases = [], [], [], {}
        for origin in ("AWS_KMS", "EXTERNAL"):
            self.create(origin)
        self.import_material(1, b"m", False, 2)
        self.rotate_by_time(0, 90)

    def pick(self, place):
        return self.keys[place % len(self.keys)] if self.keys else None

    @precondition(lambda self: len(self.keys) < 2)
    @rule(origin=st.sampled_from(("AWS_KMS", "EXTERNAL")))
    def create(self, origin):
        made = self.call("CreateKey", Origin=origin)["KeyMetadata"]
        self.keys.append(Key(made["Arn"], origin, ENABLED if origin == "AWS_KMS" else WAITING))

    # --- use ---

    def barred(self, key):
        """The error of a use in this state, if any."""
        return {DISABLED: errors.KeyDisabled, LEAVING: errors.KeyInvalidState, WAITING: errors.KeyInvalidState}.get(key.state)

    @rule(place=places, context=contexts, alias=st.none() | aliases)
    def encrypt(self, place, context, alias):
        key = self.aliases.get(alias) if alias else self.pick(place)
        if key is None:
            return alias and self.refused(errors.NotFound, "Encrypt", KeyId=alias, Plaintext=b"x")
        request = {"KeyId": alias or key.arn, "Plaintext": f"{next(COUNTER)}".encode(), "EncryptionContext": context}
        if self.barred(key):
            return self.refused(self.barred(key), "Encrypt", **request)
        answer = self.call("Encrypt", **request)
        assert answer["KeyId"] == key.arn
        self.blobs.append((key, key.term, context, request["Plaintext"], answer["CiphertextBlob"]))

    def opens(self, key, term):
        return term in key.held

    @precondition(lambda self: self.blobs)
    @rule(data=st.data(), context=st.none() | contexts)
    def decrypt(self, data, context):
        key, term, bound, plaintext, blob = data.draw(st.sampled_from(self.blobs[-12:]))
        request = {"CiphertextBlob": blob, "EncryptionContext": bound if context is None else context}
        if key in self.gone:
            return self.refused((errors.NotFound, errors.InvalidCiphertext), "Decrypt", **request)
        if self.barred(key):
            return self.refused(self.barred(key), "Decrypt", **request)
        if request["EncryptionContext"] != bound:
            return self.refused(errors.InvalidCiphertext, "Decrypt", **request)
        if not self.opens(key, term):
            return self.refused((errors.KeyInvalidState, errors.InvalidCiphertext), "Decrypt", **request)
        assert self.call("Decrypt", **request)["Plaintext"] == plaintext

    @precondition(lambda self: self.blobs)
    @rule(data=st.data(), place=places)
    def re_encrypt(self, data, place):
        key, term, bound, plaintext, blob = data.draw(st.sampled_from(self.blobs[-12:]))
        target = self.pick(place)
        if target is None or key in self.gone:
            return
        request = {"CiphertextBlob": blob, "SourceEncryptionContext": bound, "DestinationKeyId": target.arn}
        if self.barred(key) or self.barred(target) or not self.opens(key, term):
            return self.refused((errors.KeyDisabled, errors.KeyInvalidState, errors.InvalidCiphertext), "ReEncrypt", **request)
        self.blobs.append((target, target.term, {}, plaintext, self.call("ReEncrypt", **request)["CiphertextBlob"]))

    # --- states ---

    @rule(place=places, enable=st.booleans())
    def switch(self, place, enable):
        key = self.pick(place)
        operation = "EnableKey" if enable else "DisableKey"
        if key is None:
            return
        if key.state in (LEAVING, WAITING):
            return self.refused(errors.KeyInvalidState, operation, KeyId=key.arn)
        self.call(operation, KeyId=key.arn)
        key.state = ENABLED if enable else DISABLED

    @rule(place=places, days=st.sampled_from((None, 7, 30)), really=st.sampled_from((False,) * 9 + (True,)))
    def schedule_deletion(self, place, days, really):
        key = self.pick(place)
        if key is None or not really:
            return
        request = {"KeyId": key.arn, **({"PendingWindowInDays": days} if days else {})}
        if key.state == LEAVING:
            return self.refused(errors.KeyInvalidState, "ScheduleKeyDeletion", **request)
        assert self.call("ScheduleKeyDeletion", **request)["DeletionDate"] == self.world.now + (days or 30) * DAY
        key.state, key.deletion = LEAVING, self.world.now + (days or 30) * DAY

    @rule(place=places)
    def cancel_deletion(self, place):
        key = self.pick(place)
        if key is None:
            return
        if key.state != LEAVING:
            return self.refused(errors.KeyInvalidState, "CancelKeyDeletion", KeyId=key.arn)
        self.call("CancelKeyDeletion", KeyId=key.arn)
        key.deletion = None
        # A key whose material went meanwhile, or never came, waits for it.
        key.state = DISABLED if key.complete else WAITING

    # --- rotation ---

    @rule(place=places, days=st.none() | st.sampled_from((90, 365)))
    def rotate_by_time(self, place, days):
        key = self.pick(place)
        if key is None:
            return
        operation = "EnableKeyRotation" if days else "DisableKeyRotation"
        request = {"KeyId": key.arn, **({"RotationPeriodInDays": days} if days else {})}
        if key.origin == "EXTERNAL" or self.barred(key):
            return self.refused((errors.UnsupportedOperation, errors.KeyDisabled, errors.KeyInvalidState), operation, **request)
        self.call(operation, **request)
        key.period, key.due = days, self.world.now + days * DAY if days else None

    @rule(place=places, times=st.sampled_from((1, 1, 24)))
    def rotate_now(self, place, times):
        key = self.pick(place)
        for _ in range(times if key is not None else 0):
            if self.barred(key):
                return self.refused(self.barred(key), "RotateKeyOnDemand", KeyId=key.arn)
            if key.asked == 25:
                return self.refused(errors.LimitExceeded, "RotateKeyOnDemand", KeyId=key.arn)
            if key.origin == "EXTERNAL" and key.term + 1 not in key.held:
                return self.refused(errors.KeyInvalidState, "RotateKeyOnDemand", KeyId=key.arn)
            self.call("RotateKeyOnDemand", KeyId=key.arn)
            key.term += 1
            key.asked += 1
            if key.origin != "EXTERNAL":
                key.held.add(key.term)

    # --- aliases ---

    @rule(name=aliases, place=places, act=st.sampled_from(("CreateAlias", "UpdateAlias", "DeleteAlias")))
    def alias(self, name, place, act):
        key, present = self.pick(place), self.aliases.get(name)
        if key is None:
            return
        request = {"AliasName": name, **({"TargetKeyId": key.arn} if act != "DeleteAlias" else {})}
        if act == "CreateAlias" and present is not None:
            return self.refused((errors.AlreadyExists, errors.KeyInvalidState), act, **request)
        if act != "CreateAlias" and present is None:
            return self.refused((errors.NotFound, errors.KeyInvalidState), act, **request)
        if act != "DeleteAlias" and key.state == LEAVING:
            return self.refused(errors.KeyInvalidState, act, **request)
        self.call(act, **request)
        if act == "DeleteAlias":
            del self.aliases[name]
        else:
            self.aliases[name] = key

    # --- imported material ---

    @rule(place=places, which=st.sampled_from((b"m", b"n")), new=st.booleans(), days=st.sampled_from((None, 2)))
    def import_material(self, place, which, new, days):
        key = self.pick(place)
        if key is None or key.origin != "EXTERNAL":
            return key and self.refused(
                errors.UnsupportedOperation, "GetParametersForImport", KeyId=key.arn, WrappingAlgorithm="RSAES_OAEP_SHA_256", WrappingKeySpec="RSA_2048"
            )
        if key.state == LEAVING:
            return
        more = {"ExpirationModel": "KEY_MATERIAL_EXPIRES", "ValidTo": self.world.now + days * DAY} if days else {
            "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE"
        }  # fmt: skip
        material, known = which * 32, {value: term for term, value in key.bytes.items()}
        if new and key.bytes:
            more["ImportType"] = "NEW_KEY_MATERIAL"
        term = known.get(material)
        if term is None and key.bytes and not (new and key.complete and key.term + 1 not in key.bytes):
            with pytest.raises((errors.IncorrectKeyMaterial, errors.KeyInvalidState)):
                bring(self.call, key.arn, material, **more)
            return
        bring(self.call, key.arn, material, **more)
        term = term or (key.term + 1 if key.bytes else 1)
        key.bytes[term] = material
        key.held = key.held | {term}
        key.until[term] = self.world.now + days * DAY if days else None
        if key.state == WAITING and key.complete:
            key.state = ENABLED

    @rule(place=places)
    def delete_material(self, place):
        key = self.pick(place)
        if key is None or key.origin != "EXTERNAL" or key.state == LEAVING:
            return
        # Of a key that waits already, nothing changes.
        self.call("DeleteImportedKeyMaterial", KeyId=key.arn)
        if key.term in key.held:
            key.drop(key.term)

    # --- time and restarts ---

    @rule(days=st.sampled_from((1, 3, 3, 8, 31, 91)))
    def time_passes(self, days):
        self.world.now += days * DAY
        daemon = self.world.daemon
        purged = daemon._keys.purge_due(self.world.now)
        daemon._imports.expire_due(self.world.now)
        daemon._upkeep.rotate_due(self.world.now)
        for key in [key for key in self.keys if key.deletion is not None and key.deletion <= self.world.now]:
            assert key.arn in purged
            self.keys.remove(key)
            self.gone.append(key)
            self.aliases = {name: target for name, target in self.aliases.items() if target is not key}
        for key in self.keys:
            for term in [term for term, until in key.until.items() if until is not None and until <= self.world.now and term in key.held]:
                key.drop(term)
            if key.due is not None and key.due <= self.world.now and key.state == ENABLED:
                key.term += 1
                key.held.add(key.term)
                key.due = self.world.now + key.period * DAY

    @rule()
    def restart(self):
        self.world.restart()

    # --- what is told ---

    @invariant()
    def all_are_told(self):
        if not hasattr(self, "keys"):
            return
        listed = {one["KeyArn"] for one in self.call("ListKeys", Limit=1000)["Keys"]}
        assert listed == {key.arn for key in self.keys}
        for key in self.keys:
            told = self.call("DescribeKey", KeyId=key.arn)["KeyMetadata"]
            assert told["KeyState"] == key.state and told.get("DeletionDate") == key.deletion
            status = self.call("GetKeyRotationStatus", KeyId=key.arn)
            leaving = key.state == LEAVING
            assert status.get("RotationPeriodInDays") == (None if leaving else key.period)
            assert status.get("NextRotationDate") == (None if leaving else key.due)
            assert len(self.call("ListKeyRotations", KeyId=key.arn)["Rotations"]) == key.term - 1
        for key in self.gone[-2:]:
            self.refused(errors.NotFound, "DescribeKey", KeyId=key.arn)
        found = {one["AliasName"]: one["TargetKeyId"] for one in self.call("ListAliases")["Aliases"]}
        assert {name: target for name, target in found.items() if name in ("alias/a", "alias/b")} == {
            name: key.arn.rpartition("/")[2] for name, key in self.aliases.items()
        }


    def teardown(self):
        """What is stored of material is what there is, and nothing that went."""
        registry = self.world.daemon._registry
        stored = {f"{row['key']}/{row['term']}" for row in registry.store.scan(Table.MATERIAL)}
        assert stored == {f"{key.key_id}/{term}" for key in registry.keys.values() for term in key.materials}


COUNTER = itertools.count(1)
EXAMPLES = int(os.environ.get("KMSFS_EXAMPLES", "12"))


def test_keys_are_as_their_model_says(tmp_path):
    compare(KeyLife, tmp_path, EXAMPLES, 100)
