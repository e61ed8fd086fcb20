"""ARNs at the door: every field that may hold one is translated, both ways."""

import re

import msgspec
import pytest

from kmsd.door.arns import _FIELDS, ArnTranslation
from kmsfs.api.operation import Shape
from kmsfs.api.registry import OPERATIONS

# Access keys, programs that AWS calls by an ARN of Lambda's, and a list of what holds an ARN each.
OTHERS = {"AccessKeyId", "RotationLambdaARN", "PolicyArns"}
OF_AWS = ("kms", "ssm", "secretsmanager", "iam", "sts", "organizations")


def shapes_in(annotation, seen):
    for part in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(part, type) and issubclass(part, Shape):
            if part not in seen:
                seen.add(part)
                for field in msgspec.structs.fields(part):
                    shapes_in(field.type, seen)
        elif part is not annotation:
            shapes_in(part, seen)
    return seen


@pytest.mark.parametrize("name", sorted(name for name, op in OPERATIONS.items() if op.service in OF_AWS))
def test_every_field_with_an_arn_is_translated(name):
    operation, seen = OPERATIONS[name], set()
    for shape in (operation.request, operation.response):
        shapes_in(shape, seen)
    fields = {field.encode_name for shape in seen for field in msgspec.structs.fields(shape)}
    with_arns = {field for field in fields if re.search(r"(Arn|ARN)s?$|^arn$|KeyIds?$|Principal$", field)}
    assert with_arns - OTHERS <= _FIELDS


@pytest.mark.parametrize("service", ["kms", "ssm", "secretsmanager"])
def test_a_translation_has_its_way_back(service):
    there = ArnTranslation("us-east-1", "us-east-1")
    arn = f"arn:aws:{service}:us-east-1:111122223333:key/x"
    inside = there.inward({"KmsKeyId": arn, "Description": arn})
    assert inside == {"KmsKeyId": f"arn:kmsfs:{service}:local:111122223333:key/x", "Description": arn}
    assert there.outward(inside)["KmsKeyId"] == arn
