"""Failures of Parameter Store's rarer features, under its own names."""

from kmsfs.errors.core import InvalidRequest


class InvalidParameterPolicyType(InvalidRequest):
    """A parameter policy is of no known type."""

    code = "InvalidPolicyTypeException"


class InvalidParameterPolicyAttribute(InvalidRequest):
    """A parameter policy has an attribute that it may not have."""

    code = "InvalidPolicyAttributeException"


class IncompatibleParameterPolicy(InvalidRequest):
    """Parameter policies contradict each other, or the parameter's tier."""

    code = "IncompatiblePolicyException"


class ParameterPoliciesLimit(InvalidRequest):
    """A parameter has too many policies."""

    code = "PoliciesLimitExceededException"


class InvalidFilterOption(InvalidRequest):
    """A filter's option is none that its key takes."""

    code = "InvalidFilterOption"


class InvalidFilterValue(InvalidRequest):
    """A filter lacks its values, or has one that it may not have."""

    code = "InvalidFilterValue"
