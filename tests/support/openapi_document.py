"""The published document, read as a client reads it."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
from jsonschema import Draft202012Validator, validators
from referencing import Registry, Resource
from support.front_door import ScriptedDoor, book_in_memory

from swapd.api.openapi.document import Route, document
from swapd.config.schema import Config
from swapd.http.openapi import routes_of
from swapd.http.server import make_app
from swapd.observe.metrics import Metrics


@cache
def routes() -> tuple[Route, ...]:
    """Every route of the daemon's application."""
    with book_in_memory() as book:
        return tuple(routes_of(make_app(ScriptedDoor(), Config, Metrics(), book)))


@cache
def published() -> dict[str, Any]:
    """The document as its readers have it."""
    read: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(document(routes(), "0")))
    return read


def followed(value: dict[str, Any]) -> dict[str, Any]:
    """What a `$ref` leads to."""
    while "$ref" in value:
        found: Any = published()
        for step in value["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        value = found
    return value


def _is_integer(_checker: object, value: object) -> bool:
    """Written as one, as the daemon wants it: JSON Schema takes 1.0 and 1e308 as well."""
    return isinstance(value, int) and not isinstance(value, bool)


_Validator = validators.extend(
    Draft202012Validator, type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_integer)
)


def validator(schema: dict[str, Any]) -> Any:
    """One that knows the document's components."""
    resource = Resource.from_contents(published() | {"$schema": "https://json-schema.org/draft/2020-12/schema"})
    return _Validator(_absolute(schema), registry=Registry().with_resource("urn:swapd", resource))


def _absolute(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: f"urn:swapd{inner}" if key == "$ref" and inner.startswith("#") else _absolute(inner)
            for key, inner in value.items()
        }
    return [_absolute(inner) for inner in value] if isinstance(value, list) else value
