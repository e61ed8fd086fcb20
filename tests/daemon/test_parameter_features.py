"""Parameter policies, references to secrets, data types and filters, as Systems Manager answers them."""

import datetime
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from kmsd.app import Daemon
from kmsd.authz.principal import make_caller
from kmsd.config import Config
from kmsd.parameters.index import ParameterIndex
from kmsd.parameters.policies import expiration_of, notices_due, read_policies
from kmsd.parameters.records import ParameterFacts
from kmsd.parameters.tier import ParameterLimits, parse_limits
from kmsd.realm import initialise, open_realm
from kmsd.root.keyring import SealType
from kmsfs import errors
from kmsfs.formats.frame import Request


def moment(days):
    return (datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)).isoformat()


def policy(kind, **attributes):
    return {"Type": kind, "Version": "1.0", "Attributes": attributes}


def test_policies_read_and_due():
    text = json.dumps([
        policy("Expiration", Timestamp="2030-01-11T00:00:00.000Z"),
        policy("ExpirationNotification", Before="10", Unit="Days"),
        policy("NoChangeNotification", After="2", Unit="Hours"),
    ])  # fmt: skip
    expires = datetime.datetime(2030, 1, 11, tzinfo=datetime.UTC).timestamp()
    policies = read_policies(text, 1000.0)
    assert expiration_of(policies) == expires
    assert notices_due(policies, 0, 1000.0) == []
    assert notices_due(policies, 0, 1000.0 + 7200) == [(4, "NoChangeNotification")]
    assert notices_due(policies, 4, expires - 10 * 86_400) == [(2, "ExpirationNotification")]
    assert notices_due(policies, 6, expires) == [] and read_policies("[{}]", 0) == []


@pytest.mark.parametrize(
    ("items", "error"),
    [
        ("{", errors.InvalidParameterPolicyType),
        ("7", errors.InvalidParameterPolicyType),
        ([policy("Other")], errors.InvalidParameterPolicyType),
        ([{"Type": "Expiration", "Version": "2.0", "Attributes": {}}], errors.InvalidParameterPolicyType),
        ([policy("Expiration", Timestamp="soon")], errors.InvalidParameterPolicyAttribute),
        ([policy("Expiration", Timestamp="2030-01-01T00:00:00")], errors.InvalidParameterPolicyAttribute),
        ([policy("NoChangeNotification", After="-1", Unit="Days")], errors.InvalidParameterPolicyAttribute),
        ([policy("NoChangeNotification", After="1", Unit="Weeks")], errors.InvalidParameterPolicyAttribute),
        ([policy("ExpirationNotification", Before="1", Unit="Days")], errors.IncompatibleParameterPolicy),
        ([policy("Expiration", Timestamp="2030-01-01T00:00:00Z")] * 2, errors.IncompatibleParameterPolicy),
        ([policy("NoChangeNotification", After="1", Unit="Days")] * 11, errors.ParameterPoliciesLimit),
    ],
)
def test_policies_that_are_none(items, error):
    with pytest.raises(error):
        read_policies(items if isinstance(items, str) else json.dumps(items), 0.0)


def test_an_expired_parameter_is_gone(call):
    later, past = json.dumps([policy("Expiration", Timestamp=moment(1))]), json.dumps([policy("Expiration", Timestamp=moment(-1))])
    with pytest.raises(errors.InvalidRequest):
        call("PutParameter", Name="/pol/a", Value="v", Type="String", Policies=later, Tier="Standard")
    made = call("PutParameter", Name="/pol/a", Value="v", Type="String", Policies=later, Tier="Intelligent-Tiering")
    assert made["Tier"] == "Advanced"
    told = call("DescribeParameters", ParameterFilters=[{"Key": "Name", "Values": ["/pol/a"]}])["Parameters"][0]
    assert [(p["PolicyType"], p["PolicyStatus"]) for p in told["Policies"]] == [("Expiration", "Pending")]
    assert call("PutParameter", Name="/pol/a", Value="w", Overwrite=True)["Version"] == 2
    assert "Policies" in call("GetParameterHistory", Name="/pol/a")["Parameters"][1]
    call("PutParameter", Name="/pol/a", Value="x", Overwrite=True, Policies=past)
    for operation, extra in (("GetParameter", {}), ("GetParameterHistory", {}), ("DeleteParameter", {})):
        with pytest.raises(errors.ParameterNotFound):
            call(operation, Name="/pol/a", **extra)
    assert call("PutParameter", Name="/pol/a", Value="again", Type="String")["Version"] == 1
    call("DeleteParameter", Name="/pol/a")


