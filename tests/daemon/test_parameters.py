"""The parameter tree over a real socket."""

import base64
import json

import pytest

from kmsfs import errors
from support.peers import as_user


def test_types_versions_and_selectors(call):
    assert call("PutParameter", Name="/t/plain", Value="one", Type="String")["Version"] == 1
    with pytest.raises(errors.ParameterAlreadyExists):
        call("PutParameter", Name="/t/plain", Value="two", Type="String")
    with pytest.raises(errors.HierarchyTypeMismatch):
        call("PutParameter", Name="/t/plain", Value="two", Type="SecureString", Overwrite=True)
    assert call("PutParameter", Name="/t/plain", Value="two", Overwrite=True)["Version"] == 2
    assert call("GetParameter", Name="/t/plain")["Parameter"]["Value"] == "two"
    first = call("GetParameter", Name="/t/plain:1")["Parameter"]
    assert (first["Value"], first["Selector"], first["Version"]) == ("one", ":1", 1)
    with pytest.raises(errors.ParameterVersionNotFound):
        call("GetParameter", Name="/t/plain:3")
    call("PutParameter", Name="list", Value="a,b", Type="StringList")
    assert call("GetParameter", Name="list")["Parameter"]["ARN"].endswith(":parameter/list")
    with pytest.raises(errors.InvalidRequest):
        call("PutParameter", Name="/t/none", Value="x")


@pytest.mark.parametrize("tier", ["Standard", "Advanced"])
def test_secure_strings(call, tier):
    name = f"/s/{tier}"
    value = "pässword" * (500 if tier == "Advanced" else 10)
    call("PutParameter", Name=name, Value=value, Type="SecureString", Tier=tier)
    assert call("GetParameter", Name=name, WithDecryption=True)["Parameter"]["Value"] == value
    sealed = base64.b64decode(call("GetParameter", Name=name)["Parameter"]["Value"])
    assert value.encode()[:16] not in sealed
    arn = call("GetParameter", Name=name)["Parameter"]["ARN"]
    if tier == "Standard":
        # What AWS promises: the owner opens the ciphertext with KMS alone.
        opened = call("Decrypt", CiphertextBlob=sealed, EncryptionContext={"PARAMETER_ARN": arn})
        assert opened["Plaintext"].decode() == value
    else:
        assert sealed[:3] == b"\x02\x04\x78"
        with pytest.raises(errors.InvalidRequest, match="downgrade"):
            call("PutParameter", Name=name, Value="x", Tier="Standard", Overwrite=True)


def test_limits(call):
    for size, tier in ((4097, "Standard"), (8193, "Advanced")):
        with pytest.raises(errors.InvalidRequest):
            call("PutParameter", Name="/l/big", Value="x" * size, Type="String", Tier=tier)
    assert call("PutParameter", Name="/l/smart", Value="x" * 4097, Type="String", Tier="Intelligent-Tiering")["Tier"] == "Advanced"
    with pytest.raises(errors.HierarchyLevelLimit):
        call("PutParameter", Name="/x" * 16, Value="x", Type="String")
    with pytest.raises(errors.ParameterPatternMismatch):
        call("PutParameter", Name="/l/p", Value="abc", Type="String", AllowedPattern="^[0-9]+$")
    with pytest.raises(errors.InvalidRequest):
        call("PutParameter", Name="/l/k", Value="abc", Type="String", KeyId="alias/x")
    with pytest.raises(errors.InvalidRequest):
        call("PutParameter", Name="/l/e", Value="", Type="String")


def test_a_name_of_one_level_is_one_parameter_with_its_slash_or_without(call):
    for made, other in (("/slash", "slash"), ("bare", "/bare")):
        call("PutParameter", Name=made, Value="one", Type="String", Description="kept", AllowedPattern="[a-z]+")
        assert call("GetParameter", Name=other)["Parameter"]["Name"] == made
        assert call("GetParameter", Name=call("GetParameter", Name=made)["Parameter"]["ARN"])["Parameter"]["Name"] == made
        with pytest.raises(errors.ParameterAlreadyExists):
            call("PutParameter", Name=other, Value="two", Type="String")
        assert call("PutParameter", Name=other, Value="two", Overwrite=True)["Version"] == 2
        assert call("GetParameters", Names=[other, other])["Parameters"][0]["Name"] == made
        assert call("DeleteParameters", Names=[other])["DeletedParameters"] == [other]
        with pytest.raises(errors.ParameterNotFound):
            call("GetParameter", Name=made)
    call("PutParameter", Name="/deep/one", Value="x", Type="String")
    with pytest.raises(errors.ParameterNotFound):
        call("GetParameter", Name="deep/one")


