"""From a request to the constraint of its answers: `grammar`, `json_schema`, `response_format` and `tool_choice`.

Owns which of them may meet, and where in an answer the constraint begins. Pure: what it writes is yet to be compiled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from backends.llama_cpp.chat.body import ChatBody, Choice, Must
from backends.llama_cpp.chat.conversation import Rendered
from backends.llama_cpp.chat.harmony import Harmony
from backends.llama_cpp.engine.types import Constraint, Thinking
from backends.llama_cpp.errors import RequestError
from backends.llama_cpp.requests import GenerateBody, ResponseFormat
from backends.llama_cpp.sampling import Tokenizer
from backends.llama_cpp.structured.call_grammars import (
    announced_calls,
    announcements,
    blanks,
    calls,
    harmony_answer,
)
from backends.llama_cpp.structured.call_schemas import CallSchema, any_call, call_schema
from backends.llama_cpp.structured.gbnf import GrammarError
from backends.llama_cpp.structured.gbnf_lark import LARK_ROOT, to_lark
from backends.llama_cpp.structured.lark import Lark, control_tokens, one_of
from backends.llama_cpp.structured.schema import enforceable

MAX_TOOLS_CHARS = 256 * 1024
"""All schemas of the tools that one answer may call."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A constraint that a request asks for."""

    constraint: Constraint
    param: str
    """The field at fault if it does not compile."""
    optional: bool = False
    """Nobody asked for it in so many words: without it the answer is what it would have been."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the words of an answer must be."""

    param: str
    grammar: str | None = None
    schema: object = None


def completion_constraint(body: GenerateBody, tokenizer: Tokenizer) -> Asked | None:
    """The constraint of a text completion. Raises `RequestError`."""
    shape = _shape(body)
    if shape is None:
        return None
    lark = Lark({})
    return Asked(Constraint(lark.grammar(_written(shape, lark, tokenizer))), shape.param)


def chat_constraint(body: ChatBody, rendered: Rendered, tokenizer: Tokenizer) -> Asked | None:
    """The constraint of a chat's answers. Raises `RequestError`."""
    shape, choice = _shape(body), rendered.choice
    if shape is not None and shape.grammar is not None and choice.tools:
        raise RequestError("grammar and tools exclude each other: leave one out", param="grammar")
    if shape is None and choice.must is Must.NONE:
        return None
    reading, form = rendered.reading, rendered.format
    lark = Lark(control_tokens(reading.markers, tokenizer))
    thinking = _thinking(rendered, tokenizer)
    if choice.must is Must.AUTO and shape is None:
        return _lazy(body, rendered, lark, thinking)
    bodies: list[tuple[str, bool]] = []
    if shape is not None and choice.must is not Must.CALL:
        bodies.append((_written(shape, lark, tokenizer), True))
    if choice.must is not Must.NONE:
        schemas = _call_schemas(choice, None)
        bodies.append((calls(form, schemas, lark, several=choice.parallel), False))
    param = shape.param if shape is not None else "tools"
    harmony = reading.format if isinstance(reading.format, Harmony) else None
    if harmony is not None:
        start = one_of(harmony_answer(harmony, one, lark, final=final) for one, final in bodies)
        return Asked(Constraint(lark.grammar(start), said=_said(rendered, shape)), param)
    start = one_of(one for one, _ in bodies)
    if thinking is not None:
        start = f"{blanks(lark)} {start}"
    return Asked(Constraint(lark.grammar(start), thinking, said=_said(rendered, shape)), param)


def _lazy(body: ChatBody, rendered: Rendered, lark: Lark, thinking: Thinking | None) -> Asked | None:
    """A call that the model begins by itself must be one of a known tool and follow its schema, where the family
    announces calls by a text of their own. Elsewhere an answer that looks like a call may be none."""
    form, choice = rendered.format, rendered.choice
    triggers = announcements(form)
    if not triggers:
        return None
    strict = frozenset(tool.function.name for tool in body.tools or () if tool.function.strict)
    try:
        schemas = _call_schemas(choice, strict)
    except RequestError:
        if strict:
            raise
        return None
    start = announced_calls(form, schemas, lark, several=choice.parallel)
    return Asked(Constraint(lark.grammar(start), thinking, triggers), "tools", optional=not strict)


