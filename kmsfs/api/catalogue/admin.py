"""kmsfs's own operations: status, watch stream, volume sessions."""

from kmsfs import errors
from kmsfs.api.operation import ENABLED, Operation, Resource
from kmsfs.api.shapes import admin
from kmsfs.api.shapes.keys import Empty, KeyIdRequest

_VOLUME = (
    errors.InvalidArn, errors.KeyNotFound, errors.AccessDenied, errors.KeyDisabled, errors.KeyInvalidState,
    errors.VolumeBusy, errors.IncorrectKey,
)  # fmt: skip

ADMIN_OPERATIONS = (
    Operation(
        "GetStatus", "kmsfs", "kmsfs:GetStatus", Empty, admin.StatusResponse,
        "Tell who answers and how the caller is seen.",
    ),
    Operation(
        "GetMetrics", "kmsfs", "kmsfs:GetMetrics", Empty, admin.GetMetricsResponse,
        "Tell what the daemon counts of itself, in Prometheus's text.", errors=(errors.AccessDenied,),
    ),
    Operation(
        "Seal", "kmsfs", "kmsfs:Seal", Empty, Empty,
        "Forget every key until the daemon is unsealed: every other operation answers DaemonSealedException.",
        mutates=True, errors=(errors.AccessDenied, errors.UnsupportedOperation),
    ),
    Operation(
        "GetSealStatus", "kmsfs", "kmsfs:GetSealStatus", Empty, admin.SealStatus,
        "Tell whether the daemon is sealed; answered in both states.",
    ),
    Operation(
        "Unseal", "kmsfs", "kmsfs:Unseal", admin.UnsealRequest, admin.SealStatus,
        "Give a sealed daemon a share of its root key, or its passphrase.",
        mutates=True, secret=("Share", "Passphrase"), errors=(errors.AccessDenied, errors.RootKeyMissing, errors.Conflict),
    ),
    Operation(
        "Watch", "kmsfs", "kms:DescribeKey", admin.WatchRequest, admin.WatchResponse,
        "Push an event whenever one of these keys, its policy or its grants change.",
        streams=True, audit=("key_ids",),
        errors=(errors.InvalidArn, errors.KeyNotFound, errors.AccessDenied, errors.LimitExceeded),
    ),
    Operation(
        "WatchChanges", "kmsfs", "kmsfs:WatchChanges", admin.WatchChangesRequest, admin.WatchChangesResponse,
        "Push an event for each change of parameters, secrets and keys that the caller may know of.",
        streams=True, audit=("sources", "path", "after"),
        errors=(errors.InvalidName, errors.AccessDenied, errors.LimitExceeded),
    ),
    Operation(
        "RaiseAlarm", "kmsfs", "kmsfs:RaiseAlarm", admin.RaiseAlarmRequest, Empty,
        "Tell who follows alarms of one: for whoever watches the audit log.", audit=("alarm_name", "about", "group", "count"),
        errors=(errors.AccessDenied,),
    ),
    Operation(
        "OpenVolumeSession", "kmsfs", "kms:Decrypt", admin.OpenVolumeSessionRequest,
        admin.OpenVolumeSessionResponse,
        "Take a volume's writer lease and a new session number.",
        cross_account=True, resource=Resource.VOLUME, resource_field="key_id", key_states=ENABLED, mutates=True,
        audit=("key_id", "volume_id", "read_only", "resume"), errors=_VOLUME,
    ),
    Operation(
        "CloseVolumeSession", "kmsfs", "kms:Decrypt", admin.CloseVolumeSessionRequest, Empty,
        "End a volume session cleanly and give its lease back.",
        cross_account=True, resource=Resource.VOLUME, resource_field="key_id", mutates=True,
        audit=("key_id", "volume_id", "session"), errors=_VOLUME,
    ),
    Operation(
        "HealVolume", "kmsfs", "kms:Decrypt", admin.HealVolumeRequest, Empty,
        "Record that every file of unclean sessions was recovered.",
        cross_account=True, resource=Resource.VOLUME, resource_field="key_id", key_states=ENABLED, mutates=True,
        audit=("key_id", "volume_id", "session", "healed_sessions"), errors=_VOLUME,
    ),
    Operation(
        "AcceptVolumeRestore", "kmsfs", "kms:AcceptVolumeRestore", admin.AcceptVolumeRestoreRequest, Empty,
        "Take a volume that was restored from a backup, or moved, as it is: its freshness records begin anew.",
        cross_account=True, resource=Resource.VOLUME, resource_field="key_id", key_states=ENABLED, mutates=True,
        audit=("key_id", "volume_id"), errors=_VOLUME,
    ),
    Operation(
        "MoveVolume", "kmsfs", "kms:Decrypt", admin.MoveVolumeRequest, Empty,
        "Let a volume whose data keys were rewrapped belong to another KMS key.",
        cross_account=True, resource=Resource.VOLUME, resource_field="key_id", key_states=ENABLED, mutates=True,
        audit=("key_id", "volume_id", "session", "target_key_id"), errors=_VOLUME,
    ),
    Operation(
        "SetDirectoryKey", "kmsfs", "kms:GenerateDataKey", admin.SetDirectoryKeyRequest, admin.SetDirectoryKeyResponse,
        "Let new files below a directory of a volume have their data keys under another KMS key.",
        cross_account=True, resource=Resource.VOLUME, resource_field="key_id", key_states=ENABLED, mutates=True,
        audit=("key_id", "volume_id", "session", "directory_id", "target_key_id"),
        errors=(*_VOLUME, errors.LimitExceeded, errors.InvalidKeyUsage),
    ),
    Operation(
        "ListKeyDependents", "kmsfs", "kms:DescribeKey", KeyIdRequest, admin.ListKeyDependentsResponse,
        "Tell what cannot be read without a key: volumes, parameters, secrets; and its aliases, grants and last use.",
        resource=Resource.KEY, resource_field="key_id", audit=("key_id",),
        errors=(errors.InvalidArn, errors.KeyNotFound, errors.AccessDenied),
    ),
    Operation(
        "DestroyKeyMaterial", "kmsfs", "kms:ScheduleKeyDeletion", admin.DestroyKeyMaterialRequest,
        admin.DestroyKeyMaterialResponse,
        "Destroy material that a rotation replaced: what it still encrypts is lost for ever.",
        resource=Resource.KEY, resource_field="key_id", mutates=True, audit=("key_id", "key_material_id"),
        errors=(
            errors.InvalidArn, errors.KeyNotFound, errors.AccessDenied, errors.KeyInvalidState,
            errors.KeyMaterialIdNotFound, errors.MaterialInUse,
        ),
    ),
)  # fmt: skip