def test_what_an_overwrite_does_not_say_is_kept(call):
    call("PutParameter", Name="/o/x", Value="abc", Type="String", Description="kept", AllowedPattern="[a-z]+")
    call("PutParameter", Name="/o/x", Value="def", Overwrite=True)
    entry = call("DescribeParameters", ParameterFilters=[{"Key": "Name", "Values": ["/o/x"]}])["Parameters"][0]
    assert (entry["Description"], entry["AllowedPattern"]) == ("kept", "[a-z]+")
    with pytest.raises(errors.ParameterPatternMismatch):
        call("PutParameter", Name="/o/x", Value="123", Overwrite=True)
    call("PutParameter", Name="/o/x", Value="ghi", Overwrite=True, Description="", AllowedPattern="")
    entry = call("DescribeParameters", ParameterFilters=[{"Key": "Name", "Values": ["/o/x"]}])["Parameters"][0]
    assert "Description" not in entry and "AllowedPattern" not in entry


def test_texts_of_names_selectors_and_filters(call):
    call("PutParameter", Name="/texts", Value="x", Type="String", Tags=[{"Key": "crew", "Value": "blue"}])

    def refused(operation, **parameters):
        with pytest.raises(errors.KmsfsError) as caught:
            call(operation, **parameters)
        return caught.value.detail

    assert "reserved parameter name: /aws/x." in refused("PutParameter", Name="/aws/x", Value="x", Type="String")
    assert "3 symbols .-_" in refused("PutParameter", Name="/ssm/x", Value="x", Type="String")
    assert refused("GetParameter", Name="/texts:1:2") == "Parameter /texts:1:2 not found."
    assert refused("GetParameter", Name="/none:7") == "Parameter /none:7 not found."
    assert refused("GetParameter", Name="/texts:7").endswith("version 7 of /texts. Verify the version and try again.")
    filtered = lambda *filters: refused("DescribeParameters", ParameterFilters=list(filters))  # noqa: E731
    assert "[Path, Name, Type, KeyId, Tier]" in filtered({"Key": "Label", "Values": ["x"]})
    assert "[BeginsWith, Equals]." in filtered({"Key": "Name", "Option": "x", "Values": ["x"]})
    assert "Member must satisfy constraint: [Member must have length less than or equal to 1024" in filtered(
        {"Key": "Name", "Values": ["t" * 1025]}
    )
    assert "must begin with a forward slash" in filtered({"Key": "Path", "Values": ["//"]})
    begins = [{"Key": "tag:crew", "Option": "BeginsWith", "Values": ["bl"]}]
    assert [p["Name"] for p in call("DescribeParameters", ParameterFilters=begins)["Parameters"]] == ["/texts"]
    contains = [{"Key": "Name", "Option": "Contains", "Values": ["/tex"]}]
    assert [p["Name"] for p in call("DescribeParameters", ParameterFilters=contains)["Parameters"]] == ["/texts"]


def test_a_hundred_versions_are_kept(call):
    for number in range(103):
        call("PutParameter", Name="/v/many", Value=str(number), Type="String", Overwrite=True)
    with pytest.raises(errors.ParameterVersionNotFound):
        call("GetParameter", Name="/v/many:3")
    assert call("GetParameter", Name="/v/many:4")["Parameter"]["Value"] == "3"
    found, token = [], None
    while True:
        page = call("GetParameterHistory", Name="/v/many", MaxResults=40, **({"NextToken": token} if token else {}))
        found += [entry["Version"] for entry in page["Parameters"]]
        token = page.get("NextToken")
        if not token:
            break
    assert found == list(range(4, 104))


