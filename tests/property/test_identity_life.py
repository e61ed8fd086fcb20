"""Users, groups and roles against a model: whom policies, grants and trust mean while names come, go and change, over restarts."""

import itertools
import json
import os
from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from kmsfs import errors
from kmsfs.ids import root_principal
from support.realmworld import RealmMachine, compare

# Few names, two of which are one but for their case.
names = st.sampled_from(("ann", "Ann", "bob", "eve"))
paths = st.sampled_from(("/", "/", "/team/"))
kinds = st.sampled_from(("User", "Role"))
numbers = itertools.count()


class Known:
    """A user or role; who is gone is known by the id."""

    def __init__(self, kind, made):
        self.kind, self.name, self.path, self.arn, self.id = kind, made[f"{kind}Name"], made["Path"], made["Arn"], made[f"{kind}Id"]
        self.gone, self.groups, self.keys, self.trusts = False, set(), [], None

    @property
    def written(self):
        return self.id if self.gone else self.arn


class IdentityLife(RealmMachine):
    def begin(self):
        for kind in ("User", "Role", "Group"):
            while found := self.call(f"List{kind}s", MaxItems=1000)[f"{kind}s"]:
                for each in found:
                    self.clear(kind, each[f"{kind}Name"])
        self.people, self.groups = {}, {}
        me = self.call("GetCallerIdentity")["Arn"]
        self.mine = {"Effect": "Allow", "Principal": {"AWS": me}, "Action": "kms:*", "Resource": "*"}
        self.keys = [self.call("CreateKey")["KeyMetadata"]["KeyId"] for _ in range(2)]
        self.named = {key: [] for key in self.keys}
        self.grants = {key: {} for key in self.keys}
        # Somebody is there from the beginning, and is named, so that what comes matters.
        for kind, name in (("User", "ann"), ("User", "bob"), ("Role", "eve"), ("Role", "ann")):
            self.create(kind, name, "/")
        self.membership("ann", "g", True)
        self.access_key("ann")
        self.policy(0, [("User", "ann"), ("Role", "eve")], True)
        self.policy(1, [("User", "ann"), ("User", "bob")], False)
        self.grant(0, ("User", "ann"), ("User", "bob"))
        self.grant(1, ("Role", "eve"), ("User", "ann"))
        self.trusts("eve", [("User", "ann"), ("User", "bob"), ("Role", "ann")])

    def call(self, operation, **parameters):
        """As an administrator of the daemon: identities are theirs."""
        me = self.world.me
        if not me.root:
            self.world.me = replace(me, root=True, principals=me.principals | {root_principal(me.account)})
        return super().call(operation, **parameters)

    def clear(self, kind, name):
        if kind == "User":
            for key in self.call("ListAccessKeys", UserName=name)["AccessKeyMetadata"]:
                self.call("DeleteAccessKey", UserName=name, AccessKeyId=key["AccessKeyId"])
            for group in self.call("ListGroupsForUser", UserName=name)["Groups"]:
                self.call("RemoveUserFromGroup", UserName=name, GroupName=group["GroupName"])
        self.call(f"Delete{kind}", **{f"{kind}Name": name})

    def who(self, kind, name):
        return self.people.get((kind, name.casefold()))

    # --- coming, going, changing ---

    @rule(kind=kinds, name=names, path=paths)
    def create(self, kind, name, path):
        trust = {"AssumeRolePolicyDocument": self.trust([])} if kind == "Role" else {}
        request = {f"{kind}Name": name, "Path": path, **trust}
        if self.who(kind, name):
            return self.refused(errors.EntityAlreadyExists, f"Create{kind}", **request)
        known = self.people[kind, name.casefold()] = Known(kind, self.call(f"Create{kind}", **request)[kind])
        if kind == "Role":
            known.trusts = []
        return None

    @rule(kind=kinds, name=names)
    def delete(self, kind, name):
        known = self.who(kind, name)
        if known is None:
            return self.refused(errors.NoSuchEntity, f"Delete{kind}", **{f"{kind}Name": name})
        if known.groups or known.keys:
            self.refused(errors.DeleteConflict, f"Delete{kind}", **{f"{kind}Name": name})
        self.clear(kind, name)
        known.gone = True
        for group in known.groups:
            self.groups[group].discard(known)
        del self.people[kind, name.casefold()]
        return None

    @rule(name=names, new=st.none() | names, path=st.none() | paths)
    def rename(self, name, new, path):
        known = self.who("User", name)
        request = {"UserName": name, **({"NewUserName": new} if new else {}), **({"NewPath": path} if path else {})}
        if known is None:
            return self.refused(errors.NoSuchEntity, "UpdateUser", **request)
        if new and self.who("User", new) not in (None, known):
            return self.refused(errors.EntityAlreadyExists, "UpdateUser", **request)
        self.call("UpdateUser", **request)
        del self.people["User", known.name.casefold()]
        known.name, known.path = new or known.name, path or known.path
        account = known.arn.split(":")[4]
        known.arn = f"arn:kmsfs:iam::{account}:user{known.path}{known.name}"
        self.people["User", known.name.casefold()] = known
        return None

    @rule(name=names, group=st.sampled_from(("g", "h")), joins=st.booleans())
    def membership(self, name, group, joins):
        known = self.who("User", name)
        group = self.spelled(group) or group
        if group not in self.groups:
            self.call("CreateGroup", GroupName=group)
            self.groups[group] = set()
        if known is not None:
            self.call("AddUserToGroup" if joins else "RemoveUserFromGroup", UserName=name, GroupName=group)
            (self.groups[group].add if joins else self.groups[group].discard)(known)
            (known.groups.add if joins else known.groups.discard)(group)

    @rule(old=st.sampled_from(("g", "h")), new=st.sampled_from(("g", "h", "G", "i")))
    def rename_group(self, old, new):
        old = self.spelled(old)
        if old is None:
            return
        if self.spelled(new) not in (None, old):
            self.refused(errors.EntityAlreadyExists, "UpdateGroup", GroupName=old, NewGroupName=new)
            return
        self.call("UpdateGroup", GroupName=old, NewGroupName=new)
        self.groups[new] = self.groups.pop(old)
        for known in self.groups[new]:
            known.groups = (known.groups - {old}) | {new}

    def spelled(self, group):
        """The name of a group as it was given."""
        return next((name for name in self.groups if name.casefold() == group.casefold()), None)

    @rule(name=names)
    def access_key(self, name):
        known = self.who("User", name)
        if known is not None and len(known.keys) < 2:
            known.keys.append(self.call("CreateAccessKey", UserName=name)["AccessKey"]["AccessKeyId"])

    # --- naming them ---

    @rule(at=st.integers(0, 1), chosen=st.lists(st.tuples(kinds, names), max_size=3), excepted=st.booleans())
    def policy(self, at, chosen, excepted):
        found = [known for kind, name in chosen if (known := self.who(kind, name))]
        statements = [self.mine]
        if found:
            effect, element = ("Deny", "NotPrincipal") if excepted else ("Allow", "Principal")
            statements.append({"Effect": effect, element: {"AWS": [known.arn for known in found]}, "Action": "kms:Sign", "Resource": "*"})
        self.call("PutKeyPolicy", KeyId=self.keys[at], Policy=json.dumps({"Version": "2012-10-17", "Statement": statements}))
        self.named[self.keys[at]] = found

    @rule(at=st.integers(0, 1), grantee=st.tuples(kinds, names), retiring=st.none() | st.tuples(kinds, names))
    def grant(self, at, grantee, retiring):
        to, by = self.who(*grantee), self.who(*retiring) if retiring else None
        if to is not None:
            more = {"RetiringPrincipal": by.arn} if by else {}
            made = self.call("CreateGrant", KeyId=self.keys[at], GranteePrincipal=to.arn, Operations=["Decrypt"], Name=f"g{next(numbers)}", **more)
            self.grants[self.keys[at]][made["GrantId"]] = (to, by)

    @rule(role=names, chosen=st.lists(st.tuples(kinds, names), max_size=2))
    def trusts(self, role, chosen):
        known, found = self.who("Role", role), [each for kind, name in chosen if (each := self.who(kind, name))]
        if known is not None:
            self.call("UpdateAssumeRolePolicy", RoleName=role, PolicyDocument=self.trust(found))
            known.trusts = found

    def trust(self, found):
        named = [known.arn for known in found] or [self.call("GetCallerIdentity")["Arn"]]
        return json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"AWS": named}, "Action": "sts:AssumeRole"}]})

    @rule()
    def restart(self):
        self.world.restart()

    # --- what is so ---

    @invariant()
    def everybody_is_there_under_his_name(self):
        if not hasattr(self, "people"):
            return
        for kind in ("User", "Role"):
            found = {each[f"{kind}Name"]: (each["Arn"], each[f"{kind}Id"]) for each in self.call(f"List{kind}s", MaxItems=1000)[f"{kind}s"]}
            assert found == {known.name: (known.arn, known.id) for (of, _), known in self.people.items() if of == kind}
        for (kind, _), known in self.people.items():
            if kind == "User":
                assert {each["AccessKeyId"] for each in self.call("ListAccessKeys", UserName=known.name)["AccessKeyMetadata"]} == set(known.keys)
                assert {each["GroupName"] for each in self.call("ListGroupsForUser", UserName=known.name)["Groups"]} == known.groups
        for group, members in self.groups.items():
            assert {each["UserId"] for each in self.call("GetGroup", GroupName=group)["Users"]} == {known.id for known in members}

    @invariant()
    def who_is_meant_is_who_was_meant(self):
        if not hasattr(self, "people"):
            return
        for key in self.keys:
            statements = json.loads(self.call("GetKeyPolicy", KeyId=key)["Policy"])["Statement"]
            written = (statements[1].get("Principal") or statements[1]["NotPrincipal"])["AWS"] if len(statements) > 1 else []
            assert written == [known.written for known in self.named[key]]
            listed = {each["GrantId"]: (each["GranteePrincipal"], each.get("RetiringPrincipal")) for each in self.call("ListGrants", KeyId=key, Limit=1000)["Grants"]}
            assert listed == {grant: (to.written, by.written if by else None) for grant, (to, by) in self.grants[key].items()}
        for (kind, _), known in self.people.items():
            if kind == "Role" and known.trusts:
                document = json.loads(self.call("GetRole", RoleName=known.name)["Role"]["AssumeRolePolicyDocument"])
                assert document["Statement"][0]["Principal"]["AWS"] == [each.written for each in known.trusts]


EXAMPLES = int(os.environ.get("KMSFS_EXAMPLES", "12"))


def test_identities_are_as_a_model_says(tmp_path):
    compare(IdentityLife, tmp_path, EXAMPLES, 40)
