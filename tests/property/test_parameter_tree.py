"""The parameter tree against a model of it: versions, labels, tiers, selectors, paths, policies and time, in any order."""

import base64
import datetime
import itertools
import json

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from kmsd.parameters.index import ParameterIndex
from kmsd.parameters.records import facts_of
from kmsd.store.schema import Table
from kmsfs import errors
from support.realmworld import RealmMachine, compare

NAMES = ("/a", "/a/b", "/a/b/c", "/a/bc", "/d/e", "plain")
LABELS = ("prod", "test", "old")
DAY = 86_400.0
KEPT = 100
names = st.sampled_from(NAMES)
labels = st.sampled_from(LABELS)


class Known:
    """What the model keeps of one parameter."""

    def __init__(self, kind):
        self.kind = kind
        self.tier = "Standard"
        self.versions = {}
        self.labels = {}
        self.expires = None

    @property
    def newest(self):
        return max(self.versions)


class ParameterTree(RealmMachine):
    def begin(self):
        self.known = {}

    def live(self, name):
        known = self.known.get(name)
        return known if known is not None and (known.expires is None or known.expires > self.world.now) else None

    # --- writing ---

    @rule(
        name=names, kind=st.sampled_from(("String", "SecureString", "StringList")), size=st.sampled_from((1, 4096, 4097, 8192, 8193)),
        tier=st.sampled_from((None, "Standard", "Advanced", "Intelligent-Tiering")), overwrite=st.booleans(),
        days=st.sampled_from((None, None, None, 1, 30)), keep_kind=st.booleans(),
    )  # fmt: skip
    def put(self, name, kind, size, tier, overwrite, days, keep_kind):
        known = self.live(name)
        if known is not None and keep_kind:
            kind = known.kind
        value = f"{next(COUNTER)}:".ljust(size, "v")[:size]
        request = {"Name": name, "Value": value, "Type": kind, "Overwrite": overwrite}
        expires = self.world.now + days * DAY if days else None
        if tier:
            request["Tier"] = tier
        if days:
            moment = datetime.datetime.fromtimestamp(expires, datetime.UTC).isoformat()
            request["Policies"] = json.dumps([{"Type": "Expiration", "Version": "1.0", "Attributes": {"Timestamp": moment}}])
        has_policies = bool(days) or (known is not None and known.expires is not None)
        present = known.tier if known is not None else None
        if tier == "Intelligent-Tiering":
            wanted = "Advanced" if present == "Advanced" or has_policies or size > 4096 else "Standard"
        else:
            wanted = tier or present or "Standard"
        if known is not None and not overwrite:
            return self.refused(errors.ParameterAlreadyExists, "PutParameter", **request)
        if known is not None and kind != known.kind:
            return self.refused(errors.HierarchyTypeMismatch, "PutParameter", **request)
        too_large = size > (8192 if wanted == "Advanced" else 4096)
        if (present == "Advanced" and wanted == "Standard") or (has_policies and wanted == "Standard") or too_large:
            return self.refused(errors.InvalidRequest, "PutParameter", **request)
        if known is not None and known.newest - KEPT + 1 in known.labels.values():
            return self.refused(errors.ParameterMaxVersionLimit, "PutParameter", **request)
        answer = self.call("PutParameter", **request)
        known = known if known is not None else Known(kind)
        version = known.newest + 1 if known.versions else 1
        known.tier, known.versions[version] = wanted, value
        known.versions.pop(version - KEPT, None)
        known.expires = expires or known.expires
        self.known[name] = known
        assert answer == {"Version": version, "Tier": wanted}

    @rule(name=names, count=st.sampled_from((3, 97, 99)))
    def put_many(self, name, count):
        for _ in range(count):
            self.put(name, "String", 1, None, True, None, True)

    @rule(name=names)
    def delete(self, name):
        if self.live(name) is None:
            self.refused(errors.ParameterNotFound, "DeleteParameter", Name=name)
        else:
            self.call("DeleteParameter", Name=name)
            del self.known[name]

    @rule(name=names, wanted=st.lists(labels, min_size=1, unique=True), back=st.sampled_from((0, 0, 1, 98, 99, 100)))
    def label(self, name, wanted, back):
        known = self.live(name)
        version = known.newest - back if known is not None else 1
        request = {"Name": name, "ParameterVersion": version, "Labels": wanted}
        if known is None:
            self.refused(errors.ParameterNotFound, "LabelParameterVersion", **request)
        elif version not in known.versions:
            self.refused((errors.ParameterVersionNotFound, errors.InvalidRequest), "LabelParameterVersion", **request)
        else:
            assert self.call("LabelParameterVersion", **request)["InvalidLabels"] == []
            known.labels.update(dict.fromkeys(wanted, version))

    @rule(name=names, label=labels)
    def unlabel(self, name, label):
        known = self.live(name)
        if known is not None and label in known.labels:
            version = known.labels.pop(label)
            answer = self.call("UnlabelParameterVersion", Name=name, ParameterVersion=version, Labels=[label, "absent"])
            assert answer == {"RemovedLabels": [label], "InvalidLabels": ["absent"]}

    @rule(days=st.sampled_from((0.5, 2, 29)), upkeep=st.booleans())
    def time_passes(self, days, upkeep):
        self.world.now += days * DAY
        if upkeep:
            self.world.daemon._parameters.act_on_policies(self.world.now)

    # --- reading ---

    @rule(name=names, back=st.integers(0, 120), label=st.none() | labels, decrypt=st.booleans())
    def get(self, name, back, label, decrypt):
        known = self.live(name)
        version = known.labels.get(label, 0) if known is not None and label else known.newest - back if known is not None else 1
        selector = f":{label}" if label else f":{version}" if back else ""
        request = {"Name": name + selector, "WithDecryption": decrypt}
        if known is None:
            return self.refused(errors.ParameterNotFound, "GetParameter", **request)
        if version not in known.versions:
            return self.refused((errors.ParameterVersionNotFound, errors.InvalidRequest), "GetParameter", **request)
        found = self.call("GetParameter", **request)["Parameter"]
        assert (found["Name"], found["Type"], found["Version"], found.get("Selector") or "") == (name, known.kind, version, selector)
        if known.kind == "SecureString" and not decrypt:
            assert known.versions[version].encode() not in base64.b64decode(found["Value"])
        else:
            assert found["Value"] == known.versions[version]

    @precondition(lambda self: self.known)
    @rule(data=st.data(), size=st.integers(1, 50))
    def history(self, data, size):
        name = data.draw(st.sampled_from(sorted(self.known)))
        known, found, token = self.live(name), [], {}
        if known is None:
            return self.refused(errors.ParameterNotFound, "GetParameterHistory", Name=name)
        while token is not None:
            page = self.call("GetParameterHistory", Name=name, WithDecryption=True, MaxResults=size, **token)
            found += page["Parameters"]
            token = {"NextToken": page["NextToken"]} if page.get("NextToken") else None
        assert {entry["Version"]: entry["Value"] for entry in found} == known.versions
        for entry in found:
            assert entry["Labels"] == sorted(label for label, at in known.labels.items() if at == entry["Version"])

    @rule(path=st.sampled_from(("/", "/a", "/a/b", "/d", "/none")), recursive=st.booleans(), size=st.integers(1, 3))
    def by_path(self, path, recursive, size):
        prefix = path.rstrip("/") + "/"
        wanted = [
            name for name in sorted(self.known)
            if self.live(name) is not None and f"/{name.lstrip('/')}".startswith(prefix)
            and (recursive or "/" not in f"/{name.lstrip('/')}"[len(prefix):])
        ]  # fmt: skip
        found, token = [], {}
        while token is not None:
            page = self.call("GetParametersByPath", Path=path, Recursive=recursive, MaxResults=size, **token)
            found += [parameter["Name"] for parameter in page["Parameters"]]
            token = {"NextToken": page["NextToken"]} if page.get("NextToken") else None
        assert sorted(found) == wanted

    @invariant()
    def all_are_described(self):
        if not hasattr(self, "known"):
            return
        described = {one["Name"]: (one["Type"], one["Version"], one["Tier"]) for one in self.call("DescribeParameters")["Parameters"]}
        assert described == {
            name: (known.kind, known.newest, known.tier) for name, known in self.known.items() if self.live(name) is not None
        }

    def teardown(self):
        """What a restart would read is what the daemon holds."""
        parameters = self.world.daemon._parameters
        stored = ParameterIndex(facts_of(row, parameters._home) for row in parameters._store.scan(Table.PARAMETER))
        assert {(one.scope, one.name): one for one in stored.everything()} == {
            (one.scope, one.name): one for one in parameters._tree.everything()
        }


COUNTER = itertools.count(1)


def test_the_tree_is_as_its_model_says(tmp_path):
    compare(ParameterTree, tmp_path, 40, 30)
