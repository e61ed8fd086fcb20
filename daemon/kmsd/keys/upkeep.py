"""Handlers of rotation, tags and policy names, and the rotations that come by themselves."""

from kmsd.dispatch.call import Call
from kmsd.dispatch.paging import page_of
from kmsd.keys.lifecycle import ROTATIONS_MAX, SECONDS_PER_DAY
from kmsd.keys.material import material_id
from kmsd.keys.registry import EXTERNAL, KeyRegistry, KmsKey
from kmsfs.api.keyspecs import SYMMETRIC
from kmsfs.api.operation import KeyState
from kmsfs.api.shapes import keys as shapes
from kmsfs.errors import InvalidTag, KeyInvalidState, LimitExceeded, UnsupportedOperation
from kmsfs.ids import MULTI_REGION

ROTATION_DAYS = 365
TAGS_MAX = 50
AUTOMATIC, ON_DEMAND = "AUTOMATIC", "ON_DEMAND"


class KeyUpkeepService:
    """RotateKeyOnDemand to ListKeyPolicies."""

    def __init__(self, registry: KeyRegistry) -> None:
        self._registry = registry

    # --- rotation -----------------------------------------------------------------------------------------

    def rotate_key_on_demand(self, call: Call) -> shapes.KeyIdResponse:
        """RotateKeyOnDemand: 25 times a key at most."""
        key = _symmetric(call.the_key)
        if key.origin != EXTERNAL:
            _rotatable(key)
        if sum(kind == ON_DEMAND for _, kind in key.rotations) >= ROTATIONS_MAX:
            raise LimitExceeded(
                "The on-demand rotations limit has been reached for the given keyId. "
                f"No more on-demand rotations can be performed for this key: {key.arn}"
            )
        if key.origin != EXTERNAL:
            self._registry.rotate(key, call.now, ON_DEMAND)
        elif key.term + 1 in key.materials:
            self._registry.rotate_imported(key, call.now, ON_DEMAND)
        else:
            raise KeyInvalidState(f"{key.arn} has no key material that is pending rotation.")
        return shapes.KeyIdResponse(key_id=key.arn)

    def enable_key_rotation(self, call: Call) -> shapes.Empty:
        """EnableKeyRotation: the first one is due a period from now."""
        days = call.request.rotation_period_in_days or ROTATION_DAYS
        next_rotation = call.now + days * SECONDS_PER_DAY
        self._registry.update_key(
            _rotatable(call.the_key), "rotation", rotation_days=days, next_rotation=next_rotation
        )
        return shapes.Empty()

    def disable_key_rotation(self, call: Call) -> shapes.Empty:
        """DisableKeyRotation."""
        self._registry.update_key(
            _rotatable(call.the_key), "rotation", rotation_days=None, next_rotation=None
        )
        return shapes.Empty()

    def get_key_rotation_status(self, call: Call) -> shapes.KeyRotationStatus:
        """GetKeyRotationStatus. Rotation pauses while a key is disabled or pending deletion."""
        key = _symmetric(call.the_key)
        enabled = key.rotation_days is not None and key.state is not KeyState.PENDING_DELETION
        return shapes.KeyRotationStatus(
            key_rotation_enabled=enabled,
            key_id=key.arn,
            rotation_period_in_days=key.rotation_days if enabled else None,
            next_rotation_date=key.next_rotation if enabled else None,
        )

    def list_key_rotations(self, call: Call) -> shapes.ListKeyRotationsResponse:
        """ListKeyRotations, oldest first."""
        request: shapes.ListKeyRotationsRequest = call.request
        key = _symmetric(call.the_key)
        if key.store:
            raise UnsupportedOperation(f"{key.arn} origin is {key.origin} which is not valid for this operation.")
        first = 1 if request.include_key_material == "ALL_KEY_MATERIAL" else 2
        last = key.term + (1 if first == 1 and key.term + 1 in key.imports else 0)
        terms = {f"{term:08d}": term for term in range(first, last + 1) if term in key.materials or term in key.imports}
        page, marker = page_of(list(terms), request.limit or 100, request.marker)
        rotations = [self._rotation(key, terms[name], whole=first == 1) for name in page]
        return shapes.ListKeyRotationsResponse(
            rotations=rotations, next_marker=marker, truncated=marker is not None
        )

    def _rotation(self, key: KmsKey, term: int, *, whole: bool) -> shapes.Rotation:
        # A key's first material came with the key, not by a rotation.
        date, kind = key.rotations[term - 2] if 1 < term <= key.term else (None, None)
        state = None
        if whole:
            state = "CURRENT" if term == key.term else "NON_CURRENT" if term < key.term else "PENDING_ROTATION"
        known = key.imports.get(term)
        there = "IMPORTED" if term in key.materials else "PENDING_IMPORT"
        return shapes.Rotation(
            key_id=key.arn,
            key_material_id=known.material_id if known is not None else material_id(key.materials[term]),
            key_material_description=known.description if known is not None else None,
            import_state=there if known is not None else None,
            key_material_state=state,
            expiration_model=known.expiration_model if known is not None else None,
            valid_to=known.valid_to if known is not None else None,
            rotation_date=date,
            rotation_type=kind,
        )

    def rotate_due(self, now: float) -> list[str]:
        """Rotate the keys whose time has come; return their ARNs."""
        rotated = []
        for key in list(self._registry.keys.values()):
            if key.next_rotation is not None and key.next_rotation <= now and key.state is KeyState.ENABLED:
                days = key.rotation_days or ROTATION_DAYS
                self._registry.rotate(key, now, AUTOMATIC, next_rotation=now + days * SECONDS_PER_DAY)
                rotated.append(key.arn)
        return rotated

    # --- tags and policy names ----------------------------------------------------------------------------

    def tag_resource(self, call: Call) -> shapes.Empty:
        """TagResource."""
        tags = {**call.the_key.tags, **{tag.tag_key: tag.tag_value for tag in call.request.tags}}
        if len(tags) > TAGS_MAX:
            raise InvalidTag("Too many tags")
        self._registry.update_key(call.the_key, "tags", tags=tags)
        return shapes.Empty()

    def untag_resource(self, call: Call) -> shapes.Empty:
        """UntagResource: a tag that is not there is no error."""
        gone = set(call.request.tag_keys)
        tags = {name: value for name, value in call.the_key.tags.items() if name not in gone}
        self._registry.update_key(call.the_key, "tags", tags=tags)
        return shapes.Empty()

    def list_resource_tags(self, call: Call) -> shapes.ListResourceTagsResponse:
        """ListResourceTags."""
        request: shapes.ListOfKeyRequest = call.request
        tags = call.the_key.tags
        page, marker = page_of(sorted(tags), request.limit or 50, request.marker)
        return shapes.ListResourceTagsResponse(
            tags=[shapes.Tag(tag_key=name, tag_value=tags[name]) for name in page],
            next_marker=marker,
            truncated=marker is not None,
        )

    def not_offered(self, call: Call) -> shapes.Empty:
        """ReplicateKey and UpdatePrimaryRegion: keys here are of one region."""
        single = "" if call.the_key.key_id.startswith(MULTI_REGION) else f"{call.the_key.arn} is not a multi-Region key. "
        raise UnsupportedOperation(f"{single}Replicas in other regions are not offered on one's own machines.")

    def list_key_policies(self, call: Call) -> shapes.ListKeyPoliciesResponse:
        """ListKeyPolicies."""
        _request: shapes.ListOfKeyRequest = call.request
        return shapes.ListKeyPoliciesResponse(policy_names=["default"], truncated=False)


def _symmetric(key: KmsKey) -> KmsKey:
    if key.spec != SYMMETRIC:
        raise UnsupportedOperation(f"{key.arn} key spec is {key.spec} which is not valid for this operation.")
    return key


def _rotatable(key: KmsKey) -> KmsKey:
    _symmetric(key)
    if key.origin != "AWS_KMS":
        raise UnsupportedOperation(f"{key.arn} origin is {key.origin} which is not valid for this operation.")
    return key
