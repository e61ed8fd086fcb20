"""kmsfs: a key management service, secret store and encrypted file system in one.

`kmsfs.client("kms")` and `kmsfs.client("ssm")` return clients with boto3's manners: the package `kmsfs.client`
is callable and loads when it is first used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "client":
        return import_module("kmsfs.client")
    raise AttributeError(f"module 'kmsfs' has no attribute {name!r}")
