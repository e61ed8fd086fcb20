"""Operation to handler: one line each; the pipeline checks at start that none is missing."""

from dataclasses import dataclass

from kmsd.access.service import AccessService
from kmsd.accounts.service import AccountService
from kmsd.dispatch.batch import BatchService
from kmsd.dispatch.call import Handler
from kmsd.dispatch.status import AdminService
from kmsd.events.service import ChangeService
from kmsd.grants.service import GrantService
from kmsd.iam.entities import EntityService, IamService
from kmsd.iam.mfa import MfaService
from kmsd.iam.overview import OverviewService
from kmsd.iam.policies import AccessKeyService, PolicyService
from kmsd.iam.simulation import SimulationService
from kmsd.iam.tagging import IamTagService
from kmsd.keys.crypto import CryptoService
from kmsd.keys.dependents import DependentsService
from kmsd.keys.importing import ImportService
from kmsd.keys.pairs import PairService
from kmsd.keys.retiring import RetirementService
from kmsd.keys.service import KeyService
from kmsd.keys.upkeep import KeyUpkeepService
from kmsd.keystores.service import KeyStoreService
from kmsd.metrics.service import MetricsService
from kmsd.parameters.marks import ParameterMarkService
from kmsd.parameters.service import ParameterService
from kmsd.sealing.service import SealService
from kmsd.secrets.rotation import RotationService
from kmsd.secrets.service import SecretService
from kmsd.secrets.upkeep import SecretUpkeepService
from kmsd.sts.service import TokenService
from kmsd.volumes.service import VolumeService


@dataclass(frozen=True, slots=True)
class Services:
    """All that have handlers."""

    keys: KeyService
    upkeep: KeyUpkeepService
    pairs: PairService
    crypto: CryptoService
    grants: GrantService
    parameters: ParameterService
    marks: ParameterMarkService
    volumes: VolumeService
    batches: BatchService
    admin: AdminService
    tokens: TokenService
    secrets: SecretService
    secret_upkeep: SecretUpkeepService
    rotation: RotationService
    entities: tuple[EntityService, ...]
    iam: IamService
    policies: PolicyService
    access_keys: AccessKeyService
    simulation: SimulationService
    iam_overview: OverviewService
    mfa: MfaService
    iam_tags: IamTagService
    imports: ImportService
    retirement: RetirementService
    access: AccessService
    dependents: DependentsService
    metrics: MetricsService
    changes: ChangeService
    key_stores: KeyStoreService
    accounts: AccountService
    sealing: SealService


def bind_handlers(services: Services) -> dict[str, Handler]:
    """Return the handler of every operation by its name."""
    return {
        **_of_keys(services),
        **_of_cryptography(services),
        **_of_parameters(services),
        **_of_secrets(services),
        **_of_identities(services),
        **_of_accounts(services.accounts),
        **_of_key_stores(services.key_stores),
        **_of_the_rest(services),
    }


def _of_keys(services: Services) -> dict[str, Handler]:
    return {
        "CreateKey": services.keys.create_key,
        "DescribeKey": services.keys.describe_key,
        "ListKeys": services.keys.list_keys,
        "UpdateKeyDescription": services.keys.update_key_description,
        "EnableKey": services.keys.enable_key,
        "DisableKey": services.keys.disable_key,
        "ScheduleKeyDeletion": services.keys.schedule_key_deletion,
        "CancelKeyDeletion": services.keys.cancel_key_deletion,
        "RotateKeyOnDemand": services.upkeep.rotate_key_on_demand,
        "EnableKeyRotation": services.upkeep.enable_key_rotation,
        "DisableKeyRotation": services.upkeep.disable_key_rotation,
        "GetKeyRotationStatus": services.upkeep.get_key_rotation_status,
        "GetKeyLastUsage": services.dependents.get_key_last_usage,
        "ListKeyDependents": services.dependents.list_key_dependents,
        "ListKeyRotations": services.upkeep.list_key_rotations,
        "GetParametersForImport": services.imports.get_parameters,
        "ImportKeyMaterial": services.imports.import_material,
        "DeleteImportedKeyMaterial": services.imports.delete_material,
        "ReplicateKey": services.upkeep.not_offered,
        "UpdatePrimaryRegion": services.upkeep.not_offered,
        "TagResource": services.upkeep.tag_resource,
        "UntagResource": services.upkeep.untag_resource,
        "ListResourceTags": services.upkeep.list_resource_tags,
        "ListKeyPolicies": services.upkeep.list_key_policies,
        "PutKeyPolicy": services.keys.put_key_policy,
        "GetKeyPolicy": services.keys.get_key_policy,
        "CreateAlias": services.keys.create_alias,
        "UpdateAlias": services.keys.update_alias,
        "DeleteAlias": services.keys.delete_alias,
        "ListAliases": services.keys.list_aliases,
    }


