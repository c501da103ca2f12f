"""Calls that are forced or begun: whatever a model says, the family's parser finds a valid call in it."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import jsonschema
import pytest
from support.engine_driver import Driver
from support.schema_corpus import closed
from support.structured_model import token_of

from backends.llama_cpp.chat.body import decode_chat
from backends.llama_cpp.chat.conversation import Chat, Rendered
from backends.llama_cpp.chat.events import Arguments, CallStart, Content, Reasoning
from backends.llama_cpp.chat.families import FAMILIES, GENERIC, Family
from backends.llama_cpp.engine.model import Model
from backends.llama_cpp.engine.types import Finish, Generate, Sampling
from backends.llama_cpp.errors import RequestError
from backends.llama_cpp.prompts import visible_tokens
from backends.llama_cpp.structured.constraints import Asked, chat_constraint

ALL = (GENERIC, *FAMILIES)
ANNOUNCED = tuple(family for family in ALL if family.name not in ("generic", "llama-3"))
NOW = datetime(2025, 1, 2, 3, 4, 5)  # noqa: DTZ001

BOOK = closed(
    {
        "city": {"type": "string", "enum": ["Rome", "São Paulo"]},
        "nights": {"type": "integer", "minimum": 1, "maximum": 30},
        "rooms": {"type": "array", "items": {"enum": ["single", "suite"]}, "minItems": 1, "maxItems": 2},
        "extra": closed({"late": {"type": ["boolean", "null"]}}),
    },
    "rooms",
    "extra",
)
NOTE = closed({"text": {"type": "string"}, "place": {"$ref": "#/$defs/place"}}, "place")
NOTE["$defs"] = {"place": {"type": "array", "items": {"type": "number"}, "maxItems": 2}}
SCHEMAS: dict[str, dict[str, Any]] = {"book": BOOK, "note": NOTE, "now": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in SCHEMAS.items()]
BOOKING = {"city": "São Paulo", "nights": 3, "rooms": ["suite"], "extra": {"late": None}}
NOTING = {"text": 'a <b> & "c"\n{}', "place": [1, 2.5]}


def template(family: Family, ending: str = "") -> str:
    """One with the family's marks that describes tools."""
    marks = "{# " + " ".join(family.marks) + " #}"
    tools = "{% for t in tools %}{{ t.function.name }}{% endfor %}"
    return f"{marks}{tools}{{% for m in messages %}}{{{{ m.content }}}}{{% endfor %}}{ending}"


def rendered(family: Family, model: Model, *, ending: str = "", **fields: Any) -> tuple[Rendered, Asked | None]:
    chat = Chat.of(template(family, ending), bos_token="", eos_token="")
    body = decode_chat(json.dumps({"messages": [{"role": "user", "content": "x"}], "tools": TOOLS, **fields}).encode())
    made = chat.render(body, NOW)
    assert type(made.format) is type(family.format)
    return made, chat_constraint(body, made, model)


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def say(model: Model, made: Rendered, asked: Asked, *, seed: int = 1, **biases: float) -> list[tuple[str, Finish]]:
    sampling = Sampling(
        temperature=1.3, seed=seed, logit_bias=tuple((token_of(text), bias) for text, bias in biases.items())
    )
    request = Generate(
        "r",
        tuple(model.tokenize(made.prompt, add_special=True, parse_special=True)),
        sampling,
        max_tokens=500,
        n=2,
        visible_tokens=visible_tokens(made.reading.markers, model),
        constraint=asked.constraint,
    )
    answer = Driver(model, 4).one(request)
    assert answer.ended is not None
    assert answer.ended.error is None
    return [(text, answer.finishes[index]) for index, text in answer.texts.items()]


def read(made: Rendered, text: str) -> tuple[list[tuple[str, Any]], str, str]:
    """The calls, the content and the reasoning."""
    reader = made.reading.reader()
    calls: list[tuple[str, str]] = []
    content = reasoning = ""
    for event in [*reader.feed(text), *reader.finish()]:
        match event:
            case CallStart(name):
                calls.append((name, ""))
            case Arguments(more):
                calls[-1] = (calls[-1][0], calls[-1][1] + more)
            case Content(more):
                content += more
            case Reasoning(more):
                reasoning += more
    return [(name, json.loads(arguments)) for name, arguments in calls], content.strip(), reasoning


def follows(model: Model, asked: Asked, text: str) -> bool:
    matcher = model.grammars.matcher(asked.constraint.grammar)
    for token in model.tokenize(text, add_special=False, parse_special=True):
        if not matcher.allows(token):
            return False
        matcher.accept(token)
    return matcher.complete or matcher.allows(2)


def written(family: Family, *calls: tuple[str, dict[str, Any]]) -> str:
    return family.format.write(list(calls)).removesuffix("<|call|>").rstrip()


