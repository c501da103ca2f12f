"""The document itself, from the routes that there are and what the tables say of them. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from swapd.api.openapi import answers, openai, others, own
from swapd.api.openapi.components import components, with_synonyms
from swapd.api.openapi.operation import (
    AT_THE_DOOR,
    CHANGING,
    JSON,
    KEYED,
    STRING,
    Body,
    Dialect,
    Operation,
    Shape,
)
from swapd.config.keys import HIGHEST_PRIORITY, LOWEST_PRIORITY
from swapd.errors import KeyLimitError, SwapdError

ANY_METHOD = "*"
EVERY_METHOD = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""What `*` stands for here."""
_READS = ("GET", "HEAD", "OPTIONS")
_SCHEMAS = "#/components/schemas/"
_PARAMETER = re.compile(r"\{(\w+)\}")
_ABOUT = (
    "One door for the models of a machine. Every route checks its request, waits in the same queues and is bound by "
    "the same rules. Any other method of a path is 405, any other path 404. A 500 is a mistake of the daemon's own. "
    "Whole numbers are written without a fraction and fit 64 bits, and no name appears twice in an object. "
    "A stream that breaks ends with an error event, and without what ends a whole one."
)
_PARAMETERS: Mapping[str, str] = {
    "id": "Of a model an id or an alias, whose slashes may stand as they are; of a request its X-Request-Id.",
    "name": "Of a device, as llama.cpp prints it, or RAM; of a file.",
    "target": "MODEL/PATH",
    "digest": "Of a file.",
}


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path, as the application has it. `scope` is what its key must be for; None is for nobody's."""

    method: str
    path: str
    scope: str | None


def described() -> dict[tuple[str, str], Operation]:
    """Whatever is said of a route, by method (`*` is any) and path."""
    return openai.operations() | openai.UPSTREAM | others.operations() | own.operations()


def document(routes: Iterable[Route], version: str) -> dict[str, Any]:
    """The OpenAPI document. Raises `LookupError` for a route of which nothing is said."""
    operations = _expanded(routes)
    refs, schemas = _components(operation for _, operation in operations)
    shared = _Shared()
    paths: dict[str, dict[str, Any]] = defaultdict(dict)
    for route, operation in operations:
        made = _operation(route, operation, refs)
        made["responses"] = _responses(route, operation, refs, shared)
        paths[route.path][route.method.lower()] = made
    return {
        "openapi": "3.1.0",
        "info": {"title": "swapd", "version": version, "description": _ABOUT, "license": {"name": "Apache-2.0"}},
        "servers": [{"url": "/"}],
        "tags": [{"name": dialect.value} for dialect in Dialect],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "responses": dict(sorted(shared.made.items())),
            "headers": _HEADERS,
            "parameters": _HEADER_PARAMETERS,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
    }


def _expanded(routes: Iterable[Route]) -> list[tuple[Route, Operation]]:
    known = described()
    found: list[tuple[Route, Operation]] = []
    for route in routes:
        operation = known.get((route.method, route.path))
        if operation is None and route.method == "HEAD":
            operation = known.get(("GET", route.path))
        if operation is None:
            raise LookupError(f"nothing is said of {route.method} {route.path} in {__package__}")
        methods = EVERY_METHOD if route.method == ANY_METHOD else (route.method,)
        found += [(replace(route, method=method), operation) for method in methods]
    return found


def _components(operations: Iterable[Operation]) -> tuple[dict[tuple[str, type], Any], dict[str, Any]]:
    """What refers to a type, by the dialect that has it, and all schemas."""
    types: dict[str, list[type]] = defaultdict(list)
    bodies: list[tuple[str, Body]] = []
    for operation in operations:
        name = operation.dialect.value
        shapes: list[Shape] = list(operation.answers.values())
        if operation.body is not None:
            shapes.append(operation.body.shape)
            bodies.append((name, operation.body))
        types[name] += [shape for shape in shapes if isinstance(shape, type)]
    refs: dict[tuple[str, type], Any] = {}
    schemas: dict[str, Any] = {_error_name(dialect): dict(error) for dialect, error in answers.ERRORS.items()}
    for name, wanted in types.items():
        found, made = components(name, wanted)
        refs |= {(name, shape): ref for shape, ref in found.items()}
        schemas |= made
    for name, body in bodies:
        if body.synonyms and isinstance(body.shape, type):
            target = refs[name, body.shape]["$ref"].rpartition("/")[2]
            schemas[target] = with_synonyms(schemas[target], body.synonyms)
    return refs, schemas


def _error_name(dialect: Dialect) -> str:
    return f"{dialect.value if dialect in answers.ERRORS else Dialect.OPENAI.value}.Error"


