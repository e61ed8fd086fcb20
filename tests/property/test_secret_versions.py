"""Secrets against a model of them: versions, stages, tokens, keys that come and go, rotation, deletion and time, in any order."""

import itertools
import os
import uuid

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from kmsd.secrets.records import secret_of
from kmsd.store.schema import Table
from kmsfs import errors
from support.realmworld import RealmMachine, compare

CURRENT, PENDING, PREVIOUS = "AWSCURRENT", "AWSPENDING", "AWSPREVIOUS"
STAGES = (CURRENT, PENDING, PREVIOUS, "blue", "green")
DAY = 86_400.0
KEPT = 100
# Mostly one of them, so that what came before matters.
names = st.sampled_from(("one", "one", "one", "two/three"))
stages = st.sampled_from(STAGES)
values = st.sampled_from(("a", "b", b"a", b"b"))


class Version:
    def __init__(self, value, keys):
        self.value, self.keys, self.stages = value, keys, set()


class Known:
    """What the model keeps of one secret: `versions` in the order in which they were made."""

    def __init__(self, key):
        self.key, self.versions = key, {}
        self.deletion = self.token = None
        self.rotates = False

    def holder(self, stage):
        return next((vid for vid, version in self.versions.items() if stage in version.stages), None)

    def give(self, vid, wanted):
        """The stages go to this version; the one that was current before is the previous one."""
        before = self.holder(CURRENT)
        for stage in wanted:
            for version in self.versions.values():
                version.stages.discard(stage)
        self.versions[vid].stages |= set(wanted)
        if CURRENT in wanted and before not in (None, vid):
            for version in self.versions.values():
                version.stages.discard(PREVIOUS)
            self.versions[before].stages.add(PREVIOUS)

    def prune(self):
        while len(self.versions) > KEPT:
            oldest = next((vid for vid, version in self.versions.items() if not version.stages), None)
            if oldest is None:
                return
            del self.versions[oldest]


