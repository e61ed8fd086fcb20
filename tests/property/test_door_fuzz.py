"""Rubbish at the HTTP door's parsers and in policies: a value or one of our errors, never anything else."""

import json

from hypothesis import given
from hypothesis import strategies as st

from kmsd.authz.identity import compile_identity_policy
from kmsd.authz.policy import compile_policy
from kmsd.door.arns import ArnTranslation
from kmsd.door.protocol import XML, answer_bytes, read_request
from kmsd.door.sigv4 import HttpRequest, check_signature, parse_signature, read_url
from kmsd.parameters.policies import read_policies
from kmsfs.alarms.rules import parse_rules
from kmsfs.api.registry import OPERATIONS
from kmsfs.api.validation import decode
from kmsfs.cli.importing import FORMATS, _dotenv, read_values
from kmsfs.cli.paramtools import _quoted
from kmsfs.errors import KmsfsError, UsageError
from kmsfs.ids import check_principal, parse_key_reference

FORM = "application/x-www-form-urlencoded"


def asked(target, kind, body):
    return HttpRequest("POST", {"x-amz-target": target, "content-type": kind} if target else {"content-type": kind}, body=body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4), max_leaves=12,
)  # fmt: skip
query_names = st.sampled_from(sorted({op.name for op in OPERATIONS.values() if op.service in ("iam", "sts")}))


@given(query_names, st.dictionaries(st.from_regex(r"[A-Za-z.0-9]{1,30}", fullmatch=True), st.text("aZ0 ./:*{}\"", max_size=20), max_size=6))
def test_forms(action, fields):
    version = "2011-06-15" if any(op.name == action and op.service == "sts" for op in OPERATIONS.values()) else "2010-05-08"
    from urllib.parse import urlencode

    body = urlencode({**fields, "Action": action, "Version": version}).encode()
    try:
        request = read_request(asked("", FORM, body))
        decode(request.operation, request.parameters)
    except KmsfsError:
        pass


@given(st.binary(max_size=200))
def test_any_bytes_as_a_form_or_json(body):
    for target, kind in (("", FORM), ("TrentService.Encrypt", "application/x-amz-json-1.1"), ("secretsmanager.CreateSecret", "x")):
        try:
            request = read_request(asked(target, kind, body))
            ArnTranslation("us-east-1", "eu-west-1").inward(request.parameters)
            decode(request.operation, request.parameters)
        except KmsfsError:
            pass


@given(st.binary(max_size=120) | st.text("XAmz-AlgorithmCredentialDateExpiresSignature=&%+/0123456789", max_size=160).map(str.encode), st.text(max_size=200))
def test_any_url_and_any_authorization(query, authorization):
    for text in (query, b"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Expires=60&" + query):
        for headers in ({}, {"authorization": authorization}, {"authorization": f"AWS4-HMAC-SHA256 Credential={authorization}"}):
            try:
                request = HttpRequest("GET", headers, read_url(text))
                check_signature(parse_signature(request), request, lambda _id: "", 0.0)
                raise AssertionError("a signature that nobody made")
            except KmsfsError as error:
                assert error.detail


@given(st.sampled_from(sorted(OPERATIONS)), st.dictionaries(st.text(max_size=12), json_values, max_size=5), st.data())
def test_any_json_for_any_operation(name, extra, data):
    operation = OPERATIONS[name]
    known = {field: data.draw(json_values) for field in operation.request.__struct_encode_fields__[:4]}
    for parameters in (extra, known, {**known, **extra}):
        try:
            decode(operation, parameters)
        except KmsfsError as error:
            assert error.detail


@given(json_values, st.text(max_size=60))
def test_policies(document, text):
    statements = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": document, "Resource": text, "Condition": document}]}
    for candidate in (text, json.dumps(document), json.dumps(statements), json.dumps({"Version": "2012-10-17", "Statement": document})):
        for read in (lambda t: compile_identity_policy("x", t), compile_policy, lambda t: compile_policy(t, "sts"), lambda t: read_policies(t, 0.0)):
            try:
                read(candidate)
            except KmsfsError:
                pass


@given(st.text(max_size=60))
def test_names(text):
    for candidate in (text, "arn:" + text, "arn:kmsfs:kms:local:123456789012:key/" + text, "mrk-" + text):
        for read in (check_principal, lambda t: parse_key_reference(t, "local:123456789012")):
            try:
                read(candidate)
            except KmsfsError:
                pass


@given(st.dictionaries(st.from_regex(r"[A-Z_][A-Z0-9_]{0,8}", fullmatch=True), st.text(st.characters(blacklist_categories=("Cs", "Cc", "Zl", "Zp")) | st.just("\n"), max_size=30), max_size=5))
def test_dotenv_comes_back(values):
    text = "".join(f"{name}={_quoted(value)}\n" for name, value in values.items())
    assert _dotenv(text) == values


@given(st.text(max_size=80))
def test_dotenv_of_anything(text):
    try:
        assert isinstance(_dotenv(text), dict)
    except UsageError:
        pass


@given(json_values)
def test_answers_in_xml_are_well_formed(value):
    from xml.etree import ElementTree

    plain = json.loads(json.dumps(value, ensure_ascii=True))
    request = read_request(asked("", FORM, b"Action=GetCallerIdentity&Version=2011-06-15"))

    def printable(item):
        if isinstance(item, str):
            return "".join(c for c in item if c.isprintable())
        if isinstance(item, list):
            return [printable(part) for part in item]
        if isinstance(item, dict):
            return {f"K{position}": printable(part) for position, part in enumerate(item.values())}
        return 1.0 if isinstance(item, float) else item

    ElementTree.fromstring(answer_bytes(request, {"Arn": printable(plain)}, "id", XML))


@given(st.sampled_from([style for style in FORMATS if style != "sops"]), st.text("abc:{}[]\"'\n\t -#&*!|>%@,=\0\u2028", max_size=60) | json_values.map(json.dumps))
def test_any_text_in_any_format_of_settings(style, text):
    try:
        values = read_values(style, text)
    except UsageError:
        return
    assert all(isinstance(name, str) and isinstance(value, str) for name, value in values.items())


@given(st.text(max_size=60) | st.dictionaries(st.sampled_from(["name", "on", "within", "run", "webhook", "mail", "key", "per", "x"]), st.text('a"/:0@-', max_size=12), max_size=5).map(
    lambda fields: "[[alarm]]\n" + "\n".join(f"{name} = {json.dumps(value)}" for name, value in fields.items())))
def test_any_text_as_rules_of_alarms(text):
    try:
        assert parse_rules(text)
    except UsageError as error:
        assert error.detail
