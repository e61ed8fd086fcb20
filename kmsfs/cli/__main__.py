"""`python -m kmsfs.cli` is `kmsfs`."""

from kmsfs.cli.main import run

run()