def test_secrets_are_read_by_reference(call):
    call("CreateSecret", Name="ref/db", SecretString="hidden")
    second = call("PutSecretValue", SecretId="ref/db", SecretString="newer")
    name = "/aws/reference/secretsmanager/ref/db"
    found = call("GetParameter", Name=name, WithDecryption=True)["Parameter"]
    assert (found["Name"], found["Value"], found["Type"], found["Version"]) == (name, "newer", "SecureString", 0)
    assert json.loads(found["SourceResult"])["VersionId"] == second["VersionId"]
    assert call("GetParameter", Name=f"{name}:AWSPREVIOUS", WithDecryption=True)["Parameter"]["Value"] == "hidden"
    assert call("GetParameter", Name=f"{name}:{second['VersionId']}", WithDecryption=True)["Parameter"]["Value"] == "newer"
    with pytest.raises(errors.InvalidRequest, match="WithDecryption flag must be True"):
        call("GetParameter", Name=name)
    both = call("GetParameters", Names=[name, "/aws/reference/secretsmanager/none"], WithDecryption=True)
    assert [p["Value"] for p in both["Parameters"]] == ["newer"]
    assert both["InvalidParameters"] == ["/aws/reference/secretsmanager/none"]
    with pytest.raises(errors.InvalidRequest):
        call("PutParameter", Name=name, Value="x", Type="String")


def test_data_types(call):
    call("PutParameter", Name="/type/i", Value="ami-0123456789abcdef0", Type="String", DataType="aws:ec2:image")
    for value, data_type in (("v", "Text"), ("v", "aws:other")):
        with pytest.raises(errors.InvalidRequest):
            call("PutParameter", Name="/type/j", Value=value, Type="String", DataType=data_type)
    assert call("GetParameter", Name="/type/i")["Parameter"]["DataType"] == "aws:ec2:image"


@pytest.mark.parametrize(
    ("filters", "text"),
    [
        ([{"Key": "Name"}], "The following filter values are missing : null for filter key Name"),
        ([{"Key": "Type", "Values": ["String"]}] * 2, "duplicated in the request: Type"),
        ([{"Key": "Shape", "Values": ["x"]}], r"Member must satisfy regular expression pattern: tag:\.\+"),
        ([{"Key": "Path", "Option": "Equals", "Values": ["/a"]}], r"not valid: Equals. Valid options include: \[Recursive, OneLevel\]"),
        ([{"Key": "Tier", "Values": ["none"]}], r"Valid values include: \[Standard, Advanced, Intelligent-Tiering\]"),
        ([{"Key": "Type", "Values": ["none"]}], r"Valid values include: \[String, StringList, SecureString\]"),
        ([{"Key": "Path", "Values": ["/aws/x"]}], "can't be prefixed with"),
        ([{"Key": "Name", "Option": "longer than ten", "Values": ["x"]}], "less than or equal to 10"),
    ],
)
def test_filters_that_are_none(call, filters, text):
    with pytest.raises(errors.InvalidRequest, match=text):
        call("DescribeParameters", ParameterFilters=filters)


