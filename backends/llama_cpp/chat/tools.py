"""The tools of one request, as parsers and grammars need them. Data and lookups only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Schema = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call. `parameters` is the JSON schema of its arguments, always an object's."""

    name: str
    parameters: Schema
    description: str = ""

    def takes_text(self, key: str) -> bool:
        """Whether this argument is a string and nothing else, so that its text needs no quotes."""
        properties = self.parameters.get("properties")
        schema = properties.get(key) if isinstance(properties, Mapping) else None
        if not isinstance(schema, Mapping):
            return False
        values = schema.get("enum")
        if "type" not in schema and isinstance(values, list) and values:
            return all(isinstance(value, str) for value in values)
        return schema.get("type") == "string"


Tools = Mapping[str, Tool]
"""By name, in the order of the request."""

Call = tuple[str, Mapping[str, object]]
"""A name and the arguments."""
