"""Sizes, times and limits as named constants, and the offset types that keep the two sides apart."""

from typing import NewType

PlainOffset = NewType("PlainOffset", int)
"""A byte offset in what the user reads and writes."""
CipherOffset = NewType("CipherOffset", int)
"""A byte offset in the backing file."""
ChunkIndex = NewType("ChunkIndex", int)
"""Number of a chunk in a file, from 0."""

KIB = 1024
MIB = 1024 * KIB

BLOCK_BYTES = 4096
"""Unit of allocation in a KF1 file, and the size of a header slot and of a node."""
DEFAULT_CHUNK_LOG2 = 14
"""16 KiB chunks: below this AES-GCM's call cost shows, above it only amplification grows."""

MAX_FRAME_BYTES = 256 * KIB
"""Largest ordinary socket frame."""
MAX_BATCH_FRAME_BYTES = MIB
"""Largest frame either side ever accepts; only batch operations need more than MAX_FRAME_BYTES."""

KMS_PLAINTEXT_MAX_BYTES = 4096
"""AWS KMS: Encrypt takes at most 4,096 bytes under a symmetric key."""
CONTEXT_MAX_BYTES = 8 * KIB
CONTEXT_MAX_PAIRS = 64
POLICY_MAX_BYTES = 32 * KIB

STANDARD_VALUE_MAX_BYTES = 4 * KIB
ADVANCED_VALUE_MAX_BYTES = 8 * KIB
PARAMETER_NAME_MAX_CHARS = 1011
PARAMETER_LEVELS_MAX = 15
PARAMETER_VERSIONS_KEPT = 100

LEASE_SECONDS = 10.0
"""Without a heartbeat of the watch stream for this long, cached data keys are unusable."""
HEARTBEAT_SECONDS = 3.0
RECONNECT_SECONDS = 2.0
"""A volume's lease waits this long for a mount that lost its connection; a live one is back in half a second."""
DATABASE_LEASE_SECONDS = 10.0
"""A daemon that shares its database answers from memory for this long after it last knew that nobody had written."""
DATABASE_FRESH_SECONDS = 3.0
"""It says heartbeats for this long after: whoever holds a lease of its has it from a daemon that knows."""
DATABASE_LOOK_SECONDS = 0.5
"""It looks this often whether somebody has written of whom no notice came."""
DATABASE_ANSWER_SECONDS = 3.0
"""A database that does not answer for this long is cut off."""
TAKEOVER_SECONDS = 30.0
"""A volume's lease of another host waits this long after its daemon was last heard of: longer than all leases from it."""
STORE_SECONDS = 20.0
"""A mount that another host may take over stores nothing more when it has heard nothing for this long. Its daemon may have spoken five seconds after it was last
heard of itself; five more are for what is being written."""
CACHE_IDLE_SECONDS = 300.0
CACHE_AGE_SECONDS = 900.0
CACHE_ENTRIES = 10_000

CHUNK_WRITES_PER_EPOCH_LOG2 = 24
"""Random 96-bit nonces: 2^24 seals under one chunk key keep the collision risk at 2^-49."""
MAP_WRITES_LIMIT = 1 << 30
STATE_SEALS_LIMIT = 1 << 30

NS_PER_SECOND = 1_000_000_000