def test_filters_of_both_forms(call):
    for name, kind in (("/fil/a", "String"), ("/fil/deep/b", "StringList"), ("filc", "String")):
        call("PutParameter", Name=name, Value="v", Type=kind)

    def found(**request):
        return [p["Name"] for p in call("DescribeParameters", **request)["Parameters"] if "fil" in p["Name"]]

    assert found(Filters=[{"Key": "Name", "Values": ["/fil"]}]) == ["/fil/a", "/fil/deep/b"]
    assert found(Filters=[{"Key": "Type", "Values": ["StringList"]}]) == ["/fil/deep/b"]
    assert found(ParameterFilters=[{"Key": "Name", "Option": "BeginsWith", "Values": ["fil"]}]) == ["/fil/a", "/fil/deep/b", "filc"]
    assert found(ParameterFilters=[{"Key": "Name", "Values": ["fil/a"]}]) == ["/fil/a"]
    assert found(ParameterFilters=[{"Key": "Name", "Option": "Contains", "Values": ["deep"]}]) == ["/fil/deep/b"]
    assert found(ParameterFilters=[{"Key": "Path", "Values": ["/fil"]}]) == ["/fil/a"]
    with pytest.raises(errors.InvalidRequest, match="either Filters or ParameterFilters"):
        found(Filters=[{"Key": "Name", "Values": ["x"]}], ParameterFilters=[{"Key": "Name", "Values": ["x"]}])


def test_limits_are_read():
    limits = parse_limits(["standard-parameters=1000000", "advanced-value=65536", "advanced-value=16384"])
    assert (limits.standard_parameters, limits.advanced_parameters) == (1_000_000, 100_000)
    assert (limits.standard_value, limits.advanced_value) == (4096, 16_384)
    for wrong in ("standard-value", "value=5000", "standard-value=-1", "standard-value=4095", "advanced-value=65537", "standard-value=9000"):
        with pytest.raises(errors.UsageError):
            parse_limits([wrong])


def test_an_operator_raises_the_limits(make_daemon):
    raised = make_daemon("--limit", "standard-value=8192", "--limit", "advanced-value=65536").session()
    put = lambda name, size, kind, tier: raised.call(  # noqa: E731
        "PutParameter", {"Name": name, "Value": "x" * size, "Type": kind, "Tier": tier, "Overwrite": True}
    )
    assert put("/text", 8192, "String", "Standard")["Tier"] == "Standard"
    with pytest.raises(errors.InvalidRequest, match="maximum parameter value of 8192 characters"):
        put("/text", 8193, "String", "Standard")
    # What KMS encrypts directly has 4,096 bytes at most, whatever the limit is.
    assert put("/secret", 4096, "SecureString", "Standard")["Tier"] == "Standard"
    with pytest.raises(errors.InvalidRequest, match="maximum parameter value of 4096 characters"):
        put("/secret", 4097, "SecureString", "Standard")
    assert put("/secret", 4097, "SecureString", "Intelligent-Tiering")["Tier"] == "Advanced"
    assert put("/text", 8192, "String", "Intelligent-Tiering")["Tier"] == "Standard"
    for number in range(20):
        put("/large", 65_536, "SecureString", "Advanced")
        put(f"/many/p{number}", 65_536, "SecureString", "Advanced")
    with pytest.raises(errors.InvalidRequest, match="at most 65536 bytes"):
        put("/large", 65_537, "SecureString", "Advanced")
    # Every value still comes: a page is shorter where it would not fit.
    for decrypt in (False, True):
        history = list(raised.pages("GetParameterHistory", "Parameters", {"Name": "/large", "WithDecryption": decrypt}))
        assert [entry["Version"] for entry in history] == list(range(1, 21))
        below = list(raised.pages("GetParametersByPath", "Parameters", {"Path": "/many", "WithDecryption": decrypt}))
        assert len(below) == 20
    names = [f"/many/p{number}" for number in range(10)]
    assert len(raised.call("GetParameters", {"Names": names, "WithDecryption": False})["Parameters"]) == 10


