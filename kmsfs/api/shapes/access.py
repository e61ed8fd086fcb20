"""Shapes of the operations that explain access."""

from typing import Annotated, Literal

from msgspec import Meta, field

from kmsfs.api.operation import Shape
from kmsfs.api.shapes.common import Context, KeyIdText, PolicyText, PrincipalText, Seconds

ActionText = Annotated[str, Meta(pattern=r"^kms:[A-Za-z]{1,64}$")]


class ExplainDecisionRequest(Shape, kw_only=True):
    """A denial, by the id in its error."""

    decision_id: Annotated[str, Meta(min_length=1, max_length=64)]


class AccessStep(Shape, kw_only=True):
    """One statement or grant, and why it does not apply."""

    source: str
    name: str
    effect: Literal["Allow", "Deny"]
    applies: bool
    reason: str | None = None


class AccessResponse(Shape, kw_only=True):
    """What the evaluator says, by which statement or grant, and how each meets the call."""

    principal: str
    action: str
    resource: str
    encryption_context: Context = field(default_factory=dict)
    via_service: str | None = None
    allowed: bool
    decided_by: str
    time: Seconds
    steps: list[AccessStep]


class SimulateKeyAccessRequest(Shape, kw_only=True):
    """Would `principal` be allowed `action` on the key, with `asked_context` as encryption context?

    With a `policy`, as if it were the key's.
    """

    key_id: KeyIdText
    principal: PrincipalText
    action: ActionText
    asked_context: Context = field(default_factory=dict)
    via_service: str | None = None
    policy: PolicyText | None = None


class ListAuthorizedPrincipalsRequest(Shape, kw_only=True):
    """Who is allowed `action` on the key, with `asked_context` as encryption context?"""

    key_id: KeyIdText
    action: ActionText
    asked_context: Context = field(default_factory=dict)
    via_service: str | None = None


class AuthorizedPrincipal(Shape, kw_only=True):
    """Somebody who is, by what; `conditional` if only under conditions that the question does not meet."""

    principal: str
    decided_by: str
    conditional: bool


class ListAuthorizedPrincipalsResponse(Shape, kw_only=True):
    """All of them; `*` stands for anybody."""

    principals: list[AuthorizedPrincipal]
