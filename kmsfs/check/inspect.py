"""What a file or volume tells without any key: version, suite, sizes, which KMS key wraps it."""

import os
from pathlib import Path
from typing import Any

from kmsfs.errors import CorruptFile, IntegrityReason, InvalidCiphertext, StorageError
from kmsfs.formats.blob import parse_blob
from kmsfs.formats.fileheader import MAP_INLINE, SLOT_BYTES, Clear, parse_clear
from kmsfs.formats.volume import CONFIG_NAME, parse_config


def inspect_path(path: Path) -> dict[str, Any]:
    """Describe an encrypted file, or a volume by its directory or configuration.

    Raises:
        CorruptFile: if it is neither.
        UnsupportedFormat: if it is of a newer format.
        StorageError: if it cannot be read.
    """
    try:
        if path.is_dir() or path.name == CONFIG_NAME:
            return _inspect_volume(path / CONFIG_NAME if path.is_dir() else path)
        with path.open("rb") as stream:
            return _inspect_file(path, stream.read(2 * SLOT_BYTES), os.fstat(stream.fileno()))
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}", os_errno=error.errno or 5) from error


def _inspect_volume(path: Path) -> dict[str, Any]:
    config, _ = parse_config(path.read_bytes())
    return {
        "what": "volume",
        "volume_id": config.volume_id.hex(),
        "kms_key": config.key_arn,
        "chunk_bytes": 1 << config.chunk_log2,
        "bind": config.bind,
        "wrapped_volume_key": _describe_blob(config.wrapped_key),
    }


def _inspect_file(path: Path, data: bytes, facts: os.stat_result) -> dict[str, Any]:
    headers = []
    for number in (0, 1):
        slot = data[number * SLOT_BYTES : (number + 1) * SLOT_BYTES]
        if any(slot):
            headers.append({"slot": "AB"[number], **_describe(parse_clear(slot))})
    if not headers:
        raise CorruptFile(f"{path} has no kmsfs header", IntegrityReason.EMPTY)
    newest = max(headers, key=lambda header: int(header["generation"]))
    return {
        "what": "file",
        "format": "KF1",
        **{
            key: newest[key] for key in ("volume_id", "file_id", "suite", "chunk_bytes", "map", "wrapped_key")
        },
        "encrypted_bytes": facts.st_size,
        "headers": [{key: header[key] for key in ("slot", "generation", "session")} for header in headers],
    }


def _describe(clear: Clear) -> dict[str, Any]:
    return {
        "volume_id": clear.volume_id.hex(),
        "file_id": clear.file_id.hex(),
        "suite": clear.suite.name,
        "chunk_bytes": 1 << clear.chunk_log2,
        "map": "inline" if clear.map_kind == MAP_INLINE else f"height {clear.map_kind - 1}",
        "generation": clear.generation,
        "session": clear.session,
        "wrapped_key": _describe_blob(clear.wrapped_key),
    }


def _describe_blob(data: bytes) -> dict[str, Any]:
    try:
        blob = parse_blob(data)
    except InvalidCiphertext:
        return {"error": "not a ciphertext blob of kmsd"}
    return {"key_id": blob.key_id, "material_version": blob.term, "bytes": len(data)}