@pytest.mark.parametrize("family", ALL, ids=lambda family: family.name)
def test_a_forced_call_is_read_as_a_valid_call_of_the_named_tool(tiny: Model, family: Family) -> None:
    made, asked = rendered(family, tiny, tool_choice=named("book"))
    assert asked is not None
    ended = [text for text, finish in say(tiny, made, asked) if finish is Finish.STOP]
    assert ended or family.name == "gpt-oss", "none came to its end"
    for text in ended:
        ((name, arguments),), content, _ = read(made, text)
        assert (name, content) == ("book", "")
        jsonschema.validate(arguments, BOOK)


@pytest.mark.parametrize("family", ALL, ids=lambda family: family.name)
def test_a_required_call_is_one_of_any_tool(tiny: Model, family: Family) -> None:
    made, asked = rendered(family, tiny, tool_choice="required")
    assert asked is not None
    for text, finish in say(tiny, made, asked, seed=5):
        if finish is Finish.STOP:
            calls, content, _ = read(made, text)
            assert calls
            assert content == ""
            for name, arguments in calls:
                jsonschema.validate(arguments, SCHEMAS[name])


@pytest.mark.parametrize("family", ALL, ids=lambda family: family.name)
def test_what_the_family_writes_is_what_the_grammar_allows(tiny: Model, family: Family) -> None:
    _, one = rendered(family, tiny, tool_choice="required", parallel_tool_calls=False)
    assert one is not None
    for call in (("book", BOOKING), ("book", {"city": "Rome", "nights": 30}), ("note", NOTING), ("now", {})):
        assert follows(tiny, one, written(family, call)), written(family, call)
    assert not follows(tiny, one, written(family, ("other", {})))
    assert not follows(tiny, one, written(family, ("book", {"city": "Rome"})))
    assert not follows(tiny, one, written(family, ("book", {"city": "Paris", "nights": 3})))
    assert not follows(tiny, one, written(family, ("book", {"city": "Rome", "nights": 31})))
    assert not follows(tiny, one, written(family, ("now", {}), ("now", {}))) or family.name == "gpt-oss"
    assert not follows(tiny, one, "No.")


@pytest.mark.parametrize("family", [one for one in ALL if one.name != "gpt-oss"], ids=lambda family: family.name)
def test_several_calls_are_allowed_where_parallel_calls_are(tiny: Model, family: Family) -> None:
    made, several = rendered(family, tiny, tool_choice="required")
    assert several is not None
    text = written(family, ("now", {}), ("book", BOOKING))
    assert follows(tiny, several, text), text
    assert [name for name, _ in read(made, text)[0]] == ["now", "book"]


# -- control tokens, reasoning, and calls that nobody forces ------------------------------------------------------


def family_named(name: str) -> Family:
    return next(family for family in ALL if family.name == name)


@pytest.mark.parametrize("name", ["mistral", "mistral-nemo", "gemma-4", "gpt-oss"])
def test_markers_that_are_control_tokens_are_forced_as_such(control: Model, name: str) -> None:
    made, asked = rendered(family_named(name), control, tool_choice=named("book"))
    assert asked is not None
    for text, finish in say(control, made, asked, **{"<|end|>": 5.0}):
        assert finish is Finish.STOP
        ((called, arguments),), content, _ = read(made, text)
        assert (called, content) == ("book", "")
        jsonschema.validate(arguments, BOOK)


def test_gpt_oss_may_think_before_a_forced_call_and_before_a_structured_answer(control: Model) -> None:
    family = family_named("gpt-oss")
    made, asked = rendered(family, control, tool_choice="required")
    assert asked is not None
    thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    call = f"<|channel|>commentary to=functions.now <|constrain|>json<|message|>{'{}'}"
    assert follows(control, asked, thought + call)
    assert follows(control, asked, call)
    assert read(made, thought + call) == ([("now", {})], "", "Hm.")
    assert not follows(control, asked, "<|channel|>final<|message|>No.")
    made, asked = rendered(family, control, tools=[], response_format={"type": "json_object"})
    assert asked is not None
    assert follows(control, asked, thought + '<|channel|>final<|message|>{"a": 1}')
    assert not follows(control, asked, "<|channel|>final<|message|>[1]")
    assert not follows(control, asked, thought + call)


@pytest.mark.parametrize("choice", ["required", named("book")])
def test_reasoning_that_the_template_opens_comes_before_a_forced_call(control: Model, choice: object) -> None:
    made, asked = rendered(family_named("hermes"), control, ending="{{ '<think>' }}", tool_choice=choice)
    assert asked is not None
    for text, finish in say(control, made, asked, **{"</think>": 4.0}):
        assert finish is Finish.STOP
        calls, content, _ = read(made, text)
        assert "</think>" in text
        assert calls
        assert content == ""
        for name, arguments in calls:
            jsonschema.validate(arguments, SCHEMAS[name])