def _shape(body: GenerateBody) -> _Shape | None:
    shapes: list[_Shape] = []
    if body.grammar:
        shapes.append(_Shape("grammar", grammar=body.grammar))
    if body.json_schema is not None:
        shapes.append(_Shape("json_schema", schema=body.json_schema or {"type": "object"}))
    if body.response_format is not None:
        schema, param = _of_format(body.response_format)
        if schema is not None:
            shapes.append(_Shape(param, schema=schema))
    if len(shapes) > 1:
        first, second = (shape.param.partition(".")[0] for shape in shapes[:2])
        raise RequestError(f"{first} and {second} exclude each other: leave one out", param=second)
    return shapes[0] if shapes else None


def _of_format(asked: ResponseFormat) -> tuple[object, str]:
    """The schema that a format asks for, None for any text, and where it stands."""
    param = "response_format"
    if asked.type == "text":
        return None, param
    if asked.type == "json_object":
        return asked.schema or {"type": "object"}, f"{param}.schema" if asked.schema else param
    if asked.type != "json_schema":
        raise RequestError(
            f'{param}.type is {asked.type[:64]!r}; it must be "text", "json_object" or "json_schema"',
            param=f"{param}.type",
        )
    schema: Any = asked.json_schema.schema if asked.json_schema is not None else None
    if schema is None:
        raise RequestError(f"{param}.json_schema.schema is required", param=f"{param}.json_schema.schema")
    return schema, f"{param}.json_schema.schema"


def _written(shape: _Shape, lark: Lark, tokenizer: Tokenizer) -> str:
    if shape.grammar is None:
        return lark.json(enforceable(shape.schema, shape.param))

    def token_of(text: str) -> int | None:
        tokens = tokenizer.tokenize(text, add_special=False, parse_special=True)
        return tokens[0] if len(tokens) == 1 else None

    try:
        lark.add(to_lark(shape.grammar, token_of))
    except GrammarError as error:
        raise RequestError(f"grammar: {error}", param="grammar") from None
    return LARK_ROOT


def _call_schemas(choice: Choice, strict: frozenset[str] | None) -> list[CallSchema]:
    """The functions that may be called. Arguments of those that are not `strict` (None: all are) may be anything where
    their schema cannot be enforced. Raises `RequestError`."""
    place = {name: index for index, name in enumerate(choice.tools)}
    made: list[CallSchema] = []
    for tool in (choice.callable or choice.tools).values():
        try:
            made.append(call_schema(tool, f"tools[{place[tool.name]}].function.parameters"))
        except RequestError:
            if strict is None or tool.name in strict:
                raise
            made.append(any_call(tool))
    total = sum(len(one.whole) for one in made)
    if total > MAX_TOOLS_CHARS:
        raise RequestError(
            f"tools: the schemas to enforce have {total} characters together; {MAX_TOOLS_CHARS} are allowed",
            param="tools",
        )
    return made


def _thinking(rendered: Rendered, tokenizer: Tokenizer) -> Thinking | None:
    """The reasoning that the answer begins with or may begin with. Harmony's is a part of the grammar."""
    tags = rendered.reading.tags
    if tags is None:
        return None
    opening = tokenizer.tokenize(tags.open, add_special=False, parse_special=True)
    token = opening[0] if len(opening) == 1 else None
    return Thinking(tags.open, tags.close, bool(rendered.reading.opening), token)


def _said(rendered: Rendered, shape: _Shape | None) -> str:
    """What of the answer the client has written. A grammar of its own is for what is generated, as in llama-server."""
    return rendered.said if shape is not None and shape.grammar is None else ""