def test_tree(call):
    for name in ("/tree/a", "/tree/b", "/tree/c/d", "/treehouse"):
        call("PutParameter", Name=name, Value=name, Type="String")
    names = lambda **more: [p["Name"] for p in call("GetParametersByPath", **more)["Parameters"]]
    assert names(Path="/tree") == ["/tree/a", "/tree/b"]
    assert names(Path="/tree/", Recursive=True) == ["/tree/a", "/tree/b", "/tree/c/d"]
    page = call("GetParametersByPath", Path="/tree", Recursive=True, MaxResults=2)
    rest = call("GetParametersByPath", Path="/tree", Recursive=True, NextToken=page["NextToken"])
    assert [p["Name"] for p in rest["Parameters"]] == ["/tree/c/d"]
    with pytest.raises(errors.InvalidNextToken):
        call("GetParametersByPath", Path="/tree", NextToken="rubbish")
    found = call("GetParameters", Names=["/tree/a", "/tree/none", "/tree/b:1"])
    assert found["InvalidParameters"] == ["/tree/none"] and len(found["Parameters"]) == 2
    described = call("DescribeParameters", ParameterFilters=[{"Key": "Name", "Option": "BeginsWith", "Values": ["/tree/"]}])
    assert len(described["Parameters"]) == 3 and "Value" not in described["Parameters"][0]
    with pytest.raises(errors.InvalidRequest):
        call("DescribeParameters", ParameterFilters=[{"Key": "Colour", "Values": ["x"]}])
    assert call("DeleteParameters", Names=["/tree/a", "/tree/zz"]) == {
        "DeletedParameters": ["/tree/a"], "InvalidParameters": ["/tree/zz"]
    }  # fmt: skip
    call("DeleteParameter", Name="/tree/b")
    with pytest.raises(errors.ParameterNotFound):
        call("GetParameter", Name="/tree/b")


def test_a_disabled_key_is_named(call):
    key = call("CreateKey")["KeyMetadata"]["KeyId"]
    call("PutParameter", Name="/k/x", Value="x", Type="SecureString", KeyId=key)
    call("DisableKey", KeyId=key)
    with pytest.raises(errors.InvalidKeyIdForParameter, match="is disabled"):
        call("GetParameter", Name="/k/x", WithDecryption=True)
    with pytest.raises(errors.InvalidKeyIdForParameter):
        call("PutParameter", Name="/k/y", Value="x", Type="SecureString", KeyId="alias/none")
    with pytest.raises(errors.ParameterNotFound):
        call("GetParameter", Name="/k/y")


@pytest.mark.root
def test_another_user_sees_neither_value_nor_name(daemon, call):
    call("PutParameter", Name="/mine/secret", Value="x", Type="SecureString")
    with as_user(daemon, 4321) as other:
        for operation in ("GetParameter", "GetParameterHistory", "DeleteParameter"):
            with pytest.raises(errors.ParameterNotFound) as seen:
                other(operation, Name="/mine/secret")
            with pytest.raises(errors.ParameterNotFound) as unseen:
                other(operation, Name="/mine/nothing")
            assert str(seen.value).replace("secret", "") == str(unseen.value).replace("nothing", "")
        assert other("GetParametersByPath", Path="/mine", Recursive=True)["Parameters"] == []
        with pytest.raises(errors.AccessDenied):
            other("PutParameter", Name="/mine/secret", Value="y", Overwrite=True)
        other("PutParameter", Name="/theirs", Value="z", Type="SecureString")
        assert other("GetParameter", Name="/theirs", WithDecryption=True)["Parameter"]["Value"] == "z"
    records = [json.loads(line) for line in (daemon.state / "audit" / "audit.jsonl").read_text().splitlines()]
    inner = [r for r in records if r.get("svc") == "ssm" and r["uid"] == 4321]
    outer = {r["req"] for r in records if r["op"] in ("PutParameter", "GetParameter") and r["uid"] == 4321}
    assert inner and {r["req"] for r in inner} <= outer
    assert not any("z" == value for r in records for value in r.get("params", {}).values())