def test_reasoning_that_the_model_opens_comes_before_a_structured_answer(control: Model) -> None:
    schema = closed({"ok": {"type": "boolean"}})
    asked_for = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    made, asked = rendered(family_named("hermes"), control, ending="{# <think> #}", tools=[], response_format=asked_for)
    assert asked is not None
    for text, finish in say(control, made, asked, **{"<think>": 50.0, "</think>": 49.0}):
        assert finish is Finish.STOP
        _, content, _ = read(made, text)
        jsonschema.validate(json.loads(content), schema)
        assert text.startswith("<think>")


def test_a_call_that_is_begun_is_finished_as_a_valid_one(control: Model) -> None:
    made, asked = rendered(family_named("mistral"), control)
    assert asked is not None
    assert asked.constraint.triggers == ("[TOOL_CALLS]",)
    called = 0
    for seed in range(6):
        for text, finish in say(control, made, asked, seed=seed, **{"[TOOL_CALLS]": 3.5}):
            if "[TOOL_CALLS]" in text and finish is Finish.STOP:
                calls, _, _ = read(made, text)
                called += len(calls)
                for name, arguments in calls:
                    jsonschema.validate(arguments, SCHEMAS[name])
    assert called


@pytest.mark.parametrize("family", ANNOUNCED, ids=lambda family: family.name)
def test_what_a_family_writes_behind_its_announcement_is_allowed_when_nothing_is_forced(
    tiny: Model, family: Family
) -> None:
    _, asked = rendered(family, tiny)
    assert asked is not None
    assert asked.optional
    text = written(family, ("book", BOOKING))
    trigger = next(one for one in asked.constraint.triggers if text.startswith(one))
    assert follows(tiny, asked, text.removeprefix(trigger))
    assert not follows(tiny, asked, text.removeprefix(trigger).replace("book", "cook"))


@pytest.mark.parametrize("name", ["generic", "llama-3"])
def test_where_an_answer_that_looks_like_a_call_may_be_none_nothing_is_enforced_unasked(tiny: Model, name: str) -> None:
    assert rendered(family_named(name), tiny)[1] is None


def tool(parameters: object, *, strict: bool = False) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "f", "parameters": parameters, "strict": strict}}]


UNENFORCEABLE = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}


@pytest.mark.parametrize("family", ANNOUNCED, ids=lambda family: family.name)
def test_arguments_whose_schema_cannot_be_enforced_may_be_anything_unless_they_are_demanded(
    tiny: Model, family: Family
) -> None:
    _, asked = rendered(family, tiny, tools=tool(UNENFORCEABLE))
    assert asked is not None
    text = written(family, ("f", {"a": [1, 1], "b": "x"}))
    trigger = next(one for one in asked.constraint.triggers if text.startswith(one))
    assert follows(tiny, asked, text.removeprefix(trigger))
    demanded: tuple[dict[str, Any], ...] = (
        {"tools": tool(UNENFORCEABLE, strict=True)},
        {"tools": tool(UNENFORCEABLE), "tool_choice": "required"},
        {"tools": tool(UNENFORCEABLE), "tool_choice": named("f")},
    )
    for fields in demanded:
        with pytest.raises(RequestError, match="uniqueItems cannot be enforced") as refused:
            rendered(family, tiny, **fields)
        assert refused.value.param == "tools[0].function.parameters.properties.a.uniqueItems"


def test_tools_and_a_format_leave_the_choice_between_a_call_and_an_answer(tiny: Model) -> None:
    answer = {"type": "json_schema", "json_schema": {"schema": closed({"ok": {"type": "boolean"}})}}
    for name in ("hermes", "mistral"):
        family = family_named(name)
        _, asked = rendered(family, tiny, response_format=answer)
        assert asked is not None
        assert follows(tiny, asked, '{"ok": true}')
        assert follows(tiny, asked, written(family, ("book", BOOKING)))
        assert not follows(tiny, asked, "Hello")
        _, forced = rendered(family, tiny, response_format=answer, tool_choice="required")
        assert forced is not None
        assert not follows(tiny, forced, '{"ok": true}')
        _, no_tools = rendered(family, tiny, response_format=answer, tool_choice="none")
        assert no_tools is not None
        assert not follows(tiny, no_tools, written(family, ("book", BOOKING)))


def test_a_grammar_and_tools_exclude_each_other(tiny: Model) -> None:
    with pytest.raises(RequestError, match="grammar and tools exclude each other") as refused:
        rendered(GENERIC, tiny, grammar='root ::= "a"')
    assert refused.value.param == "grammar"
    assert rendered(GENERIC, tiny, grammar='root ::= "a"', tool_choice="none")[1] is not None