def _operation(route: Route, operation: Operation, refs: Mapping[tuple[str, type], Any]) -> dict[str, Any]:
    name = operation.dialect.value
    made: dict[str, Any] = {
        "operationId": "_".join(re.findall(r"\w+", f"{route.method.lower()} {route.path}")),
        "summary": operation.summary,
        "tags": [name],
    }
    if operation.about:
        made["description"] = operation.about
    if route.scope is not None:
        made["security"] = [{"bearer": [route.scope]}, {"key": [route.scope]}]
    if parameters := _parameters(route, operation):
        made["parameters"] = parameters
    if operation.body is not None:
        made["requestBody"] = _body(operation.body, name, refs)
    elif route.method in ("POST", "PUT", "PATCH") and operation.passes:
        made["requestBody"] = {"content": {"*/*": {"schema": {}}}}
    if operation.endless:
        made["x-endless"] = True
    return made


def _parameters(route: Route, operation: Operation) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": STRING, "description": _PARAMETERS[name]}
        for name in _PARAMETER.findall(route.path)
    ]
    made += [
        {"name": one.name, "in": "query", "schema": one.schema, "description": one.about} for one in operation.query
    ]
    if operation.leases:
        made += [{"$ref": f"#/components/parameters/{name}"} for name in _HEADER_PARAMETERS]
    return made


def _body(body: Body, prefix: str, refs: Mapping[tuple[str, type], Any]) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": _schema(body.shape, prefix, refs)}
    if body.examples:
        content["examples"] = {name: {"value": value} for name, value in body.examples.items()}
    return {"required": True, "content": {body.kind: content}}


def _schema(shape: Shape, prefix: str, refs: Mapping[tuple[str, type], Any]) -> Any:
    return refs[prefix, shape] if isinstance(shape, type) else shape


def errors_of(route: Route, operation: Operation) -> frozenset[type[SwapdError]]:
    """Every error that a route may have before an answer begins."""
    found = operation.errors | AT_THE_DOOR
    if route.method not in _READS:
        found |= CHANGING
    if route.scope is not None:
        found |= KEYED
    if route.scope == "inference" and route.method == "POST":
        found |= {KeyLimitError}
    return found


class _Shared:
    """Responses that several operations have, each said once."""

    def __init__(self) -> None:
        self.made: dict[str, Any] = {}

    def ref(self, name: str, response: Mapping[str, Any]) -> dict[str, Any]:
        number = 1
        while self.made.setdefault(full := f"{name}.{number}", response) != response:
            number += 1
        return {"$ref": f"#/components/responses/{full}"}


def _responses(
    route: Route, operation: Operation, refs: Mapping[tuple[str, type], Any], shared: _Shared
) -> dict[str, Any]:
    made: dict[str, Any] = {}
    error = _error_name(operation.dialect)
    content = {} if route.method == "HEAD" else {"content": {JSON: {"schema": {"$ref": _SCHEMAS + error}}}}
    if operation.answers:
        answer: dict[str, Any] = {
            "description": "The answer.",
            "headers": _header_refs("X-Request-Id", *(_OF_LEASES if operation.leases else ())),
        }
        if route.method != "HEAD":
            answer["content"] = {
                kind: {"schema": _schema(shape, operation.dialect.value, refs)}
                for kind, shape in operation.answers.items()
            }
        made["200"] = answer
    by_status: dict[int, list[type[SwapdError]]] = defaultdict(list)
    for kind in sorted(errors_of(route, operation), key=lambda one: one.__name__):
        by_status[kind.status].append(kind)
    for status, kinds in sorted(by_status.items()):
        waits = ("Retry-After",) if status in (429, 503) else ()
        told = {
            "description": " ".join(map(_told, kinds)),
            "headers": _header_refs("X-Request-Id", *waits),
            **content,
        }
        made[str(status)] = shared.ref(f"{error.partition('.')[0]}.{status}", told)
    if operation.unchanged:
        made["304"] = {"description": "The client has it already (`If-None-Match`)."}
    if operation.passes:
        made["default"] = {"description": "The worker's own answer, in its own words."}
    return made


def _told(kind: type[SwapdError]) -> str:
    about = (kind.__doc__ or "").partition("\n")[0] if kind.__doc__ != SwapdError.__doc__ else ""
    return f"`{kind.code or kind.type}`{': ' + about if about else ''}".rstrip(".") + "."


def _header_refs(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


_OF_LEASES = ("X-Swapd-Model", "X-Swapd-Queue-Time")
_HEADERS: Mapping[str, Any] = {
    "X-Request-Id": {"description": "The request's own id, or one that it got.", "schema": STRING},
    "X-Swapd-Model": {"description": "The id of the model that served.", "schema": STRING},
    "X-Swapd-Queue-Time": {"description": "Seconds that were waited for a place.", "schema": STRING},
    "Retry-After": {"description": "Seconds, where it is known when to come again.", "schema": STRING},
}
_HEADER_PARAMETERS: Mapping[str, Any] = {
    "X-Swapd-Priority": {
        "name": "X-Swapd-Priority",
        "in": "header",
        "description": "A class no higher than the client's own.",
        "schema": {"type": "integer", "minimum": LOWEST_PRIORITY, "maximum": HIGHEST_PRIORITY},
    },
}