def _of_cryptography(services: Services) -> dict[str, Handler]:
    return {
        "Sign": services.pairs.sign,
        "Verify": services.pairs.verify,
        "GenerateMac": services.pairs.generate_mac,
        "VerifyMac": services.pairs.verify_mac,
        "GetPublicKey": services.pairs.get_public_key,
        "DeriveSharedSecret": services.pairs.derive_shared_secret,
        "Encapsulate": services.pairs.encapsulate,
        "Decapsulate": services.pairs.decapsulate,
        "GenerateDataKeyPair": services.pairs.generate_data_key_pair,
        "GenerateDataKeyPairWithoutPlaintext": services.pairs.generate_data_key_pair_without_plaintext,
        "Encrypt": services.crypto.encrypt,
        "Decrypt": services.crypto.decrypt,
        "ReEncrypt": services.crypto.re_encrypt,
        "GenerateDataKey": services.crypto.generate_data_key,
        "GenerateDataKeyWithoutPlaintext": services.crypto.generate_data_key_without_plaintext,
        "GenerateRandom": services.crypto.generate_random,
        "GenerateDataKeyBatch": services.batches.generate_data_key_batch,
        "DecryptBatch": services.batches.decrypt_batch,
    }


def _of_parameters(services: Services) -> dict[str, Handler]:
    return {
        "PutParameter": services.parameters.put_parameter,
        "GetParameter": services.parameters.get_parameter,
        "GetParameters": services.parameters.get_parameters,
        "GetParametersByPath": services.parameters.get_parameters_by_path,
        "GetParameterHistory": services.parameters.get_parameter_history,
        "DescribeParameters": services.parameters.describe_parameters,
        "DeleteParameter": services.parameters.delete_parameter,
        "DeleteParameters": services.parameters.delete_parameters,
        "LabelParameterVersion": services.marks.label_parameter_version,
        "UnlabelParameterVersion": services.marks.unlabel_parameter_version,
        "AddTagsToResource": services.marks.add_tags_to_resource,
        "RemoveTagsFromResource": services.marks.remove_tags_from_resource,
        "ListTagsForResource": services.marks.list_tags_for_resource,
    }


def _of_identities(services: Services) -> dict[str, Handler]:
    found: dict[str, Handler] = {}
    for service in services.entities:
        found.update(service.handlers())
    _users, _groups, roles = services.entities
    found["GetRole"] = lambda call: roles.one(roles.named(call))
    return {
        **found,
        **services.iam_tags.handlers(),
        "GetUser": services.access_keys.get_user,
        "GetGroup": services.iam.get_group,
        "AddUserToGroup": services.iam.add_user_to_group,
        "RemoveUserFromGroup": services.iam.remove_user_from_group,
        "ListGroupsForUser": services.iam.list_groups_for_user,
        "UpdateAssumeRolePolicy": services.iam.update_assume_role_policy,
        "UpdateRole": services.iam.update_role,
        "UpdateRoleDescription": services.iam.update_role_description,
        **services.iam_overview.handlers(),
        "SimulatePrincipalPolicy": services.simulation.of_principal,
        "SimulateCustomPolicy": services.simulation.custom,
        "CreatePolicy": services.policies.create_policy,
        "GetPolicy": services.policies.get_policy,
        "ListPolicies": services.policies.list_policies,
        "DeletePolicy": services.policies.delete_policy,
        "CreatePolicyVersion": services.policies.create_policy_version,
        "GetPolicyVersion": services.policies.get_policy_version,
        "ListPolicyVersions": services.policies.list_policy_versions,
        "SetDefaultPolicyVersion": services.policies.set_default_policy_version,
        "DeletePolicyVersion": services.policies.delete_policy_version,
        "CreateAccessKey": services.access_keys.create_access_key,
        "ListAccessKeys": services.access_keys.list_access_keys,
        "GetAccessKeyLastUsed": services.access_keys.get_access_key_last_used,
        "UpdateAccessKey": services.access_keys.update_access_key,
        "DeleteAccessKey": services.access_keys.delete_access_key,
        "PutAccessKey": services.access_keys.put_access_key,
        "CreateVirtualMFADevice": services.mfa.create_virtual_mfa_device,
        "EnableMFADevice": services.mfa.enable_mfa_device,
        "ResyncMFADevice": services.mfa.resync_mfa_device,
        "DeactivateMFADevice": services.mfa.deactivate_mfa_device,
        "DeleteVirtualMFADevice": services.mfa.delete_virtual_mfa_device,
        "GetMFADevice": services.mfa.get_mfa_device,
        "ListMFADevices": services.mfa.list_mfa_devices,
        "ListVirtualMFADevices": services.mfa.list_virtual_mfa_devices,
    }


