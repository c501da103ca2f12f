"""The published document says what the daemon does: its routes, what it takes and refuses, and which errors it has."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from openapi_spec_validator import validate
from support.body_fuzzer import BodyFuzzer
from support.front_door import ScriptedDoor, house
from support.openapi_document import followed, published, routes, validator

from swapd import errors
from swapd.api import admin, openai, strict_json
from swapd.api.anthropic import request as anthropic
from swapd.api.media import MediaBody
from swapd.api.ollama import request as ollama
from swapd.api.openapi.document import EVERY_METHOD, Route, described, document, errors_of
from swapd.api.responses import request as responses
from swapd.api.responses.store import ResponseStore
from swapd.api.shapes import shaped
from swapd.errors import BadRequestError, SwapdError
from swapd.http.errors import ERROR_FORMS
from swapd.http.media import DOCUMENTS
from swapd.http.openapi import PATH
from swapd.http.record import Record

BODIES = 150


def respond(body: bytes) -> object:
    store = ResponseStore()
    shelf = responses.Shelf(lambda name: store.find("c", name), lambda name, one: store.keep("c", name, one))
    return responses.read(body, response_id="resp_1", created_at=0, shelf=shelf)


def translated(read: Callable[[bytes], Any]) -> Callable[[bytes], object]:
    """A dialect's reader, and the check of what it makes."""

    def both(body: bytes) -> object:
        made = read(body)
        if made is not None:
            openai.check(made.endpoint, made.fields)
        return made

    return both


def of_ollama(read: Callable[[bytes, Any], ollama.Asked]) -> Callable[[bytes], object]:
    return translated(lambda body: read(body, Record(request_id="r", endpoint="e")).translated)


def reader(endpoint: openai.Endpoint) -> Callable[[bytes], object]:
    return lambda body: openai.read(endpoint, body)


READERS: dict[str, tuple[type, Callable[[bytes], object]]] = {
    **{
        path: (openai.shape_of(endpoint), reader(endpoint))
        for endpoint in openai.Endpoint
        for path in (endpoint.value, *openai.ALSO_AT.get(endpoint, ()))
    },
    "/v1/responses": (responses.ResponsesBody, translated(respond)),
    "/v1/messages": (anthropic.MessagesBody, translated(anthropic.read)),
    "/v1/messages/count_tokens": (anthropic.CountBody, translated(anthropic.read_count)),
    "/api/chat": (ollama.ChatBody, of_ollama(ollama.read_chat)),
    "/api/generate": (ollama.GenerateBody, of_ollama(ollama.read_generate)),
    "/api/embed": (ollama.EmbedBody, of_ollama(ollama.read_embed)),
    "/api/embeddings": (ollama.EmbeddingsBody, of_ollama(ollama.read_embeddings)),
    "/api/show": (ollama.NameBody, ollama.read_name),
    "/api/pull": (ollama.NameBody, ollama.read_name),
    **dict.fromkeys(DOCUMENTS, (MediaBody, lambda body: shaped(strict_json.parse_object(body), MediaBody))),
    "/swapd/v1/profiles/active": (admin.ProfileWish, admin.read_wish),
}
"""By path: the type of the body, and what reads it."""


def bodies() -> dict[str, dict[str, Any]]:
    """The JSON bodies that the document has, by path."""
    return {
        path: operation["requestBody"]["content"]["application/json"]
        for path, item in published()["paths"].items()
        for operation in item.values()
        if "application/json" in operation.get("requestBody", {}).get("content", {})
    }


def taken(read: Callable[[bytes], object], body: bytes) -> bool:
    try:
        read(body)
    except BadRequestError:
        return False
    return True


def test_the_document_is_valid_openapi() -> None:
    validate(published())


def test_the_document_has_every_route_and_no_other() -> None:
    in_app = {
        (method, route.path)
        for route in routes()
        for method in (EVERY_METHOD if route.method == "*" else (route.method,))
    }
    in_document = {(method.upper(), path) for path, operations in published()["paths"].items() for method in operations}
    assert in_document == in_app
    assert set(described()) <= {(route.method, route.path) for route in routes()}


def test_a_route_of_which_nothing_is_said_is_found() -> None:
    with pytest.raises(LookupError, match="nothing is said of GET /new"):
        document([Route("GET", "/new", None)], "0")


async def test_anybody_may_read_the_document() -> None:
    async with house(ScriptedDoor()) as home, home.http.get(PATH) as response:
        assert response.status == 200
        assert response.content_type == "application/json"
        assert (await response.json())["paths"] == published()["paths"]
    assert "security" not in published()["paths"][PATH]["get"]


def test_every_body_in_the_document_has_a_reader_here() -> None:
    assert set(bodies()) == set(READERS)


