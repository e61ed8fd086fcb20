"""Failures of accounts, under the names of AWS Organizations (its API reference, "Common Errors")."""

from kmsfs.errors.core import Conflict, InvalidRequest, NotFound


class AccountNotFound(NotFound):
    """There is no such account in this realm."""

    code = "AccountNotFoundException"


class CreateAccountStatusNotFound(NotFound):
    """No call that made an account has this id."""

    code = "CreateAccountStatusNotFoundException"


class AccountAlreadyClosed(Conflict):
    """The account is closed already."""

    code = "AccountAlreadyClosedException"


class InvalidAccountInput(InvalidRequest):
    """A parameter of a request about accounts has a value that it may not have."""

    code = "InvalidInputException"


class AccountConstraint(Conflict):
    """What was asked for would break a rule that accounts have."""

    code = "ConstraintViolationException"
