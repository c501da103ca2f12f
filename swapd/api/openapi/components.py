"""Types as named JSON schemas, each dialect's with its own prefix. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

_TEMPLATE = "#/components/schemas/{name}"


def components(prefix: str, shapes: Iterable[type]) -> tuple[dict[type, dict[str, Any]], dict[str, Any]]:
    """What refers to each type, and the schemas that stand under `components/schemas`.

    msgspec names them after their classes, with the module before it where two are called the same.
    """
    wanted = list(dict.fromkeys(shapes))
    refs, found = msgspec.json.schema_components(wanted, ref_template=_TEMPLATE)
    names = {name: f"{prefix}.{name.rpartition('.')[2].lstrip('_')}" for name in found}
    assert len(set(names.values())) == len(names), f"two types of {prefix} have the same name: {sorted(found)}"
    targets = {_TEMPLATE.format(name=old): _TEMPLATE.format(name=new) for old, new in names.items()}
    schemas = {names[old]: _renamed(schema, targets) for old, schema in found.items()}
    for schema in schemas.values():
        schema.pop("title", None)
    return {shape: _renamed(ref, targets) for shape, ref in zip(wanted, refs, strict=True)}, schemas


def with_synonyms(schema: Mapping[str, Any], synonyms: Mapping[str, str]) -> dict[str, Any]:
    """An object's schema where a required field may come by another name as well."""
    made: dict[str, Any] = dict(schema)
    properties = dict(made["properties"])
    required = [name for name in made["required"] if name not in synonyms.values()]
    for other, own in synonyms.items():
        properties[other] = {"description": f"In place of `{own}`."}
    made["properties"] = properties
    made["required"] = required
    made["allOf"] = [{"anyOf": [{"required": [own]}, {"required": [other]}]} for other, own in synonyms.items()]
    return made


def _renamed(value: Any, targets: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {
            key: targets[inner] if key == "$ref" and inner in targets else _renamed(inner, targets)
            for key, inner in value.items()
        }
    return [_renamed(inner, targets) for inner in value] if isinstance(value, list | tuple) else value
