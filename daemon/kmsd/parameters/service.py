"""Handlers of parameter operations. The KMS steps run as the caller, through the pipeline, `kms:ViaService` ssm."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from kmsd.authz.decide import Question, decide_by_identity
from kmsd.authz.guardrails import Guardrails
from kmsd.credentials.names import belongs_to
from kmsd.dispatch.call import Call, InternalCalls
from kmsd.dispatch.conditionkeys import values_of_management, values_of_resource
from kmsd.dispatch.paging import ANSWER_VALUES_BYTES, marker_after, token_page_of
from kmsd.events.changes import Change
from kmsd.parameters.filters import make_old_test, make_test
from kmsd.parameters.index import ParameterIndex
from kmsd.parameters.labels import labels_of, require_droppable
from kmsd.parameters.path import below, check_name, check_path, other_spelling
from kmsd.parameters.pattern import check_value
from kmsd.parameters.policies import expiration_of, notices_due, read_policies
from kmsd.parameters.records import ParameterFacts, facts_of
from kmsd.parameters.selector import Selector, parse_selector
from kmsd.parameters.tier import ParameterLimits, settle_tier
from kmsd.parameters.values import DEFAULT_KEY, SECRET_PREFIX, ParameterValues, check_data_type
from kmsd.store.database import Changes, SealedStore
from kmsd.store.schema import Table
from kmsfs.aead.nonces import Rng
from kmsfs.api.shapes import parameters as shapes
from kmsfs.api.shapes.keys import Empty
from kmsfs.errors import (
    AccessDenied,
    CorruptStore,
    HierarchyTypeMismatch,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    ParameterAlreadyExists,
    ParameterNotFound,
    ParameterVersionNotFound,
)
from kmsfs.ids import parameter_arn, scope_of
from kmsfs.quantity import PARAMETER_VERSIONS_KEPT

_VERSIONS_HELD = 10_000
# Systems Manager API reference, "ParameterStringFilter".
_PATH_FILTERS = frozenset({"Type", "KeyId", "Label"})
_DESCRIBE_FILTERS = frozenset({"Name", "Type", "KeyId", "Path", "Tier", "DataType"})


class ParameterService:
    """PutParameter to DeleteParameters. A parameter belongs to the principal who made it, and to administrators."""

    def __init__(
        self,
        account: str,
        store: SealedStore,
        calls: InternalCalls,
        rng: Rng,
        keepers: frozenset[str],
        publish: Callable[[Change], None],
        guardrails: Guardrails,
        limits: ParameterLimits,
    ) -> None:
        """Serve the parameters of `store`.

        `keepers` are the principals who speak for the account to systemd's units; `publish` is told of each change.
        """
        self._guardrails = guardrails
        self._limits = limits
        self._account = account
        self._keepers = keepers
        self._publish = publish
        self._store = store
        self._values = ParameterValues(calls, rng)
        self._home = scope_of(account)
        self._tree = ParameterIndex(facts_of(row, self._home) for row in store.scan(Table.PARAMETER))
        self._held: dict[tuple[str, str, int], tuple[ParameterFacts, bytes]] = {}
        """Versions read lately, as stored: a SecureString's value is its ciphertext."""

    # --- writing ------------------------------------------------------------------------------------------

    def put_parameter(self, call: Call) -> shapes.PutParameterResponse:
        """PutParameter."""
        request: shapes.PutParameterRequest = call.request
        name = check_name(request.name)
        self._require_identity(call, name)
        present = self._find(call.scope, name)
        if present is not None and _expired(present, call.now):
            self._remove(present)
            present = None
        name = present.name if present is not None else name
        facts = self._next_facts(call, name, request, present)
        stored, key_arn = self._values.seal(call, facts, request.value)
        facts = ParameterFacts(**{**facts.row(), "key_arn": key_arn})
        drop = facts.version - PARAMETER_VERSIONS_KEPT
        if drop > 0:
            require_droppable(facts, drop)
        with self._store.transaction() as work:
            place = self._place(facts)
            work.put(Table.PARAMETER, place, facts.row())
            row = {**facts.row(), "value": stored}
            work.put(Table.PARAMETER_VERSION, f"{place}:{facts.version}", row, parent=place)
            if drop > 0:
                work.delete(Table.PARAMETER_VERSION, f"{place}:{drop}")
        self._tree.put(facts)
        self._tell(facts, "Create" if present is None else "Update")
        return shapes.PutParameterResponse(version=facts.version, tier=facts.tier)

    def _find(self, scope: str, name: str) -> ParameterFacts | None:
        """Return a parameter by its name, or by the other spelling of a name of one level.

        Raises:
            CorruptStore: if its record is damaged.
        """
        found = self._tree.get(scope, name)
        if found is None:
            other = other_spelling(name)
            if other is not None:
                found = self._tree.get(scope, other)
        if found is None and self._store.quarantined:
            for spelling in filter(None, (name, other_spelling(name))):
                place = spelling if scope == self._home else parameter_arn(scope, spelling)
                self._store.require_whole(Table.PARAMETER, place, f"parameter {name[:256]}")
        return found

    def _next_facts(
        self, call: Call, name: str, request: shapes.PutParameterRequest, present: ParameterFacts | None
    ) -> ParameterFacts:
        if present is not None:
            if not self._owns(call, present):
                raise AccessDenied("You may not write this parameter.")
            if not request.overwrite:
                raise ParameterAlreadyExists(
                    "The parameter already exists. To overwrite this value, set the overwrite option in the request to true."
                )
            if request.type not in (None, present.type):
                raise HierarchyTypeMismatch(f"The parameter is a {present.type}; its type cannot change.")
        if request.overwrite and request.tags:
            raise InvalidRequest(
                "Invalid request: tags and overwrite can't be used together. To create a parameter with tags, please "
                "remove overwrite flag. To update tags for an existing parameter, please use AddTagsToResource or "
                "RemoveTagsFromResource."
            )
        kind = request.type or (present.type if present else None)
        if kind is None:
            raise InvalidRequest("A parameter type is required when you create a parameter.")
        if not request.value:
            raise InvalidRequest(
                "1 validation error detected: Value '' at 'value' failed to satisfy constraint: Member must have length "
                "greater than or equal to 1."
            )
        if request.key_id is not None and kind != "SecureString":
            raise InvalidRequest("KeyId is for SecureString parameters only.")
        try:
            value_bytes = len(request.value.encode())
        except UnicodeEncodeError as error:
            raise InvalidRequest("The value is not Unicode text.") from error
        check_data_type(request.data_type)
        policies = request.policies if request.policies is not None else (present.policies if present else "")
        has_policies = bool(read_policies(policies, call.now))
        tier = settle_tier(
            request.tier, present.tier if present else None, value_bytes, self._limits,
            secure=kind == "SecureString", policies=has_policies,
        )  # fmt: skip
        if present is None or present.tier != tier:
            self._check_room(call.scope, tier)
        # What a new version does not say again is kept.
        description, pattern = request.description, request.allowed_pattern
        if present is not None:
            description = present.description if description is None else description
            pattern = present.pattern if pattern is None else pattern
        if pattern:
            check_value(pattern, request.value)
        version = present.version + 1 if present else 1
        key = (
            (request.key_id or (present.key if present else None) or DEFAULT_KEY)
            if kind == "SecureString"
            else None
        )
        return ParameterFacts(
            name, kind, tier, version, present.owner if present else call.caller.principal, key,
            description or None, pattern or None, request.data_type, call.now, call.caller.principal,
            max(1, version - PARAMETER_VERSIONS_KEPT + 1), None, present.labels if present else {},
            present.tags if present else {tag.key: tag.value for tag in request.tags}, call.scope, policies,
        )  # fmt: skip

    def _check_room(self, scope: str, tier: str) -> None:
        limit = self._limits.parameters(tier)
        if self._tree.count_of(scope, tier) >= limit:
            raise LimitExceeded(f"You have reached the maximum of {limit} {tier.lower()} parameters.")

    def delete_parameter(self, call: Call) -> Empty:
        """DeleteParameter."""
        self._delete(call, call.request.name)
        return Empty()

    def delete_parameters(self, call: Call) -> shapes.DeleteParametersResponse:
        """DeleteParameters."""
        deleted, missing = [], []
        for name in dict.fromkeys(call.request.names):
            try:
                self._delete(call, name)
                deleted.append(name)
            except (ParameterNotFound, InvalidRequest):
                missing.append(name)
        return shapes.DeleteParametersResponse(deleted_parameters=deleted, invalid_parameters=missing)

    def _delete(self, call: Call, name: str) -> None:
        self._remove(self.visible(call, name))

    def _remove(self, facts: ParameterFacts) -> None:
        place = self._place(facts)
        with self._store.transaction() as work:
            for version in range(facts.oldest, facts.version + 1):
                work.delete(Table.PARAMETER_VERSION, f"{place}:{version}")
            work.delete(Table.PARAMETER, place)
        self._drop(facts)

    def _drop(self, facts: ParameterFacts) -> None:
        for version in range(facts.oldest, facts.version + 1):
            self._held.pop((facts.scope, facts.name, version), None)
        self._tree.remove(facts)
        self._tell(facts, "Delete")

    def take(self, changes: Changes) -> None:
        """Let what other daemons wrote be seen here."""
        for place in changes.get(Table.PARAMETER_VERSION, {}):
            # A parameter that was removed and made anew has other values under the same numbers.
            owner, _, version = place.rpartition(":")
            present = self._find(*self._named(owner))
            if present is not None:
                self._held.pop((present.scope, present.name, int(version)), None)
        for place, row in changes.get(Table.PARAMETER, {}).items():
            present = self._find(*self._named(place))
            if row is None:
                if present is not None:
                    self._drop(present)
                continue
            facts = facts_of(row, self._home)
            self._tree.put(facts)
            self._tell(facts, "Create" if present is None else "Update")

    def _named(self, place: str) -> tuple[str, str]:
        """Return scope and name, in either spelling, of a parameter by its row's natural key."""
        if not place.startswith("arn:"):
            return self._home, place
        _, _, _, region, account, resource = place.split(":", 5)
        path = resource.removeprefix("parameter/")
        return f"{region}:{account}", f"/{path}" if "/" in path else path

    def _tell(self, facts: ParameterFacts, operation: str) -> None:
        """Publish a change, in the words of EventBridge's "Parameter Store Change" where it has some."""
        shown = lambda caller, _now: facts.owner == caller.principal or caller.root  # noqa: E731
        self._publish(Change("ssm", operation, facts.scope, facts.arn, facts.name, shown))

    def act_on_policies(self, now: float) -> list[tuple[str, str]]:
        """Remove what has expired and note which notices are due; return (what happened, ARN) of each."""
        happened = []
        for facts in self._tree.with_policies():
            policies = read_policies(facts.policies, facts.modified)
            if _expired(facts, now):
                self._remove(facts)
                happened.append(("Expiration", facts.arn))
                continue
            due = notices_due(policies, facts.told, now)
            if due:
                told = replace(facts, told=facts.told | sum(bit for bit, _ in due))
                for _, kind in due:
                    self.replace_facts(told, kind)
                    happened.append((kind, facts.arn))
        return happened

    def count(self) -> int:
        """Return how many parameters there are."""
        return len(self._tree)

    def key_arns(self) -> Iterator[str]:
        """Yield the ARN of the KMS key of each SecureString's newest version."""
        return (facts.key_arn for facts in self._tree.everything() if facts.key_arn is not None)

    def stored_values(self) -> Iterator[tuple[str, bytes]]:
        """Yield (ARN, sealed value) of every version of every SecureString."""
        for row in self._store.scan(Table.PARAMETER_VERSION):
            facts = facts_of(row, self._home)
            if facts.key is not None:
                yield facts.arn, row["value"]

    def _place(self, facts: ParameterFacts) -> str:
        """Return the natural key of a parameter's row."""
        return facts.name if facts.scope == self._home else facts.arn

    # --- reading ------------------------------------------------------------------------------------------

    def get_parameter(self, call: Call) -> shapes.GetParameterResponse:
        """GetParameter."""
        request: shapes.GetParameterRequest = call.request
        if request.name.startswith(SECRET_PREFIX):
            return shapes.GetParameterResponse(parameter=self._secret(call, request.name, request.with_decryption))
        selector = parse_selector(request.name, call.scope)
        return shapes.GetParameterResponse(
            parameter=self._read(call, selector, decrypt=request.with_decryption)
        )

    def get_parameters(self, call: Call) -> shapes.GetParametersResponse:
        """GetParameters."""
        request: shapes.GetParametersRequest = call.request
        found, missing = [], []
        for text in dict.fromkeys(request.names):
            try:
                if text.startswith(SECRET_PREFIX):
                    found.append(self._secret(call, text, request.with_decryption))
                    continue
                selector = parse_selector(text, call.scope)
                found.append(self._read(call, selector, decrypt=request.with_decryption))
            except NotFound:
                missing.append(text)
        return shapes.GetParametersResponse(parameters=found, invalid_parameters=missing)

    def _secret(self, call: Call, text: str, decrypt: bool) -> shapes.Parameter:
        self._require_identity(call, text)
        return self._values.of_secret(call, text, parameter_arn(call.scope, text), decrypt=decrypt)

    def get_parameters_by_path(self, call: Call) -> shapes.GetParametersByPathResponse:
        """GetParametersByPath."""
        request: shapes.GetParametersByPathRequest = call.request
        path = check_path(request.path)
        self._require_identity(call, path or "/")
        test = make_test(request.parameter_filters, _PATH_FILTERS)

        def wanted(name: str) -> bool:
            facts = self._tree.at(call.scope, name)
            return below(name, path, recursive=request.recursive) and self._lists(call, facts) and test(facts)

        low, high = (path + "/", path + "0") if path else ("", None)
        page, token = self._tree.names_in(call.scope).token_page(request.max_results, request.next_token, wanted, low, high)
        read = [
            self._parameter(call, self._tree.at(call.scope, name), Selector(name, None, None), request.with_decryption)
            for name in page
        ]
        return shapes.GetParametersByPathResponse(parameters=read, next_token=token)

    def get_parameter_history(self, call: Call) -> shapes.GetParameterHistoryResponse:
        """GetParameterHistory."""
        request: shapes.GetParameterHistoryRequest = call.request
        newest = self.visible(call, request.name)
        marks = [f"{version:012d}" for version in range(newest.oldest, newest.version + 1)]
        page, token = token_page_of(marks, request.max_results, request.next_token)
        entries = []
        size = 0
        for mark in page:
            facts, stored = self._version(newest, int(mark))
            entries.append(
                shapes.ParameterHistory(
                    name=facts.name,
                    type=facts.type,
                    key_id=facts.key,
                    last_modified_date=facts.modified,
                    last_modified_user=facts.user,
                    description=facts.description,
                    value=self._values.show(call, facts, stored, decrypt=request.with_decryption),
                    allowed_pattern=facts.pattern,
                    version=facts.version,
                    labels=labels_of(newest, facts.version),
                    tier=facts.tier,
                    policies=_shown(facts),
                    data_type=facts.data_type,
                )
            )
            size += len(stored)
            if size >= ANSWER_VALUES_BYTES and mark != marks[-1]:
                token = marker_after(mark)
                break
        return shapes.GetParameterHistoryResponse(parameters=entries, next_token=token)

    def describe_parameters(self, call: Call) -> shapes.DescribeParametersResponse:
        """DescribeParameters."""
        request: shapes.DescribeParametersRequest = call.request
        self._require_identity(call, "*")
        if request.filters and request.parameter_filters:
            raise InvalidRequest("You can use either Filters or ParameterFilters in a single request.")
        test = make_test(request.parameter_filters, _DESCRIBE_FILTERS)
        if request.filters:
            test = make_old_test(request.filters)
        scope = call.scope
        wanted = lambda name: self._lists(call, facts := self._tree.at(scope, name)) and test(facts)  # noqa: E731
        page, token = self._tree.names_in(scope).token_page(request.max_results, request.next_token, wanted)
        return shapes.DescribeParametersResponse(
            parameters=[self._describe(self._tree.at(scope, name)) for name in page], next_token=token
        )

    def _describe(self, facts: ParameterFacts) -> shapes.ParameterMetadata:
        return shapes.ParameterMetadata(
            name=facts.name,
            arn=facts.arn,
            type=facts.type,
            key_id=facts.key,
            last_modified_date=facts.modified,
            last_modified_user=facts.user,
            description=facts.description,
            allowed_pattern=facts.pattern,
            version=facts.version,
            tier=facts.tier,
            policies=_shown(facts),
            data_type=facts.data_type,
        )

    def _read(self, call: Call, selector: Selector, *, decrypt: bool) -> shapes.Parameter:
        try:
            newest = self.visible(call, selector.name)
        except ParameterNotFound:
            raise ParameterNotFound(f"Parameter {(selector.name + (selector.suffix or ''))[:256]} not found.") from None
        return self._parameter(call, newest, selector, decrypt)

    def _parameter(
        self, call: Call, newest: ParameterFacts, selector: Selector, decrypt: bool
    ) -> shapes.Parameter:
        version = selector.version or newest.version
        if selector.label is not None:
            version = newest.labels.get(selector.label, 0)
        facts, stored = self._version(newest, version)
        return shapes.Parameter(
            name=facts.name,
            type=facts.type,
            value=self._values.show(call, facts, stored, decrypt=decrypt),
            version=facts.version,
            selector=selector.suffix,
            last_modified_date=facts.modified,
            arn=facts.arn,
            data_type=facts.data_type,
        )

    def replace_facts(self, facts: ParameterFacts, operation: str) -> None:
        """Store a parameter's changed labels, tags or notices; `operation` is what the change is called."""
        with self._store.transaction() as work:
            work.put(Table.PARAMETER, self._place(facts), facts.row())
        self._tree.put(facts)
        self._tell(facts, operation)

    def require_version(self, newest: ParameterFacts, version: int) -> int:
        """Return the number of a version that is kept.

        Raises:
            ParameterVersionNotFound: if it is not.
        """
        if not newest.oldest <= version <= newest.version:
            raise ParameterVersionNotFound(
                f"Systems Manager could not find version {version} of {newest.name}. "
                "Verify the version and try again."
            )
        return version

    def _version(self, newest: ParameterFacts, version: int) -> tuple[ParameterFacts, bytes]:
        self.require_version(newest, version)
        place = (newest.scope, newest.name, version)
        held = self._held.get(place)
        if held is None:
            row = self._store.get(Table.PARAMETER_VERSION, f"{self._place(newest)}:{version}")
            if row is None:
                raise CorruptStore(f"version {version} of a parameter is missing from the state")
            held = self._held[place] = facts_of(row, self._home), row["value"]
            if len(self._held) > _VERSIONS_HELD:
                del self._held[next(iter(self._held))]
        return held

    def visible(self, call: Call, name: str) -> ParameterFacts:
        """Return the newest facts of a parameter that the caller may see.

        Raises:
            ParameterNotFound: if there is none, or it is somebody else's.
        """
        self._require_identity(call, name)
        facts = self._find(call.scope, name)
        if facts is None or not self._owns(call, facts) or _expired(facts, call.now):
            raise ParameterNotFound(f"Parameter {name[:256]} not found.")
        return facts

    def _lists(self, call: Call, facts: ParameterFacts) -> bool:
        """Tell whether the caller's listings show it: what has expired may still wait to be removed."""
        return self._owns(call, facts) and not _expired(facts, call.now)

    def _owns(self, call: Call, facts: ParameterFacts) -> bool:
        """Tell whether the caller may do what he asks for: whose it is, the account, or whom IAM lets.

        A unit has what the account's keepers put where its credentials lie: what others put there is not for it.
        """
        if call.caller.unit:
            return facts.owner in self._keepers and belongs_to(call.caller.unit, facts.name)
        return facts.owner == call.caller.principal or call.caller.root or call.caller.identity is not None

    def _require_identity(self, call: Call, name: str) -> None:
        """Who comes through IAM needs its consent for each name (or `*`), whether it is there or not; guardrails bar everybody.

        Raises:
            AccessDenied: if nothing allows it, or a guardrail denies it.
        """
        caller = call.caller
        asks_nobody = caller.identity is None or caller.root
        if asks_nobody and not self._guardrails.policies:
            return
        action, arn = call.operation.action, name if name == "*" else parameter_arn(call.scope, name)
        values = values_of_management(call)
        facts = self._find(call.scope, name)
        if facts is not None and facts.tags:
            values = {**values, **values_of_resource("ssm", facts.tags)}
        question = Question(action, arn, now=call.now, values=values)
        self._guardrails.require_silence(caller, question)
        if asks_nobody:
            return
        decision = decide_by_identity(caller, question)
        call.decided_by = decision.by
        if not decision.allowed:
            raise AccessDenied(
                f"User: {caller.principal} is not authorized to perform: {action} on resource: {arn} because no "
                f"identity-based policy allows the {action} action"
            )


def _expired(facts: ParameterFacts, now: float) -> bool:
    if not facts.policies:
        return False
    expiration = expiration_of(read_policies(facts.policies, facts.modified))
    return expiration is not None and expiration <= now


def _shown(facts: ParameterFacts) -> list[shapes.InlinePolicy] | None:
    policies = read_policies(facts.policies, facts.modified)
    return [
        shapes.InlinePolicy(
            policy_text=policy.text,
            policy_type=policy.kind,
            policy_status="Finished" if facts.told >> position & 1 else "Pending",
        )
        for position, policy in enumerate(policies)
    ] or None