def test_schemas_that_are_too_large_together_are_refused_when_a_call_is_forced_and_left_free_otherwise(
    tiny: Model,
) -> None:
    large = closed({f"word{index}": {"type": "string"} for index in range(900)})
    tools = [{"type": "function", "function": {"name": f"f{index}", "parameters": large}} for index in range(8)]
    with pytest.raises(RequestError, match="characters together; 262144 are allowed"):
        rendered(family_named("hermes"), tiny, tools=tools, tool_choice="required")
    assert rendered(family_named("hermes"), tiny, tools=tools, tool_choice=named("f3"))[1] is not None
    assert rendered(family_named("hermes"), tiny, tools=tools)[1] is None


def test_an_answer_that_the_client_has_begun_is_gone_on_with(tiny: Model) -> None:
    begun = [{"role": "user", "content": "x"}, {"role": "assistant", "content": '{"ok": t'}]
    schema = closed({"ok": {"type": "boolean"}})
    _, asked = rendered(
        GENERIC, tiny, tools=[], messages=begun, response_format={"type": "json_object", "schema": schema}
    )
    assert asked is not None
    assert asked.constraint.said == '{"ok": t'
    _, own = rendered(GENERIC, tiny, tools=[], messages=begun, grammar='root ::= "rue}"')
    assert own is not None
    assert own.constraint.said == ""


REFUSED_FIELDS: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": {"type": "xml"}}, "response_format.type", "must be"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", "is required"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
        "response_format.json_schema.schema.not",
        "cannot be enforced",
    ),
    ({"response_format": {"type": "json_object", "schema": {"type": "x"}}}, "response_format.schema.type", "types are"),
    ({"json_schema": {"if": {}}}, "json_schema.if", "cannot be enforced"),
    ({"grammar": "root ::= x"}, "grammar", "refers to x"),
    ({"grammar": 'root ::= "a"', "json_schema": {}}, "json_schema", "grammar and json_schema exclude"),
    (
        {"grammar": 'root ::= "a"', "response_format": {"type": "json_object"}},
        "response_format",
        "grammar and response_format exclude",
    ),
]


@pytest.mark.parametrize(("fields", "param", "said"), REFUSED_FIELDS, ids=[param for _, param, _ in REFUSED_FIELDS])
def test_what_cannot_be_asked_for_is_refused_by_name(
    tiny: Model, fields: dict[str, Any], param: str, said: str
) -> None:
    with pytest.raises(RequestError, match=said) as refused:
        rendered(GENERIC, tiny, tools=[], **fields)
    assert (refused.value.status, refused.value.param) == (400, param)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": {"type": "text"}},
        {"response_format": None, "grammar": "", "json_schema": None},
        {"tools": TOOLS, "tool_choice": "none"},
    ],
)
def test_nothing_is_enforced_where_nothing_is_asked(tiny: Model, fields: dict[str, Any]) -> None:
    assert rendered(GENERIC, tiny, **{"tools": [], **fields})[1] is None


ODD_PARAMETERS = (
    {"properties": {"a": True, "b": False, "c": {}}},
    {"properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"type": ["integer", "null"]}}, "required": ["a", "z"]},
    {"properties": {"weird key>\n": {"type": "string"}, "": {"type": "string", "const": ""}}},
    {"properties": {"a": {"type": "string", "enum": ["</parameter>", "\n", '<|"|>', "]"]}}},
    {"properties": {"a": {"anyOf": [{"type": "array", "items": {"$ref": "#"}}, {"type": "null"}]}}},
    {"properties": {"a": {"type": "object", "properties": {"b": {"prefixItems": [{}, {"const": 1}]}}}}},
    {"additionalProperties": {"type": "integer"}, "maxProperties": 3},
    {"allOf": [{"type": "object", "properties": {"a": {"type": "string"}}}], "required": ["a"]},
    {"patternProperties": {"^x": {"type": "boolean"}}, "additionalProperties": False},
    {"anyOf": [{"type": "object", "properties": {"a": {"const": 1}}}, {"type": "object", "properties": {"b": {}}}]},
    {
        "properties": {
            "a": {"type": "array", "maxItems": 0},
            "b": {"type": "array", "minItems": 2, "items": {"enum": [1]}},
        }
    },
)


@pytest.mark.parametrize("family", ALL, ids=lambda family: family.name)
def test_odd_parameters_make_grammars_all_the_same(tiny: Model, family: Family) -> None:
    for parameters in ODD_PARAMETERS:
        for choice in ("required", "auto"):
            _, asked = rendered(family, tiny, tools=tool(parameters), tool_choice=choice)
            if asked is not None:
                tiny.grammars.check(asked.constraint.grammar)
