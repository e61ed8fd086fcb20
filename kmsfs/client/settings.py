"""A source for pydantic-settings: the parameter tree as the fields of a settings class. Needs `pip install kmsfs[pydantic]`.

Source of the interface: pydantic-settings, "Customise settings sources".
"""

from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from kmsfs.client.tree import nested, read_tree


class ParameterSource(PydanticBaseSettingsSource):
    """`/app/prod/db/password` below `/app/prod` is the field `password` of the nested model `db`.

    `-` and `.` in names become `_`; case counts if the settings class says so. Parameters that no field wants are left
    alone, as other sources do with variables.
    """

    def __init__(self, settings_cls: type[BaseSettings], path: str, *, client: Any = None) -> None:
        """Read the tree.

        Raises:
            InvalidRequest: if two parameters are one field.
            ClientError: if the tree cannot be read.
        """
        super().__init__(settings_cls)
        self._lower = not settings_cls.model_config.get("case_sensitive", False)
        self._tree = nested(read_tree(path, client), lower=self._lower)
        self._path = path

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return a field's value (None if no parameter is for it), the key that it goes by, and that it is no JSON text."""
        for name in (field_name, field.alias, field.validation_alias):
            if isinstance(name, str):
                key = name.lower() if self._lower else name
                if key in self._tree:
                    return self._tree[key], name, False
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return the tree's part that the fields want."""
        fields = self.settings_cls.model_fields
        found = [self.get_field_value(field, name) for name, field in fields.items()]
        return {key: value for value, key, _ in found if value is not None}

    def __repr__(self) -> str:
        return f"ParameterSource({self._path!r})"
