"""The steps of `kmsfs check` around the files: lease, freshness records, progress."""

import os
import time
from pathlib import Path

from kmsfs.check.verify import DAMAGE, Finding, Report, VolumeChecker
from kmsfs.cli.output import byte_progress, stored_bytes
from kmsfs.client.provider import SocketKeySource
from kmsfs.client.session import ClientSession
from kmsfs.envelope.caching import CachingProvider
from kmsfs.envelope.kf1file import FileTools
from kmsfs.envelope.recovery import SessionRules
from kmsfs.errors import CorruptVolume
from kmsfs.mount.freshness import open_records
from kmsfs.mount.volume import VolumeLease, open_volume


def check_volume(cipher_dir: Path, talk: ClientSession) -> Report:
    """Verify a volume that is not mounted.

    Raises:
        VolumeBusy, KmsfsError: if it is mounted, or the key service refuses its key.
    """
    volume = open_volume(cipher_dir, talk, read_only=True)
    lease = VolumeLease(volume.config, read_only=True)
    lease.claim(talk.open_transport())
    config = volume.config
    source = SocketKeySource(talk, config.key_arn)
    provider = CachingProvider(config.volume_id, source, time.monotonic, os.urandom, lambda: True)
    rules = SessionRules(lease.number, set(lease.unclean))
    tools = FileTools(volume.keys, provider, rules, os.urandom, config.chunk_log2, bytearray())
    of_the_volume = []
    try:
        tools.freshness = open_records(volume.keys, lease, read_only=True)
    except CorruptVolume as error:
        of_the_volume.append(Finding("/", ".", DAMAGE, str(error)))
    with byte_progress("checking", stored_bytes(cipher_dir)) as advance:
        report = VolumeChecker(tools, advance).run(volume.descriptor, config.root_id)
    report.findings[:0] = of_the_volume
    return report
