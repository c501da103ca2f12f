"""JSON schemas: what is enforced, what says nothing, and what is refused by its path."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from support.schema_corpus import CORPUS, Case, closed

from backends.llama_cpp.engine.grammars import GrammarError, Grammars
from backends.llama_cpp.engine.model import Model
from backends.llama_cpp.errors import RequestError
from backends.llama_cpp.structured.patterns import written_out
from backends.llama_cpp.structured.schema import MAX_CHARS, MAX_SUBSCHEMAS, enforceable
from backends.llama_cpp.worker import THREAD_STACK_BYTES


def grammar(schema: object) -> str:
    return f"start: %json {enforceable(schema, 'schema')}"


def follows(tiny: Model, schema: object, text: str) -> bool:
    """Whether the text is a whole answer."""
    matcher = tiny.grammars.matcher(grammar(schema))
    for token in tiny.tokenize(text, add_special=False, parse_special=False):
        if not matcher.allows(token):
            return False
        matcher.accept(token)
    return matcher.complete or matcher.allows(2)


def refusal(schema: object, grammars: Grammars | None = None) -> str:
    try:
        text = grammar(schema)
        if grammars is not None:
            grammars.check(text)
    except (RequestError, GrammarError) as error:
        return str(error)
    pytest.fail("nothing refuses it")


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.name)
def test_each_schema_of_the_corpus_is_enforced(tiny: Model, case: Case) -> None:
    checker = jsonschema.Draft202012Validator(case.schema)
    assert all(checker.is_valid(value) for value in case.good)
    for value in case.good:
        assert follows(tiny, case.schema, json.dumps(value, ensure_ascii=False)), value
        assert follows(tiny, case.schema, json.dumps(value, ensure_ascii=False, indent=2)), value
        assert follows(tiny, case.schema, json.dumps(value, ensure_ascii=False, separators=(",", ":"))), value
    for value in case.bad:
        assert not follows(tiny, case.schema, json.dumps(value, ensure_ascii=False)), value


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "object", "properties": {"a": {"not": {"type": "string"}}}}, "schema.properties.a.not cannot be"),
        ({"if": {"type": "string"}, "then": {"minLength": 3}}, "schema.if cannot be enforced"),
        ({"type": "array", "uniqueItems": True}, "schema.uniqueItems cannot be enforced"),
        ({"type": "array", "items": {"contains": {}}}, "schema.items.contains"),
        ({"anyOf": [{}, {"propertyNames": {"maxLength": 3}}]}, "schema.anyOf[1].propertyNames"),
        ({"$defs": {"a": {"dependentRequired": {"x": ["y"]}}}, "$ref": "#/$defs/a"}, "schema.$defs.a.dependentReq"),
        ({"type": "object", "unevaluatedProperties": False}, "schema.unevaluatedProperties"),
        ({"x-guidance": {"lenient": True}}, "schema.x-guidance"),
        ({"type": "string", "format": "json-pointer"}, "schema.format cannot be enforced for json-pointer"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "schema.oneOf cannot be enforced, for an answer may"),
        ({"oneOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}, "schema.oneOf cannot be enforced"),
        ({"type": "text"}, "schema.type is 'text'; the types are null, boolean"),
        ({"type": []}, "schema.type must be the name of a type"),
        ({"properties": []}, "schema.properties must be an object of schemas"),
        ({"properties": {"a": 1}}, "schema.properties.a must be a schema"),
        ({"required": "a"}, "schema.required must be a list of names"),
        ({"enum": []}, "schema.enum must be a list of values that is not empty"),
        ({"anyOf": []}, "schema.anyOf must be a list of schemas that is not empty"),
        ({"minimum": "3"}, "schema.minimum must be a number"),
        ({"minLength": -1}, "schema.minLength must be a whole number"),
        ({"minLength": 1.5}, "schema.minLength must be a whole number"),
        ({"pattern": 3}, "schema.pattern must be a text"),
        ({"multipleOf": 0}, "schema.multipleOf must be a number above 0"),
        ({"$ref": "https://example.org/x.json"}, "schema.$ref refers to 'https://example.org/x.json', which is not"),
        ({"$ref": "#/$defs/missing"}, "schema.$ref refers to '#/$defs/missing', which is not in this schema"),
        ({"$ref": "#"}, "schema asks for an answer without an end"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "without an end"),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "without an end"),
        ([], "schema must be a schema"),
        (3, "schema must be a schema"),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_its_path(schema: object, said: str) -> None:
    assert said in refusal(schema)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum (5) is greater than maximum (3)"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "incompatible types"),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "without an end"),
        ({"type": "string", "enum": [1, 2]}, "incompatible types"),
        ({"type": "string", "pattern": "(unclosed"}, "unclosed group"),
        ({"type": "string", "pattern": "^(?=a)b$"}, "look-around"),
        ({"type": "string", "pattern": r"(a)\1"}, "backreferences are not supported"),
        (False, "no answer follows it|unsatisfiable|schema is false|without an end"),
    ],
)
def test_a_contradiction_or_a_bad_expression_is_refused_with_the_reason(tiny: Model, schema: object, said: str) -> None:
    found = refusal(schema, tiny.grammars)
    assert any(one in found for one in said.split("|")), found


WORDS = {f"word{index}": {"type": "string"} for index in range(1001)}


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (lambda: {"description": "x" * MAX_CHARS}, f"{MAX_CHARS} are allowed"),
        (lambda: nested(65), "nested deeper than 64 levels"),
        (lambda: {"properties": WORDS}, "schema.properties has 1001 entries; 1000 are allowed"),
        (lambda: {"anyOf": [True] * 501}, "schema.anyOf has 501 entries; 500 are allowed"),
        (lambda: {"prefixItems": [{"anyOf": [True] * 500}] * 11}, "has more than 5000 schemas"),
        (lambda: {"oneOf": [{"const": index} for index in range(300)]}, "20000 pairs are compared"),
        (lambda: {"type": "string", "minLength": 100_001}, "schema.minLength is 100001; 100000 is the most"),
        (lambda: {"type": "string", "pattern": "(a{100}){101}"}, "schema.pattern is too large"),
        (lambda: {"allOf": [{"pattern": f"x{index}"} for index in range(13)]}, "joins 13 patterns"),
        (lambda: {"type": "integer", "multipleOf": 10_001}, "schema.multipleOf is 10001"),
        (lambda: {"type": "number", "multipleOf": 1.0001}, "schema.multipleOf is 1.0001; multiples of up to 10000"),
        (lambda: {"allOf": [{"multipleOf": 101}, {"multipleOf": 103}]}, "joins values of multipleOf"),
        (lambda: {"const": "x" * 8193}, "schema.const has 8193 characters; 8192 are allowed"),
        (lambda: {"type": "integer", "minimum": 2**60}, "is beyond 9007199254740992"),
        (lambda: {"patternProperties": {f"^{index}": {} for index in range(33)}}, "has 33 entries; 32 are allowed"),
    ],
)
def test_what_is_too_large_is_refused_with_the_limit(schema: Callable[[], object], said: str) -> None:
    assert said in refusal(schema())


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels - 1):
        schema = {"items": schema}
    return schema


def test_annotations_and_unknown_words_are_left_out() -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "T",
        "description": "d",
        "default": 3,
        "examples": [1],
        "deprecated": True,
        "nullable": False,
        "x-order": 1,
        "type": "integer",
        "format": "int64",
    }
    assert json.loads(enforceable(schema, "s")).keys() == {"x-guidance", "type"}


def test_a_property_may_be_named_like_a_keyword(tiny: Model) -> None:
    schema = closed({"not": {"type": "integer"}, "$ref": {"type": "string"}, "enum": {"type": "boolean"}})
    assert follows(tiny, schema, '{"not": 1, "$ref": "x", "enum": true}')


def test_objects_that_list_their_properties_take_no_others_unless_schemas_are_joined(tiny: Model) -> None:
    alone = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    assert not follows(tiny, alone, '{"a": 1, "b": 2}')
    assert follows(tiny, {**alone, "additionalProperties": True}, '{"a": 1, "b": 2}')
    assert follows(tiny, {**alone, "required": ["a", "b"]}, '{"a": 1, "b": 2}')
    joined = {"allOf": [alone, {"type": "object", "properties": {"b": {"type": "integer"}}}]}
    assert follows(tiny, joined, '{"a": 1, "b": 2}')
    assert follows(tiny, {"type": "array", "items": alone}, '[{"a": 1}]')


def test_older_spellings_mean_what_they_meant(tiny: Model) -> None:
    pair = {"type": "array", "items": [{"type": "string"}, {"type": "integer"}], "additionalItems": False}
    assert follows(tiny, pair, '["x", 1]')
    assert not follows(tiny, pair, '["x", 1, 2]')
    above = {"type": "integer", "minimum": 3, "exclusiveMinimum": True, "maximum": 9, "exclusiveMaximum": False}
    assert [value for value in range(12) if follows(tiny, above, str(value))] == [4, 5, 6, 7, 8, 9]
    assert follows(tiny, {"allOf": [{"$ref": "#/definitions/p"}], "definitions": {"p": {"enum": [1]}}}, "1")


def test_a_reference_may_lead_anywhere_in_the_document(tiny: Model) -> None:
    schema = {"components": {"a/b~c": [{"type": "integer"}]}, **closed({"x": {"$ref": "#/components/a~1b~0c/0"}})}
    assert follows(tiny, schema, '{"x": 1}')
    assert not follows(tiny, schema, '{"x": "1"}')
    encoded = {"$defs": {"a b": {"enum": ["x"]}}, "$ref": "#/$defs/a%20b"}
    assert follows(tiny, encoded, '"x"')


def test_bounds_beyond_what_numbers_hold_are_drawn_in(tiny: Model) -> None:
    schema = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
    assert follows(tiny, schema, str(2**53))
    assert not follows(tiny, schema, str(2**53 + 1))
    assert follows(tiny, {"type": "string", "maxLength": 10**9}, '"x"')


def test_white_space_is_enough_to_indent_and_no_more(tiny: Model) -> None:
    schema = closed({"a": {"type": "integer"}})
    assert follows(tiny, schema, '{\n    "a": 1\n}')
    assert follows(tiny, schema, '{"a":1}')
    assert not follows(tiny, schema, '{\n\n"a": 1}')
    assert not follows(tiny, schema, '{"a":' + " " * 65 + "1}")
    assert not follows(tiny, schema, ' {"a": 1}')


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        ({"type": "string"}, {"type": "integer"}, True),
        ({"type": "integer"}, {"type": "number"}, False),
        ({"const": 1}, {"const": 1.0}, False),
        ({"const": 1}, {"const": True}, True),
        ({"enum": ["a", "b"]}, {"enum": ["b"]}, False),
        ({"const": "a"}, {"type": "integer"}, True),
        (closed({"k": {"const": "a"}}), closed({"k": {"const": "b"}}), True),
        (closed({"k": {"const": "a"}}, "k"), closed({"k": {"const": "b"}}, "k"), False),
        (closed({"k": {"const": "a"}}), closed({"l": {"const": "b"}}), True),
        (closed({"k": closed({"t": {"enum": [1]}})}), closed({"k": closed({"t": {"enum": [2]}})}), True),
        ({"anyOf": [{"const": 1}, {"const": 2}]}, {"const": 3}, True),
        ({"type": ["string", "null"]}, {"type": "null"}, False),
        ({}, {"const": 3}, False),
        (False, {}, True),
    ],
)
def test_alternatives_of_one_of_must_be_shown_to_be_apart(tiny: Model, one: object, other: object, apart: bool) -> None:
    for schema in ({"oneOf": [one, other]}, {"$defs": {"a": one, "b": other}, "oneOf": [{"$ref": "#/$defs/a"}, other]}):
        if apart:
            grammar(schema)
        else:
            assert "oneOf cannot be enforced" in refusal(schema)


@pytest.mark.parametrize(
    ("pattern", "size"),
    [
        ("abc", 3),
        ("^a{3}$", 5),
        ("(ab){4}", 8),
        ("((ab){2}c){3}", 15),
        ("[a-z]{10}", 10),
        (r"[\]a]{2}\d{3}\p{L}{2}", 7),
        ("a{2,}", 2),
        ("a{2,5}", 5),
        ("(?:ab|c)+", 3),
        ("(?<n>a){7}", 7),
        ("(((", 0),
        (")))", 3),
        ("a{999999999}{999999999}{999999999}", 10**9),
        ("[", 1),
        ("\\", 1),
        ("{3}", 3),
    ],
)
def test_a_pattern_is_as_large_as_it_is_written_out(pattern: str, size: int) -> None:
    assert written_out(pattern) == size


def test_the_longest_chain_of_references_compiles_on_the_stack_that_threads_have(tiny: Model) -> None:
    link = json.loads('{"items":' * 30 + '{"$ref": "#/$defs/NEXT"}' + "}" * 30)
    count = MAX_SUBSCHEMAS // 31 - 1
    chain = {f"d{i}": json.loads(json.dumps(link).replace("NEXT", f"d{i + 1}")) for i in range(count)}
    schema = {"$defs": {**chain, f"d{count}": {"type": "string"}}, "$ref": "#/$defs/d0"}
    before = threading.stack_size(THREAD_STACK_BYTES)
    try:
        thread = threading.Thread(target=tiny.grammars.check, args=(grammar(schema),))
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert follows(tiny, schema, "[" * 3 + "]" * 3)


APPLIED = ["properties", "items", "prefixItems", "additionalProperties", "patternProperties", "anyOf", "oneOf", "allOf"]
BOUNDS = ["minimum", "maximum", "exclusiveMinimum", "multipleOf", "minLength", "maxLength", "minItems", "maxProperties"]
OTHERS = [
    "type",
    "required",
    "enum",
    "const",
    "$ref",
    "$defs",
    "additionalItems",
    "pattern",
    "format",
    "not",
    "title",
    "a",
]
KEYWORDS = [*APPLIED, *BOUNDS, *OTHERS]
ODD = [None, True, False, 0, -1, 1.5, 1e308, 5e-324, 10**400, "", "a", "(", "#", "#/$defs/a", "object", "date", [], {}]


def random_json(rng: random.Random, depth: int) -> object:
    """Something that looks like a schema here and there."""
    if depth == 0 or rng.random() < 0.3:
        return rng.choice(ODD)
    if rng.random() < 0.2:
        return [random_json(rng, depth - 1) for _ in range(rng.randint(0, 3))]
    return {rng.choice(KEYWORDS): random_json(rng, depth - 1) for _ in range(rng.randint(0, 4))}


def test_anything_is_a_schema_or_an_error_of_the_request(tiny: Model) -> None:
    rng = random.Random(7)
    outcomes: Counter[str] = Counter()
    for _ in range(4000):
        schema = random_json(rng, 4)
        try:
            tiny.grammars.check(grammar(schema))
            outcomes["compiled"] += 1
        except RequestError as error:
            outcomes["named" if (error.param or "").startswith("schema") else "unnamed"] += 1
        except GrammarError:
            outcomes["refused by llguidance"] += 1
    assert outcomes["compiled"] > 200
    assert outcomes["unnamed"] == 0
