"""The tools of a request as grammars need them: each with the schema of its arguments, whole and by argument."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backends.llama_cpp.chat.tools import Tool
from backends.llama_cpp.structured.schema import enforceable


@dataclass(frozen=True, slots=True)
class Argument:
    """One named argument."""

    name: str
    schema: str
    """Enforceable, as JSON."""
    required: bool
    is_text: bool
    """Its text stands without quotes where a family writes texts so."""
    literals: tuple[str, ...]
    """The only texts that it may be; empty if there are no such."""
    kinds: frozenset[str]
    """The types that it may be of, where any value of them will do."""


@dataclass(frozen=True, slots=True)
class CallSchema:
    """A function and what it may be called with."""

    name: str
    whole: str
    """The schema of all arguments, enforceable, as JSON."""
    arguments: tuple[Argument, ...]
    """In the order in which they are to be written."""
    known: bool = True
    """False: the schema cannot be enforced, and anything may be an argument."""


def call_schema(tool: Tool, param: str) -> CallSchema:
    """Raises `RequestError` that names `param` for a schema that cannot be enforced."""
    whole = enforceable(tool.parameters, param)
    schema = json.loads(whole)
    required = schema.get("required", [])
    named: dict[str, Any] = schema.get("properties", {})
    # What is required and not described may be anything.
    missing = {key: schema.get("additionalProperties", True) for key in required if key not in named}
    frame = {key: schema[key] for key in ("x-guidance", "$defs") if key in schema}
    arguments = tuple(
        Argument(
            key,
            json.dumps({**frame, **(one if isinstance(one, dict) else {"allOf": [one]})}, ensure_ascii=False),
            key in required,
            tool.takes_text(key),
            _literals(one) if tool.takes_text(key) else (),
            _kinds(one),
        )
        for key, one in {**named, **missing}.items()
        if one is not False
    )
    return CallSchema(tool.name, whole, arguments)


def any_call(tool: Tool) -> CallSchema:
    """A call of this function with any arguments."""
    return CallSchema(tool.name, '{"type": "object"}', (), known=False)


def _literals(schema: object) -> tuple[str, ...]:
    if not isinstance(schema, dict):
        return ()
    values: Sequence[object] = [schema["const"]] if "const" in schema else schema.get("enum", ())
    return tuple(value for value in values if isinstance(value, str))


def _kinds(schema: object) -> frozenset[str]:
    if not isinstance(schema, dict) or "const" in schema or "enum" in schema:
        return frozenset()
    kinds = schema.get("type", ())
    return frozenset([kinds] if isinstance(kinds, str) else kinds)