@pytest.mark.parametrize("path", READERS)
def test_examples_are_what_the_document_and_the_reader_take(path: str) -> None:
    content = bodies()[path]
    assert content["examples"]
    for name, example in content["examples"].items():
        assert validator(content["schema"]).is_valid(example["value"]), name
        assert taken(READERS[path][1], json.dumps(example["value"]).encode()), name


@pytest.mark.parametrize("path", READERS)
def test_the_document_refuses_what_the_type_refuses_and_nothing_that_the_reader_takes(path: str) -> None:
    content, (shape, read) = bodies()[path], READERS[path]
    documented = validator(content["schema"])
    has_synonyms = "allOf" in followed(content["schema"])
    fuzzer = BodyFuzzer(shape, seed=20261127, others=("name", "prompt", "x"))
    refused = accepted = 0
    for number in range(BODIES):
        body = fuzzer.body()
        try:
            fields = strict_json.parse_object(body)
        except BadRequestError:
            continue
        valid = documented.is_valid(fields)
        if taken(read, body):
            accepted += 1
            assert valid, f"body {number}: {body!r}"
        if not has_synonyms:
            try:
                msgspec.convert(fields, shape)
            except msgspec.ValidationError:
                refused += 1
                assert not valid, f"body {number}: {body!r}"
            else:
                assert valid, f"body {number}: {body!r}"
    assert accepted > 5
    assert refused > 5 or has_synonyms


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"model": "m", "messages": []}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": 3}),
        ("/v1/completions", {"model": "m", "prompt": "x", "n": 0}),
        ("/v1/embeddings", {"model": "m"}),
        ("/v1/messages", {"model": "m", "messages": [{"role": "user", "content": "x"}]}),
        ("/v1/responses", {"model": "m", "input": []}),
        ("/api/chat", {"messages": []}),
        ("/api/embed", {"name": "m", "dimensions": 0}),
        ("/detokenize", {"model": "m", "tokens": [-1]}),
        ("/swapd/v1/profiles/active", {"profile": "a", "other": 1}),
        ("/v1/images/generations", {"model": ""}),
    ],
)
def test_what_the_document_refuses_is_refused(path: str, body: dict[str, Any]) -> None:
    assert not validator(bodies()[path]["schema"]).is_valid(body)
    assert not taken(READERS[path][1], json.dumps(body).encode())


def _all_errors(kind: type[SwapdError] = SwapdError) -> set[type[SwapdError]]:
    return {kind}.union(*map(_all_errors, kind.__subclasses__()))


def test_every_error_is_documented_somewhere_but_those_of_no_route() -> None:
    found = {error for route in routes() for error in errors_of(route, described_of(route))}
    assert {kind for kind in _all_errors() if kind.__module__ == errors.__name__} - found == {
        SwapdError,
        errors.MethodNotAllowedError,
        # Told to a connection before there is a request.
        errors.HeadersTimeoutError,
        errors.TooManyConnectionsError,
    }


def described_of(route: Route) -> Any:
    known = described()
    return known.get((route.method, route.path)) or known["GET", route.path]


def test_an_error_has_the_form_that_the_document_gives_it() -> None:
    for path, item in published()["paths"].items():
        form = next((form for start, form in ERROR_FORMS if path.startswith(start)), SwapdError.envelope)
        for method, operation in item.items():
            for status, response in operation["responses"].items():
                content = followed(response).get("content", {})
                if status == "200" or not content:
                    continue
                checked = validator(content["application/json"]["schema"])
                assert checked.is_valid(form(BadRequestError("why", param="p"))), (method, path, status)
                assert not checked.is_valid({}), (method, path)


def test_a_key_is_needed_where_the_document_says_so() -> None:
    for route in routes():
        for method in EVERY_METHOD if route.method == "*" else (route.method,):
            security = published()["paths"][route.path][method.lower()].get("security")
            assert security == (None if route.scope is None else [{"bearer": [route.scope]}, {"key": [route.scope]}])


async def test_the_daemons_own_answers_are_as_documented() -> None:
    async with house(ScriptedDoor()) as home:
        for path, item in published()["paths"].items():
            operation = item.get("get")
            if operation is None or operation.get("x-endless") or "default" in operation["responses"]:
                continue
            if path.startswith("/v1/responses"):
                continue
            content = operation["responses"]["200"]["content"]
            named = path.replace("{id}", "org/tiny").replace("{name}", "main.js")
            async with home.http.get(named) as response:
                assert response.status == 200, path
                assert response.content_type in content or "*/*" in content, path
                if response.content_type == "application/json":
                    errors_ = list(validator(content["application/json"]["schema"]).iter_errors(await response.json()))
                    assert errors_ == [], path


async def test_a_models_document_has_no_field_that_is_not_documented() -> None:
    schema = published()["paths"]["/v1/models/{id}"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    async with house(ScriptedDoor()) as home, home.http.get("/v1/models/org/tiny") as response:
        assert set(await response.json()) <= set(schema["properties"])