class SecretVersions(RealmMachine):
    def begin(self):
        self.known = {}
        self.keys = [self.call("CreateKey")["KeyMetadata"]["Arn"] for _ in range(2)]
        self.enabled = dict.fromkeys(self.keys, True)
        self.create("one", "a", 0, False)
        self.put("one", "b", 0, False, None)
        self.put("one", b"a", 0, False, ["blue"])

    @staticmethod
    def given(value):
        return {"SecretBinary": value} if isinstance(value, bytes) else {"SecretString": value}

    def opens(self, version):
        return any(self.enabled[key] for key in version.keys)

    def pick(self, known, at):
        """The id of a version by its place, or of one that is not there."""
        ids = [*known.versions, str(uuid.uuid4())]
        return ids[at % len(ids)]

    # --- writing ---

    @rule(name=names, value=st.none() | values, key=st.integers(0, 1), repeat=st.booleans())
    def create(self, name, value, key, repeat):
        known = self.known.get(name)
        token = next(iter(known.versions)) if known and known.versions and repeat else str(uuid.uuid4())
        request = {"Name": name, "KmsKeyId": self.keys[key], "ClientRequestToken": token, **(self.given(value) if value else {})}
        if known is not None and known.deletion is not None:
            return self.refused(errors.InvalidSecretRequest, "CreateSecret", **request)
        if known is not None:
            version = known.versions.get(token)
            if version is None or version.value is None or not self.opens(version) or version.value != (value or ""):
                return self.refused(errors.KmsfsError, "CreateSecret", **request)
            assert self.call("CreateSecret", **request)["VersionId"] == token
            return None
        if value and not self.enabled[self.keys[key]]:
            return self.refused(errors.SecretEncryptionFailure, "CreateSecret", **request)
        answer = self.call("CreateSecret", **request)
        known = self.known[name] = Known(self.keys[key])
        assert answer.get("VersionId") == (token if value else None)
        if value:
            known.versions[token] = Version(value, [known.key])
            known.give(token, [CURRENT])

    @rule(name=names, value=values, at=st.integers(0, 5), again=st.booleans(), wanted=st.none() | st.lists(stages, min_size=1, unique=True))
    def put(self, name, value, at, again, wanted):
        known = self.known.get(name)
        token = self.pick(known, at) if known is not None and again else str(uuid.uuid4())
        request = {"SecretId": name, "ClientRequestToken": token, **self.given(value), **({"VersionStages": wanted} if wanted else {})}
        answer = self.change("PutSecretValue", known, token, value, wanted or [CURRENT], request)
        if answer is not None:
            assert set(answer["VersionStages"]) == known.versions[token].stages

    @rule(name=names, count=st.sampled_from((3, 101)))
    def put_many(self, name, count):
        for _ in range(count):
            self.put(name, "a", 0, False, None)

    @rule(name=names, value=st.none() | values, key=st.none() | st.integers(0, 1))
    def update(self, name, value, key):
        known = self.known.get(name)
        token = str(uuid.uuid4())
        wanted = self.keys[key] if key is not None else None
        request = {
            "SecretId": name, "Description": f"{next(COUNTER)}", **({"KmsKeyId": wanted} if wanted else {}),
            **({"ClientRequestToken": token, **self.given(value)} if value else {}),
        }  # fmt: skip
        if known is None or known.deletion is not None:
            return self.refused((errors.SecretNotFound, errors.InvalidSecretRequest), "UpdateSecret", **request)
        moves = wanted is not None and wanted != known.key
        sealed = [v for v in known.versions.values() if v.value is not None and v.stages & {CURRENT, PENDING, PREVIOUS} and self.opens(v)]
        after = wanted or known.key
        if not self.enabled[after] and (value or (moves and sealed)):
            return self.refused(errors.SecretEncryptionFailure, "UpdateSecret", **request)
        known.key = after
        for version in sealed if moves else ():
            if version.keys[0] != after:
                version.keys = [after, version.keys[0]]
        if value:
            self.change("UpdateSecret", known, token, value, [CURRENT], request)
        else:
            self.call("UpdateSecret", **request)
        assert self.call("DescribeSecret", SecretId=name)["Description"] == request["Description"]

    def change(self, operation, known, token, value, wanted, request):
        """A version that is new, or was made by the same request before."""
        if known is None:
            return self.refused(errors.SecretNotFound, operation, **request)
        if known.deletion is not None:
            return self.refused(errors.InvalidSecretRequest, operation, **request)
        present = known.versions.get(token)
        if present is not None and present.value is not None:
            if type(present.value) is type(value) and not self.opens(present):
                return self.refused(errors.SecretDecryptionFailure, operation, **request)
            if present.value != value:
                return self.refused(errors.SecretExists, operation, **request)
            return self.call(operation, **request)
        if not self.enabled[known.key]:
            return self.refused(errors.SecretEncryptionFailure, operation, **request)
        answer = self.call(operation, **request)
        assert answer["VersionId"] == token
        wanted = set(wanted) | ({CURRENT} if known.holder(CURRENT) is None else set())
        if present is not None:
            # What a rotation began gets its value, and is the newest now.
            wanted |= present.stages
            del known.versions[token]
        known.versions[token] = Version(value, [known.key])
        known.give(token, wanted)
        known.prune()
        return answer

    @rule(name=names, stage=stages, back=st.none() | st.integers(0, 4), to=st.none() | st.integers(0, 4), right=st.booleans())
    def move(self, name, stage, back, to, right):
        known = self.known.get(name)
        if known is None:
            return self.refused(errors.SecretNotFound, "UpdateSecretVersionStage", SecretId=name, VersionStage=stage)
        holder = known.holder(stage)
        remove = holder if right and holder else self.pick(known, back) if back is not None else None
        target = self.pick(known, to) if to is not None else None
        request = {"SecretId": name, "VersionStage": stage}
        request |= {"RemoveFromVersionId": remove} if remove else {}
        request |= {"MoveToVersionId": target} if target else {}
        if known.deletion is not None:
            return self.refused(errors.InvalidSecretRequest, "UpdateSecretVersionStage", **request)
        unknown = any(vid is not None and vid not in known.versions for vid in (remove, target))
        wrong = (remove is not None and remove != holder) or (holder is not None and remove is None and target not in (None, holder))
        if unknown or wrong or (stage == CURRENT and target is None):
            return self.refused((errors.SecretNotFound, errors.InvalidParameter), "UpdateSecretVersionStage", **request)
        if stage == CURRENT and known.versions[target].value is None:
            return self.refused(errors.InvalidSecretRequest, "UpdateSecretVersionStage", **request)
        self.call("UpdateSecretVersionStage", **request)
        if target is None:
            if remove is not None:
                known.versions[remove].stages.discard(stage)
        elif target != holder:
            known.give(target, [stage])
        self.end_rotation(known)

    def end_rotation(self, known):
        """Whatever a rotation made is current: it has ended."""
        if known.token is not None and known.holder(CURRENT) == known.token:
            known.token = None
            for version in known.versions.values():
                version.stages.discard(PENDING)

    # --- rotation ---

    @rule(name=names, at=st.integers(0, 5), again=st.booleans())
    def rotate(self, name, at, again):
        known = self.known.get(name)
        token = self.pick(known, at) if known is not None and again else str(uuid.uuid4())
        request = {"SecretId": name, "RotationLambdaARN": "rotator", "ClientRequestToken": token}
        if known is None:
            return self.refused(errors.SecretNotFound, "RotateSecret", **request)
        pending = known.holder(PENDING)
        under_way = pending is not None and CURRENT not in known.versions[pending].stages
        repeated = token in known.versions
        if known.deletion is not None or not known.versions or (repeated and token != known.token) or (not repeated and under_way):
            return self.refused(errors.InvalidSecretRequest, "RotateSecret", **request)
        assert self.call("RotateSecret", **request)["VersionId"] == token
        known.rotates = True
        if not repeated:
            known.versions[token] = Version(None, [])
            known.give(token, [PENDING])
            known.token = token
            known.prune()

    @rule(name=names)
    def cancel_rotation(self, name):
        known = self.known.get(name)
        if known is None or known.deletion is not None or not known.rotates:
            return self.refused((errors.SecretNotFound, errors.InvalidSecretRequest), "CancelRotateSecret", SecretId=name)
        self.call("CancelRotateSecret", SecretId=name)
        known.rotates, known.token = False, None

    # --- deletion, keys and time ---

    @precondition(lambda self: len(self.known) > 1)
    @rule(name=names, days=st.sampled_from((None, 7, 30)), force=st.sampled_from((False, False, True)))
    def delete(self, name, days, force):
        known = self.known.get(name)
        if force:
            self.call("DeleteSecret", SecretId=name, ForceDeleteWithoutRecovery=True)
            self.known.pop(name, None)
        elif known is None or known.deletion is not None:
            self.refused((errors.SecretNotFound, errors.InvalidSecretRequest), "DeleteSecret", SecretId=name)
        else:
            answer = self.call("DeleteSecret", SecretId=name, **({"RecoveryWindowInDays": days} if days else {}))
            known.deletion = self.world.now + (days or 30) * DAY
            assert answer["DeletionDate"] == known.deletion

    @rule(name=names)
    def restore(self, name):
        known = self.known.get(name)
        if known is None:
            return self.refused(errors.SecretNotFound, "RestoreSecret", SecretId=name)
        self.call("RestoreSecret", SecretId=name)
        known.deletion = None

    @rule(days=st.sampled_from((1, 8, 31)))
    def time_passes(self, days):
        self.world.now += days * DAY
        gone = self.world.daemon._secrets.purge_due(self.world.now)
        due = [name for name, known in self.known.items() if known.deletion is not None and known.deletion <= self.world.now]
        assert len([arn for arn in gone if f":{self.region}:" in arn]) == len(due)
        for name in due:
            del self.known[name]

    @rule(key=st.integers(0, 1))
    def switch_key(self, key):
        arn = self.keys[key]
        self.call("DisableKey" if self.enabled[arn] else "EnableKey", KeyId=arn)
        self.enabled[arn] = not self.enabled[arn]

    # --- reading ---

    @precondition(lambda self: self.known)
    @rule(name=names, at=st.none() | st.integers(0, 5), stage=st.none() | stages)
    def get(self, name, at, stage):
        known = self.known.get(name)
        vid = self.pick(known, at) if known is not None and at is not None else None
        request = {"SecretId": name, **({"VersionId": vid} if vid else {}), **({"VersionStage": stage} if stage else {})}
        if known is None:
            return self.refused(errors.SecretNotFound, "GetSecretValue", **request)
        if known.deletion is not None:
            return self.refused(errors.InvalidSecretRequest, "GetSecretValue", **request)
        vid = vid or known.holder(stage or CURRENT)
        version = known.versions.get(vid)
        if version is None or version.value is None or (stage and stage not in version.stages):
            return self.refused((errors.SecretNotFound, errors.InvalidSecretRequest), "GetSecretValue", **request)
        if not self.opens(version):
            return self.refused(errors.SecretDecryptionFailure, "GetSecretValue", **request)
        found = self.call("GetSecretValue", **request)
        assert (found["VersionId"], set(found["VersionStages"])) == (vid, version.stages)
        assert found.get("SecretBinary" if isinstance(version.value, bytes) else "SecretString") == version.value

    @invariant()
    def all_are_told(self):
        if not hasattr(self, "known"):
            return
        listed = {one["Name"]: one for one in self.call("ListSecrets", IncludePlannedDeletion=True)["SecretList"]}
        assert listed.keys() == self.known.keys()
        for name, known in self.known.items():
            staged = {vid: set(found) for vid, found in (listed[name].get("SecretVersionsToStages") or {}).items()}
            assert staged == {vid: version.stages for vid, version in known.versions.items() if version.stages}
            # No stage is at two versions, and no secret has values and no current one.
            placed = [stage for version in known.versions.values() for stage in version.stages]
            assert len(placed) == len(set(placed))
            versions, token = [], {}
            while token is not None:
                page = self.call("ListSecretVersionIds", SecretId=name, IncludeDeprecated=True, **token)
                versions += page["Versions"]
                token = {"NextToken": page["NextToken"]} if page.get("NextToken") else None
            assert {one["VersionId"]: one.get("KmsKeyIds") or [] for one in versions} == {
                vid: version.keys for vid, version in known.versions.items()
            }

    def teardown(self):
        """What a restart would read is what the daemon holds, and each value that is told of is there, and no other."""
        store = self.world.daemon._secrets._store
        stored = {row["arn"]: secret_of(row) for row in store._store.scan(Table.SECRET)}
        assert {arn: (one.versions, one.deletion, one.key) for arn, one in stored.items()} == {
            one.arn: (one.versions, one.deletion, one.key) for one in store.everything()
        }
        held = {(row["arn"], row["id"]) for row in store._store.scan(Table.SECRET_VERSION)}
        assert held == {(one.arn, version.version_id) for one in stored.values() for version in one.versions if version.key_arn}


COUNTER = itertools.count(1)
EXAMPLES = int(os.environ.get("KMSFS_EXAMPLES", "12"))


def test_secrets_are_as_their_model_says(tmp_path):
    compare(SecretVersions, tmp_path, EXAMPLES, 60)
