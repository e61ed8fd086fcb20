"""Handlers of labels and tags of parameters."""

from dataclasses import replace

from kmsd.dispatch.call import Call
from kmsd.parameters.labels import attach, detach
from kmsd.parameters.records import ParameterFacts
from kmsd.parameters.service import ParameterService
from kmsfs.api.shapes import parameters as shapes
from kmsfs.api.shapes.keys import Empty
from kmsfs.errors import InvalidResourceId, InvalidResourceType, ParameterNotFound, TooManyTags

TAGS_MAX = 50


class ParameterMarkService:
    """LabelParameterVersion to ListTagsForResource."""

    def __init__(self, parameters: ParameterService) -> None:
        self._parameters = parameters

    def label_parameter_version(self, call: Call) -> shapes.LabelParameterVersionResponse:
        """LabelParameterVersion: the newest version if none is named."""
        request: shapes.LabelParameterVersionRequest = call.request
        facts = self._parameters.visible(call, request.name)
        asked = request.parameter_version
        version = self._parameters.require_version(facts, facts.version if asked is None else asked)
        labels, invalid = attach(facts, version, request.labels)
        self._parameters.replace_facts(replace(facts, labels=labels), call.operation.wire_name)
        return shapes.LabelParameterVersionResponse(invalid_labels=invalid, parameter_version=version)

    def unlabel_parameter_version(self, call: Call) -> shapes.UnlabelParameterVersionResponse:
        """UnlabelParameterVersion."""
        request: shapes.UnlabelParameterVersionRequest = call.request
        facts = self._parameters.visible(call, request.name)
        version = self._parameters.require_version(facts, request.parameter_version)
        labels, removed, invalid = detach(facts, version, request.labels)
        self._parameters.replace_facts(replace(facts, labels=labels), call.operation.wire_name)
        return shapes.UnlabelParameterVersionResponse(removed_labels=removed, invalid_labels=invalid)

    def add_tags_to_resource(self, call: Call) -> Empty:
        """AddTagsToResource, for parameters."""
        facts = self._tagged(call)
        tags = {**facts.tags, **{tag.key: tag.value for tag in call.request.tags}}
        if len(tags) > TAGS_MAX:
            raise TooManyTags(f"A parameter has at most {TAGS_MAX} tags.")
        self._parameters.replace_facts(replace(facts, tags=tags), call.operation.wire_name)
        return Empty()

    def remove_tags_from_resource(self, call: Call) -> Empty:
        """RemoveTagsFromResource, for parameters; a tag that is not there is no error."""
        facts = self._tagged(call)
        gone = set(call.request.tag_keys)
        tags = {name: value for name, value in facts.tags.items() if name not in gone}
        self._parameters.replace_facts(replace(facts, tags=tags), call.operation.wire_name)
        return Empty()

    def list_tags_for_resource(self, call: Call) -> shapes.ListTagsForResourceResponse:
        """ListTagsForResource, for parameters."""
        tags = self._tagged(call).tags
        listed = [shapes.Tag(key=name, value=tags[name]) for name in sorted(tags)]
        return shapes.ListTagsForResourceResponse(tag_list=listed)

    def _tagged(self, call: Call) -> ParameterFacts:
        if call.request.resource_type != "Parameter":
            raise InvalidResourceType(f"{call.request.resource_type} resources are not kept here.")
        try:
            return self._parameters.visible(call, call.request.resource_id)
        except ParameterNotFound as error:
            raise InvalidResourceId(f"Parameter {call.request.resource_id[:256]} does not exist.") from error
