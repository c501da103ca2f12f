"""Whether two schemas have no value in common, as far as that can be shown: then `oneOf` is the same as `anyOf`.

Pure. Made for schemas whose references all go to `$defs`, as `schema` writes them. "Not shown" is an answer, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Node = Mapping[str, Any] | bool

MAX_STEPS = 12
"""References followed and properties gone into before it counts as not shown."""


def disjoint(one: Node, other: Node, defs: Mapping[str, Node], steps: int = 0) -> bool:
    """Whether no value follows both."""
    one, other = _resolved(one, defs), _resolved(other, defs)
    if isinstance(one, bool) or isinstance(other, bool):
        return one is False or other is False
    if steps > MAX_STEPS:
        return False
    for first, second in ((one, other), (other, one)):
        for key in ("anyOf", "oneOf"):
            if key in first:
                return all(disjoint(part, second, defs, steps + 1) for part in first[key])
    values, others = _literals(one), _literals(other)
    if values is not None and others is not None:
        return values.isdisjoint(others)
    kinds, other_kinds = _kinds(one), _kinds(other)
    if kinds is None or other_kinds is None:
        return False
    if kinds.isdisjoint(other_kinds):
        return True
    if kinds != {"object"} or other_kinds != {"object"}:
        return False
    keys = dict.fromkeys([*one.get("required", ()), *other.get("required", ())])
    return any(disjoint(_property(one, key), _property(other, key), defs, steps + 1) for key in keys)


def _resolved(node: Node, defs: Mapping[str, Node]) -> Node:
    for _ in range(MAX_STEPS):
        if isinstance(node, bool) or node.keys() != {"$ref"}:
            return node
        node = defs[node["$ref"].rpartition("/")[2]]
    return True


def _property(node: Mapping[str, Any], key: str) -> Node:
    if "patternProperties" in node:
        return True
    found: Node = node.get("properties", {}).get(key, node.get("additionalProperties", True))
    return found


def _literals(node: Mapping[str, Any]) -> set[str] | None:
    if "const" in node:
        return {_canonical(node["const"])}
    return {_canonical(value) for value in node["enum"]} if "enum" in node else None


def _canonical(value: object) -> str:
    """Equal texts for equal JSON values: 1 is 1.0 and not true."""
    if isinstance(value, dict):
        return repr(sorted((key, _canonical(one)) for key, one in value.items()))
    if isinstance(value, list):
        return repr([_canonical(one) for one in value])
    if isinstance(value, float) and value.is_integer():
        return repr(int(value))
    return repr(value)


def _kinds(node: Mapping[str, Any]) -> set[str] | None:
    """The types of its values, where they are said. Whole numbers are numbers."""
    if "const" in node or "enum" in node:
        return {_kind(value) for value in ([node["const"]] if "const" in node else node["enum"])}
    if "type" not in node:
        return None
    kinds = [node["type"]] if isinstance(node["type"], str) else node["type"]
    return {"number" if kind == "integer" else kind for kind in kinds}


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"
