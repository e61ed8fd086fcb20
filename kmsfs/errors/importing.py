"""Failures of importing and retiring key material; AWS's names where it has them."""

from kmsfs.errors.core import Conflict, InvalidRequest, NotFound


class InvalidImportToken(InvalidRequest):
    """The import token is not one of this key."""

    code = "InvalidImportTokenException"


class ExpiredImportToken(InvalidRequest):
    """The import token is older than a day."""

    code = "ExpiredImportTokenException"


class IncorrectKeyMaterial(Conflict):
    """The key material is another one than was imported before."""

    code = "IncorrectKeyMaterialException"


class MaterialInUse(Conflict):
    """The key material still encrypts something that this key service keeps, or encrypts anew."""

    code = "KeyMaterialInUseException"


class KeyMaterialIdNotFound(NotFound):
    """The key has no material of this id."""