def test_labels(daemon):
    session = daemon.session()
    call = lambda operation, **parameters: session.call(operation, parameters)
    for number in range(1, 4):
        call("PutParameter", Name="/l/p", Value=f"v{number}", Type="String", Overwrite=True)
    answer = call("LabelParameterVersion", Name="/l/p", ParameterVersion=1, Labels=["old", "1bad", "aws-x", "SSMx", "ok.1"])
    assert answer == {"InvalidLabels": ["1bad", "aws-x", "SSMx"], "ParameterVersion": 1}
    assert call("LabelParameterVersion", Name="/l/p", Labels=["prod"])["ParameterVersion"] == 3
    got = call("GetParameter", Name="/l/p:old")["Parameter"]
    assert (got["Value"], got["Selector"], got["Version"]) == ("v1", ":old", 1)
    assert call("GetParameters", Names=["/l/p:prod", "/l/p:none"]) ["InvalidParameters"] == ["/l/p:none"]
    # A label moves when another version gets it.
    call("LabelParameterVersion", Name="/l/p", ParameterVersion=2, Labels=["prod"])
    assert call("GetParameter", Name="/l/p:prod")["Parameter"]["Value"] == "v2"
    history = call("GetParameterHistory", Name="/l/p")["Parameters"]
    assert [entry["Labels"] for entry in history] == [["ok.1", "old"], ["prod"], []]
    removed = call("UnlabelParameterVersion", Name="/l/p", ParameterVersion=1, Labels=["old", "prod"])
    assert removed == {"RemovedLabels": ["old"], "InvalidLabels": ["prod"]}
    with pytest.raises(errors.ParameterVersionNotFound):
        call("GetParameter", Name="/l/p:old")
    with pytest.raises(errors.ParameterVersionNotFound):
        call("LabelParameterVersion", Name="/l/p", ParameterVersion=9, Labels=["x"])
    call("LabelParameterVersion", Name="/l/p", Labels=[f"l{n}" for n in range(10)])
    with pytest.raises(errors.ParameterVersionLabelLimit):
        call("LabelParameterVersion", Name="/l/p", Labels=["eleven"])
    by_label = call("GetParametersByPath", Path="/l", ParameterFilters=[{"Key": "Label", "Values": ["l3"]}])["Parameters"]
    assert [entry["Name"] for entry in by_label] == ["/l/p"]


def test_a_label_keeps_the_oldest_version(daemon):
    session = daemon.session()
    call = lambda operation, **parameters: session.call(operation, parameters)
    for number in range(100):
        call("PutParameter", Name="/l/full", Value=str(number), Type="String", Overwrite=True)
    call("LabelParameterVersion", Name="/l/full", ParameterVersion=1, Labels=["keep"])
    with pytest.raises(errors.ParameterMaxVersionLimit, match="Version 1, the oldest version, can't be deleted"):
        call("PutParameter", Name="/l/full", Value="x", Type="String", Overwrite=True)
    assert call("GetParameter", Name="/l/full")["Parameter"]["Version"] == 100
    call("UnlabelParameterVersion", Name="/l/full", ParameterVersion=1, Labels=["keep"])
    assert call("PutParameter", Name="/l/full", Value="x", Type="String", Overwrite=True)["Version"] == 101


def test_tags_of_parameters(daemon):
    session = daemon.session()
    call = lambda operation, **parameters: session.call(operation, parameters)
    call("PutParameter", Name="/t/p", Value="v", Type="String", Tags=[{"Key": "team", "Value": "red"}])
    target = {"ResourceType": "Parameter", "ResourceId": "/t/p"}
    call("AddTagsToResource", Tags=[{"Key": "team", "Value": "blue"}, {"Key": "stage", "Value": "x"}], **target)
    assert call("ListTagsForResource", **target)["TagList"] == [{"Key": "stage", "Value": "x"}, {"Key": "team", "Value": "blue"}]
    found = call("DescribeParameters", ParameterFilters=[{"Key": "tag:team", "Values": ["blue"]}])["Parameters"]
    assert [entry["Name"] for entry in found] == ["/t/p"]
    assert call("DescribeParameters", ParameterFilters=[{"Key": "tag:team", "Values": ["red"]}])["Parameters"] == []
    call("PutParameter", Name="/t/p", Value="w", Overwrite=True)
    assert len(call("ListTagsForResource", **target)["TagList"]) == 2
    call("RemoveTagsFromResource", TagKeys=["stage", "none"], **target)
    assert [tag["Key"] for tag in call("ListTagsForResource", **target)["TagList"]] == ["team"]
    with pytest.raises(errors.InvalidResourceId):
        call("ListTagsForResource", ResourceType="Parameter", ResourceId="/t/none")
    with pytest.raises(errors.InvalidResourceType):
        call("ListTagsForResource", ResourceType="Document", ResourceId="/t/p")
    with pytest.raises(errors.TooManyTags):
        call("AddTagsToResource", Tags=[{"Key": f"k{n}", "Value": ""} for n in range(51)], **target)
    with pytest.raises(errors.InvalidRequest, match="tags and overwrite can't be used together"):
        call("PutParameter", Name="/t/p", Value="w", Overwrite=True, Tags=[{"Key": "a", "Value": "b"}])
