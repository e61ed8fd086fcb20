"""What a grant may say, purely: a grant made through a grant cannot exceed it."""

from dataclasses import replace

from kmsd.authz.grants import CONTEXT_OPERATIONS, Grant

GRANTS_PER_KEY_MAX = 50_000


def within(
    parent: Grant, operations: frozenset[str], equals: dict[str, str] | None, subset: dict[str, str] | None
) -> bool:
    """Tell whether a child with these terms allows nothing that `parent` does not."""
    if not operations <= parent.operations:
        return False
    if not operations & CONTEXT_OPERATIONS:
        return True
    if parent.equals is not None:
        return equals == parent.equals
    if parent.subset is not None:
        child = equals if equals is not None else subset
        return child is not None and all(child.get(key) == value for key, value in parent.subset.items())
    return True


def same_terms(left: Grant, right: Grant) -> bool:
    """Tell whether two grants say the same, ids and dates aside: CreateGrant with a Name is idempotent then.

    One that ends by itself is never the same: asked again, it is for a longer time.
    """
    if left.expires is not None or right.expires is not None:
        return False
    return (left.grantee, left.retiring, left.operations, left.equals, left.subset, left.name) == (
        right.grantee,
        right.retiring,
        right.operations,
        right.equals,
        right.subset,
        right.name,
    )


def limited(child: Grant, parent: Grant) -> Grant:
    """Return a grant that was made through another, ending no later than that."""
    if parent.expires is None or (child.expires is not None and child.expires <= parent.expires):
        return child
    return replace(child, expires=parent.expires)
