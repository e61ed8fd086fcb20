"""Operation to handler: one line each; the pipeline checks at start that none is missing."""

from kmsd.dispatch.batch import BatchService
from kmsd.dispatch.call import Handler
from kmsd.dispatch.status import AdminService
from kmsd.grants.service import GrantService
from kmsd.keys.crypto import CryptoService
from kmsd.keys.pairs import PairService
from kmsd.keys.service import KeyService
from kmsd.keys.upkeep import KeyUpkeepService
from kmsd.parameters.service import ParameterService
from kmsd.sts.service import TokenService
from kmsd.volumes.service import VolumeService


def bind_handlers(
    keys: KeyService,
    upkeep: KeyUpkeepService,
    pairs: PairService,
    crypto: CryptoService,
    grants: GrantService,
    parameters: ParameterService,
    volumes: VolumeService,
    batches: BatchService,
    admin: AdminService,
    tokens: TokenService,
) -> dict[str, Handler]:
    """Return the handler of every operation by its name."""
    return {
        "CreateKey": keys.create_key,
        "DescribeKey": keys.describe_key,
        "ListKeys": keys.list_keys,
        "UpdateKeyDescription": keys.update_key_description,
        "EnableKey": keys.enable_key,
        "DisableKey": keys.disable_key,
        "ScheduleKeyDeletion": keys.schedule_key_deletion,
        "CancelKeyDeletion": keys.cancel_key_deletion,
        "RotateKeyOnDemand": upkeep.rotate_key_on_demand,
        "EnableKeyRotation": upkeep.enable_key_rotation,
        "DisableKeyRotation": upkeep.disable_key_rotation,
        "GetKeyRotationStatus": upkeep.get_key_rotation_status,
        "ListKeyRotations": upkeep.list_key_rotations,
        "TagResource": upkeep.tag_resource,
        "UntagResource": upkeep.untag_resource,
        "ListResourceTags": upkeep.list_resource_tags,
        "ListKeyPolicies": upkeep.list_key_policies,
        "Sign": pairs.sign,
        "Verify": pairs.verify,
        "GenerateMac": pairs.generate_mac,
        "VerifyMac": pairs.verify_mac,
        "GetPublicKey": pairs.get_public_key,
        "DeriveSharedSecret": pairs.derive_shared_secret,
        "Encapsulate": pairs.encapsulate,
        "Decapsulate": pairs.decapsulate,
        "GenerateDataKeyPair": pairs.generate_data_key_pair,
        "GenerateDataKeyPairWithoutPlaintext": pairs.generate_data_key_pair_without_plaintext,
        "PutKeyPolicy": keys.put_key_policy,
        "GetKeyPolicy": keys.get_key_policy,
        "CreateAlias": keys.create_alias,
        "UpdateAlias": keys.update_alias,
        "DeleteAlias": keys.delete_alias,
        "ListAliases": keys.list_aliases,
        "Encrypt": crypto.encrypt,
        "Decrypt": crypto.decrypt,
        "ReEncrypt": crypto.re_encrypt,
        "GenerateDataKey": crypto.generate_data_key,
        "GenerateDataKeyWithoutPlaintext": crypto.generate_data_key_without_plaintext,
        "GenerateRandom": crypto.generate_random,
        "GenerateDataKeyBatch": batches.generate_data_key_batch,
        "DecryptBatch": batches.decrypt_batch,
        "CreateGrant": grants.create_grant,
        "ListGrants": grants.list_grants,
        "ListRetirableGrants": grants.list_retirable_grants,
        "RetireGrant": grants.retire_grant,
        "RevokeGrant": grants.revoke_grant,
        "PutParameter": parameters.put_parameter,
        "GetParameter": parameters.get_parameter,
        "GetParameters": parameters.get_parameters,
        "GetParametersByPath": parameters.get_parameters_by_path,
        "GetParameterHistory": parameters.get_parameter_history,
        "DescribeParameters": parameters.describe_parameters,
        "DeleteParameter": parameters.delete_parameter,
        "DeleteParameters": parameters.delete_parameters,
        "OpenVolumeSession": volumes.open_session,
        "CloseVolumeSession": volumes.close_session,
        "HealVolume": volumes.heal,
        "GetCallerIdentity": tokens.get_caller_identity,
        "GetSessionToken": tokens.get_session_token,
        "GetStatus": admin.get_status,
        "Watch": admin.watch,
    }