def _of_key_stores(stores: KeyStoreService) -> dict[str, Handler]:
    return {
        "CreateCustomKeyStore": stores.create,
        "DescribeCustomKeyStores": stores.describe,
        "ConnectCustomKeyStore": stores.connect,
        "DisconnectCustomKeyStore": stores.disconnect,
        "UpdateCustomKeyStore": stores.update,
        "DeleteCustomKeyStore": stores.delete,
    }


def _of_accounts(accounts: AccountService) -> dict[str, Handler]:
    return {
        "CreateAccount": accounts.create_account,
        "DescribeCreateAccountStatus": accounts.describe_create_account_status,
        "DescribeAccount": accounts.describe_account,
        "ListAccounts": accounts.list_accounts,
        "DescribeOrganization": accounts.describe_organization,
        "CloseAccount": accounts.close_account,
        "ReopenAccount": accounts.reopen_account,
        "AssignLocalUser": accounts.assign_local_user,
    }


def _of_secrets(services: Services) -> dict[str, Handler]:
    secrets, upkeep = services.secrets, services.secret_upkeep
    return {
        "CreateSecret": secrets.create_secret,
        "GetSecretValue": secrets.get_secret_value,
        "BatchGetSecretValue": secrets.batch_get_secret_value,
        "PutSecretValue": secrets.put_secret_value,
        "UpdateSecret": secrets.update_secret,
        "DeleteSecret": secrets.delete_secret,
        "RestoreSecret": secrets.restore_secret,
        "UpdateSecretVersionStage": secrets.update_secret_version_stage,
        "GetRandomPassword": secrets.get_random_password,
        "DescribeSecret": upkeep.describe_secret,
        "ListSecrets": upkeep.list_secrets,
        "ListSecretVersionIds": upkeep.list_secret_version_ids,
        "TagSecret": upkeep.tag_resource,
        "UntagSecret": upkeep.untag_resource,
        "PutResourcePolicy": upkeep.put_resource_policy,
        "ListResourcePolicies": upkeep.list_resource_policies,
        "GetResourcePolicy": upkeep.get_resource_policy,
        "DeleteResourcePolicy": upkeep.delete_resource_policy,
        "ValidateResourcePolicy": upkeep.validate_resource_policy,
        "ListDueRotations": services.rotation.list_due_rotations,
        "RotateSecret": services.rotation.rotate_secret,
        "CancelRotateSecret": services.rotation.cancel_rotate_secret,
    }


def _of_the_rest(services: Services) -> dict[str, Handler]:
    return {
        "CreateGrant": services.grants.create_grant,
        "ListGrants": services.grants.list_grants,
        "ListRetirableGrants": services.grants.list_retirable_grants,
        "RetireGrant": services.grants.retire_grant,
        "RevokeGrant": services.grants.revoke_grant,
        "OpenVolumeSession": services.volumes.open_session,
        "CloseVolumeSession": services.volumes.close_session,
        "HealVolume": services.volumes.heal,
        "MoveVolume": services.volumes.move,
        "AcceptVolumeRestore": services.volumes.accept_restore,
        "SetDirectoryKey": services.volumes.set_directory_key,
        "DestroyKeyMaterial": services.retirement.destroy_key_material,
        "GetCallerIdentity": services.tokens.get_caller_identity,
        "GetSessionToken": services.tokens.get_session_token,
        "AssumeRole": services.tokens.assume_role,
        "GetAccessKeyInfo": services.tokens.get_access_key_info,
        "GetStatus": services.admin.get_status,
        "ExplainDecision": services.access.explain_decision,
        "SimulateKeyAccess": services.access.simulate_key_access,
        "ListAuthorizedPrincipals": services.access.list_authorized_principals,
        "GetMetrics": services.metrics.get_metrics,
        "Watch": services.admin.watch,
        "WatchChanges": services.changes.watch_changes,
        "RaiseAlarm": services.changes.raise_alarm,
        "Seal": services.sealing.seal,
        "GetSealStatus": services.sealing.get_seal_status,
        "Unseal": services.sealing.unseal,
    }
