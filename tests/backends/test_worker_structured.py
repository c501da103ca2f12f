"""Structured output through the worker's HTTP side: what reaches the engine, and what bad input is told."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.schema_corpus import closed
from worker_doubles import LIMITS, hello, serving

from backends.llama_cpp.engine.types import Generate, SpecialTokens, Thinking

CHAT, COMPLETION, INFILL = "/v1/chat/completions", "/v1/completions", "/infill"
USER = [{"role": "user", "content": "Hi"}]
MOST_CPU_S = 3.0
"""Far more than any of these takes, and far less than a client would notice as a hang."""


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "worker.sock"


async def constraint_of(socket_path: Path, path: str, body: dict[str, Any], template: str | None = None) -> Any:
    with_template = {"template": template} if template else {}
    fim = SpecialTokens(fim_prefix=3, fim_suffix=4, fim_middle=5)
    async with serving(socket_path, special_tokens=fim, **with_template) as worker:
        worker.engine.script = hello
        async with worker.post(path, body) as response:
            assert response.status == 200, await response.text()
        generate: Generate = worker.engine.submitted.get_nowait()
    return generate.constraint


async def test_a_schema_reaches_the_engine_from_every_field_that_asks_for_one(socket_path: Path) -> None:
    schema = closed({"a": {"type": "integer"}})
    formats = [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}},
        {"response_format": {"type": "json_object", "schema": schema}},
        {"json_schema": schema},
    ]
    made = {(await constraint_of(socket_path, CHAT, {"messages": USER, **one})).grammar for one in formats}
    completed = {(await constraint_of(socket_path, COMPLETION, {"prompt": "x", **one})).grammar for one in formats}
    filled = await constraint_of(socket_path, INFILL, {"input_prefix": "a", "input_suffix": "b", **formats[2]})
    assert len(made) == len(completed) == 1
    assert made == completed == {filled.grammar}
    assert '"integer"' in made.pop()


async def test_any_object_is_asked_for_by_name_and_any_text_by_nothing(socket_path: Path) -> None:
    asked = {"messages": USER, "response_format": {"type": "json_object"}}
    assert '{"type": "object"' in (await constraint_of(socket_path, CHAT, asked)).grammar.replace("}, ", "}, {", 1)
    assert await constraint_of(socket_path, CHAT, {"messages": USER, "response_format": {"type": "text"}}) is None


async def test_a_grammar_reaches_the_engine_as_lark(socket_path: Path) -> None:
    made = await constraint_of(socket_path, CHAT, {"messages": USER, "grammar": 'root ::= "a" | "b"'})
    assert made.grammar.startswith("start: gbnf\n")
    assert made.thinking is None


async def test_reasoning_that_the_template_opens_stays_free(socket_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}<think>\n"
    made = await constraint_of(socket_path, CHAT, {"messages": USER, "json_schema": {}}, template)
    assert made.thinking == Thinking("<think>", "</think>", begun=True)


REF = {"$ref": "#"}
DEEP: dict[str, Any] = {}
for _ in range(80):
    DEEP = {"properties": {"a": DEEP}}


def by_schema(schema: object) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def tool(parameters: dict[str, Any]) -> dict[str, Any]:
    function = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    return {"tools": [function], "tool_choice": "required"}


SCHEMA = "response_format.json_schema.schema"
BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("a grammar of 1 MB", {"grammar": 'root ::= "' + "a" * 1_000_000 + '"'}, "grammar", "65536 are allowed"),
    ("deep parentheses", {"grammar": "root ::= " + "(" * 30_000}, "grammar", "nested deeper than 64"),
    ("huge repetition", {"grammar": 'root ::= "a"{100000}'}, "grammar", "more than 2000"),
    ("recursion without an end", {"grammar": "root ::= root"}, "grammar", "refers to itself without an end"),
    ("an undefined rule", {"grammar": "root ::= x"}, "grammar", "not defined"),
    ("no grammar at all", {"grammar": "hello"}, "grammar", "::= is missing"),
    ("an explosive grammar", {"grammar": "root ::= " + "([a-z]? [a-z]?)* " * 3500}, "grammar", "4000 parts"),
    ("a grammar that is no text", {"grammar": ["x"]}, "grammar", "expected"),
    ("a schema that needs itself", by_schema(REF), SCHEMA, "without an end"),
    ("a deep schema", by_schema(DEEP), SCHEMA, "nested deeper"),
    ("a large schema", by_schema({"enum": ["x" * 1000] * 70}), SCHEMA, "65536 are allowed"),
    ("an unknown type", by_schema({"type": "text"}), f"{SCHEMA}.type", "the types are"),
    ("a contradiction", by_schema({"type": "integer", "minimum": 2, "maximum": 1}), SCHEMA, "greater than maximum"),
    ("a bad expression", by_schema({"type": "string", "pattern": "("}), SCHEMA, "unclosed group"),
    ("repeated repetition", by_schema({"pattern": "((a{99}){99}){99}"}), f"{SCHEMA}.pattern", "too large"),
    ("many expressions at once", by_schema({"allOf": [{"pattern": "a.*b"}] * 30}), SCHEMA, "12 are allowed"),
    ("a large multiple", by_schema({"type": "integer", "multipleOf": 999_983}), f"{SCHEMA}.multipleOf", "up to 10000"),
    ("many alternatives", by_schema({"anyOf": [{}] * 1000}), f"{SCHEMA}.anyOf", "500 are allowed"),
    (
        "combined alternatives",
        by_schema({"allOf": [{"anyOf": [{"properties": {f"a{i}{j}": {}}} for j in range(5)]} for i in range(9)]}),
        SCHEMA,
        "too large",
    ),
    ("a keyword that is not enforced", by_schema({"not": {}}), f"{SCHEMA}.not", "cannot be enforced"),
    ("no schema", by_schema(None), SCHEMA, "is required"),
    ("a schema that is no schema", by_schema(3), SCHEMA, "expected"),
    ("an unknown format", {"response_format": {"type": "yaml"}}, "response_format.type", "must be"),
    (
        "arguments that are not enforced",
        tool({"type": "object", "properties": {"a": {"not": {}}}}),
        "tools[0].function.parameters.properties.a.not",
        "cannot be enforced",
    ),
    ("arguments that contradict themselves", tool({"allOf": [{"type": "string"}]}), "tools", "incompatible"),
    ("a grammar beside tools", {**tool({}), "grammar": 'root ::= "a"'}, "grammar", "exclude each other"),
    ("two shapes", {"grammar": 'root ::= "a"', "json_schema": {}}, "json_schema", "exclude each other"),
    (
        "an answer that was begun otherwise",
        {"messages": [*USER, {"role": "assistant", "content": "Well"}], **by_schema({"type": "object"})},
        SCHEMA,
        "is to be continued does not follow",
    ),
]


async def test_bad_input_is_400_with_field_and_reason_in_bounded_time(socket_path: Path) -> None:
    async with serving(socket_path, limits=msgspec.structs.replace(LIMITS, n_ctx=4000)) as worker:
        worker.engine.script = hello
        for name, fields, param, said in BAD:
            began_s = time.process_time()
            async with worker.post(CHAT, {"messages": USER, **fields}) as response:
                status, error = response.status, (await response.json()).get("error", {"param": None})
            assert time.process_time() - began_s < MOST_CPU_S, name
            assert (status, error["param"]) == (400, param), (name, error)
            assert said in error["message"], (name, error)
            assert len(error["message"]) < 600, name
        assert worker.engine.submitted.empty()
        async with worker.post(CHAT, {"messages": USER, "grammar": 'root ::= root "x" | "y"'}) as response:
            assert response.status == 200, "left recursion is no harm to the parser that is used"


async def test_a_prompt_list_shares_one_constraint(socket_path: Path) -> None:
    async with serving(socket_path) as worker:
        worker.engine.script = hello
        body = {"prompt": ["a", "b"], "n": 2, "grammar": 'root ::= "x"'}
        async with worker.post(COMPLETION, body) as response:
            answer = json.loads(await response.text())
        assert len(answer["choices"]) == 4
        first, second = (worker.engine.submitted.get_nowait() for _ in range(2))
    assert first.constraint == second.constraint
