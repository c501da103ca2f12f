"""Values in Gemma 4's notation as expressions of a grammar: `[<|"|>text<|"|>,1,{key:true}]`.

Owns how much of a schema the notation is held to: types, names, what is required, numbers and lengths of arrays as the
schema has them, texts to an `enum` only. What a schema says in other ways may be any value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from backends.llama_cpp.structured.lark import EMPTY, Lark, listed, one_of

_QUOTE = '<|"|>'
_SCALARS = frozenset({"null", "boolean", "integer", "number"})
_ANYTHING = "gemma_value"
_JOINED = ("allOf", "oneOf", "patternProperties")


class GemmaValues:
    """The values of one schema. Definitions that are referred to become rules once."""

    def __init__(self, whole: Mapping[str, Any], lark: Lark) -> None:
        self._whole = whole
        self._lark = lark
        self._named: dict[str, str] = {}

    def arguments(self) -> str:
        """What stands between the braces of a call."""
        return self._pairs(self._whole)

    def _value(self, schema: object) -> str:
        if not isinstance(schema, Mapping) or any(key in schema for key in _JOINED):
            return anything(self._lark)
        if "$ref" in schema:
            return self._reference(schema["$ref"])
        if "const" in schema or "enum" in schema:
            return self._literals([schema["const"]] if "const" in schema else schema["enum"])
        if "anyOf" in schema:
            return one_of(self._value(one) for one in schema["anyOf"])
        kinds = schema.get("type", ())
        several = [kinds] if isinstance(kinds, str) else kinds
        return one_of(self._of_type(kind, schema) for kind in several) if several else anything(self._lark)

    def _of_type(self, kind: str, schema: Mapping[str, Any]) -> str:
        lark = self._lark
        if kind in _SCALARS:
            return lark.json(json.dumps({**_numeric(schema), "type": kind}))
        if kind == "string":
            return f"{lark.text(_QUOTE)} {lark.until(_QUOTE)}"
        if kind == "array":
            return f'"[" {self._items(schema)} "]"'
        return f'"{{" {self._pairs(schema)} "}}"'

    def _items(self, schema: Mapping[str, Any]) -> str:
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if most == 0:
            return EMPTY
        mixed = "prefixItems" in schema
        item = anything(self._lark) if mixed else self._lark.rule(self._value(schema.get("items", True)))
        after = f'{item} ("," {item}){{{max(least - 1, 0)},{"" if most is None else most - 1}}}'
        return after if least else f"({after})?"

    def _pairs(self, schema: Mapping[str, Any]) -> str:
        lark, required = self._lark, schema.get("required", ())
        named = {key: one for key, one in schema.get("properties", {}).items() if one is not False}
        missing = [key for key in required if key not in named]
        if not named and not missing:
            # No names are given: any.
            if schema.get("additionalProperties") is False:
                return EMPTY
            anything(lark)
            return f"({any_pairs()})?"
        written = {**named, **dict.fromkeys(missing, schema.get("additionalProperties", True))}
        pairs = [lark.rule(f"{lark.text(f'{key}:')} {self._value(one)}") for key, one in written.items()]
        return listed(pairs, [key not in required for key in written], '","', lark)

    def _literals(self, values: list[Any]) -> str:
        lark = self._lark
        return one_of(
            lark.text(_QUOTE + value + _QUOTE) if isinstance(value, str) else lark.json(json.dumps({"const": value}))
            for value in values
        )

    def _reference(self, reference: str) -> str:
        if reference not in self._named:
            self._named[reference] = name = self._lark.fresh()
            self._lark.add(f"{name}: {self._value(self._whole['$defs'][reference.rpartition('/')[2]])}")
        return self._named[reference]


def anything(lark: Lark) -> str:
    """Any value."""
    if not lark.has(_ANYTHING):
        scalar = lark.json(json.dumps({"type": sorted(_SCALARS)}))
        text = f"{lark.text(_QUOTE)} {lark.until(_QUOTE)}"
        items = f'{_ANYTHING} ("," {_ANYTHING})*'
        lark.add(f'{_ANYTHING}: {scalar} | {text} | "[" ({items})? "]" | "{{" ({any_pairs()})? "}}"')
    return _ANYTHING


def any_pairs() -> str:
    """Any keys with any values, at least one."""
    pair = f'/[A-Za-z_][A-Za-z0-9_.-]{{0,63}}/ ":" {_ANYTHING}'
    return f'{pair} ("," {pair})*'


def _numeric(schema: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
    return {key: schema[key] for key in kept if key in schema}