def test_how_many_parameters_there_may_be_counts_by_tier(tmp_path):
    facts = [
        ParameterFacts(f"/p{n}", "String", "Advanced" if n % 3 == 0 else "Standard", 1, "o", None, None, None, "text", 0.0, "o", 1, scope="s")
        for n in range(9)
    ]
    index = ParameterIndex(facts)
    assert (index.count_of("s", "Standard"), index.count_of("s", "Advanced"), index.count_of("other", "Standard")) == (6, 3, 0)
    index.put(replace(facts[1], tier="Advanced", policies="[…]"))
    index.remove(facts[0])
    index.put(replace(facts[2], version=2))
    index.put(replace(facts[2], name="/new"))
    assert (index.count_of("s", "Standard"), index.count_of("s", "Advanced"), len(index)) == (6, 3, 9)
    assert [one.name for one in index.with_policies()] == ["/p1"]
    index.put(facts[1])
    assert index.with_policies() == []
    assert list(index.names_in("s")) == sorted([*(f"/p{n}" for n in range(1, 9)), "/new"])


def test_writers_at_once_lose_and_double_no_version(daemon):
    """Each of many clients is told the version that it made; who is killed in between is tests/daemon/test_lifecycle.py's."""
    told, sessions = {}, [daemon.session() for _ in range(6)]

    def write(number):
        for count in range(25):
            text = f"{number}/{count}"
            request = {"Name": "/at/once", "Value": text, "Type": "SecureString", "Overwrite": True}
            told.setdefault(sessions[number].call("PutParameter", request)["Version"], []).append(text)

    with ThreadPoolExecutor(6) as writers:
        list(writers.map(write, range(6)))
    assert {version: len(texts) for version, texts in told.items()} == dict.fromkeys(range(1, 151), 1)
    history = sessions[0].pages("GetParameterHistory", "Parameters", {"Name": "/at/once", "WithDecryption": True})
    assert {entry["Version"]: [entry["Value"]] for entry in history} == {version: told[version] for version in range(51, 151)}
    # Of many who would create a parameter, one does.
    made, refused = [], []

    def create(number):
        try:
            sessions[number].call("PutParameter", {"Name": "/at/first", "Value": str(number), "Type": "String"})
            made.append(str(number))
        except errors.ParameterAlreadyExists:
            refused.append(number)

    with ThreadPoolExecutor(6) as writers:
        list(writers.map(create, range(6)))
    assert len(made) == 1 and len(refused) == 5
    assert sessions[0].call("GetParameter", {"Name": "/at/first"})["Parameter"]["Value"] == made[0]
    for session in sessions:
        session.close()


def test_a_full_tier_takes_neither_a_new_parameter_nor_an_upgrade_and_each_region_has_its_own(tmp_path):
    config = Config(tmp_path / "state", tmp_path / "kmsd.sock", parameter_limits=ParameterLimits(2, 1))
    initialise(config, SealType.KEYFILE, None)
    daemon = Daemon(config, open_realm(config, None))
    me = make_caller(daemon._account, 0, 0, 0, ())

    def put(name, tier, region="one", *, overwrite=False):
        parameters = {"Name": name, "Value": "x", "Type": "String", "Tier": tier, "Overwrite": overwrite}
        return daemon._pipeline.run(me, Request(1, "PutParameter", parameters, None, None), 0, region)[0]

    put("/a", "Standard")
    put("/b", "Standard")
    put("/c", "Advanced")
    for name, tier, overwrite in (("/d", "Standard", False), ("/d", "Advanced", False), ("/a", "Advanced", True)):
        with pytest.raises(errors.LimitExceeded, match=f"maximum of . {tier.lower()} parameters"):
            put(name, tier, overwrite=overwrite)
    put("/a", "Standard", overwrite=True)
    put("/d", "Standard", "other")
    daemon._close()
