"""A secret that gets another KMS key, and what is left in the state of versions that go."""

import pytest
from kmsd.keys.material import material_id
from kmsd.store.schema import Table

from kmsfs import errors
from support.realmworld import World


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.fixture
def call(world):
    return lambda operation, **parameters: world.call("us-east-1", operation, **parameters)


@pytest.fixture
def keys(call):
    return [call("CreateKey")["KeyMetadata"]["Arn"] for _ in range(2)]


def token(number):
    return f"00000000-0000-4000-8000-{number:012}"


def value(call, **more):
    return call("GetSecretValue", SecretId="s", **more)["SecretString"]


def rows(world):
    return {row["id"] for row in world.daemon._secrets._store._store.scan(Table.SECRET_VERSION)}


@pytest.mark.parametrize("with_value", [False, True])
def test_what_is_staged_is_sealed_under_the_new_key_and_stays_under_the_old_one(world, call, keys, with_value):
    old, new = keys
    call("CreateSecret", Name="s", SecretString="first", KmsKeyId=old, ClientRequestToken=token(1))
    call("PutSecretValue", SecretId="s", SecretString="second", ClientRequestToken=token(2))
    call("PutSecretValue", SecretId="s", SecretString="third", ClientRequestToken=token(3))
    more = {"SecretString": "fourth", "ClientRequestToken": token(4)} if with_value else {}
    call("UpdateSecret", SecretId="s", KmsKeyId=new, **more)
    found = {one["VersionId"]: one["KmsKeyIds"] for one in call("ListSecretVersionIds", SecretId="s", IncludeDeprecated=True)["Versions"]}
    # The first has none of AWS's stages; the second was the previous one, and the third the current one, when the key changed.
    assert found == {token(1): [old], token(2): [new, old], token(3): [new, old], **({token(4): [new]} if with_value else {})}
    world.restart()
    staged = {"AWSCURRENT": "fourth", "AWSPREVIOUS": "third"} if with_value else {"AWSCURRENT": "third", "AWSPREVIOUS": "second"}
    for off in keys:
        call("DisableKey", KeyId=off)
        for stage, text in staged.items():
            if off == new and text == "fourth":
                with pytest.raises(errors.SecretDecryptionFailure):
                    value(call, VersionStage=stage)
            else:
                assert value(call, VersionStage=stage) == text
        call("EnableKey", KeyId=off)
    call("DisableKey", KeyId=old)
    with pytest.raises(errors.SecretDecryptionFailure):
        value(call, VersionId=token(1))
    call("DisableKey", KeyId=new)
    with pytest.raises(errors.SecretDecryptionFailure):
        value(call)


def test_a_key_that_cannot_be_used_changes_nothing(call, keys):
    old, new = keys
    call("CreateSecret", Name="s", SecretString="first", KmsKeyId=old)
    call("DisableKey", KeyId=new)
    with pytest.raises(errors.SecretEncryptionFailure):
        call("UpdateSecret", SecretId="s", KmsKeyId=new)
    assert call("DescribeSecret", SecretId="s")["KmsKeyId"] == old and value(call) == "first"
    # What cannot be opened stays as it is, and the key is the new values'.
    call("EnableKey", KeyId=new)
    call("DisableKey", KeyId=old)
    call("UpdateSecret", SecretId="s", KmsKeyId=new)
    assert call("ListSecretVersionIds", SecretId="s")["Versions"][0]["KmsKeyIds"] == [old]
    call("PutSecretValue", SecretId="s", SecretString="second")
    assert value(call) == "second"


def test_a_repeated_value_with_another_key_or_description(call, keys):
    old, new = keys
    call("CreateSecret", Name="s", SecretString="first", KmsKeyId=old, ClientRequestToken=token(1))
    call("UpdateSecret", SecretId="s", SecretString="first", ClientRequestToken=token(1), KmsKeyId=new, Description="told")
    described = call("DescribeSecret", SecretId="s")
    assert (described["Description"], described["KmsKeyId"]) == ("told", new)
    [version] = call("ListSecretVersionIds", SecretId="s")["Versions"]
    assert version["KmsKeyIds"] == [new, old] and value(call) == "first"
    call("DisableKey", KeyId=old)
    assert value(call) == "first"
    call("UpdateSecret", SecretId="s", KmsKeyId="")
    assert "KmsKeyId" not in call("DescribeSecret", SecretId="s") and value(call) == "first"


def test_old_material_stays_while_a_value_is_under_it_beside_the_new_key(world, call, keys):
    old, new = keys
    call("CreateSecret", Name="s", SecretString="first", KmsKeyId=old)
    call("UpdateSecret", SecretId="s", KmsKeyId=new)
    key = world.daemon._registry.keys[old.rpartition("/")[2]]
    first = material_id(key.materials[1])
    call("RotateKeyOnDemand", KeyId=old)
    with pytest.raises(errors.MaterialInUse):
        call("DestroyKeyMaterial", KeyId=old, KeyMaterialId=first)
    call("DeleteSecret", SecretId="s", ForceDeleteWithoutRecovery=True)
    call("DestroyKeyMaterial", KeyId=old, KeyMaterialId=first)


def test_a_rotation_that_pushes_an_old_version_out_leaves_nothing_of_it(world, call):
    call("CreateSecret", Name="s", SecretString="first", ClientRequestToken=token(1))
    for number in range(2, 101):
        call("PutSecretValue", SecretId="s", SecretString="x", ClientRequestToken=token(number))
    assert len(rows(world)) == 100
    call("RotateSecret", SecretId="s", RotationLambdaARN="rotator", ClientRequestToken=token(101))
    assert token(1) not in rows(world) and len(rows(world)) == 99
    call("DeleteSecret", SecretId="s", ForceDeleteWithoutRecovery=True)
    assert rows(world) == set()


def test_no_stage_is_at_two_versions(call):
    call("CreateSecret", Name="s", SecretString="first", ClientRequestToken=token(1))
    stages = ["AWSCURRENT", "AWSPREVIOUS"]
    answer = call("PutSecretValue", SecretId="s", SecretString="second", ClientRequestToken=token(2), VersionStages=stages)
    assert answer["VersionStages"] == ["AWSCURRENT"]
    assert call("DescribeSecret", SecretId="s")["VersionIdsToStages"] == {token(1): ["AWSPREVIOUS"], token(2): ["AWSCURRENT"]}
