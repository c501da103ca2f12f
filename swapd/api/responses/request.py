"""What `/v1/responses` takes, as a chat's fields, together with what it goes on from.

Owns the fields of the dialect: which are carried, which mean nothing here and which are refused. Pure: what is stored
is reached through `Shelf`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import msgspec

from swapd.api import strict_json
from swapd.api.conversation import effort, further, joined, offered
from swapd.api.openai import Endpoint
from swapd.api.responses.answer import ResponseAnswer, response_of
from swapd.api.responses.items import Item, messages
from swapd.api.responses.store import Stored
from swapd.api.shapes import shaped
from swapd.api.translation import Translated
from swapd.errors import BadRequestError, PreviousResponseNotFoundError


@dataclass(frozen=True, slots=True)
class Shelf:
    """A client's stored responses."""

    find: Callable[[str], Stored | None]
    keep: Callable[[str, Stored], bool]


class _Tool(msgspec.Struct):
    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Choice(msgspec.Struct):
    """A choice that is more than a word: one function, or some of the tools."""

    type: str
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[_Tool] | None = None


class _Format(msgspec.Struct):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class _Text(msgspec.Struct):
    format: _Format | None = None
    verbosity: str | None = None


class _Reasoning(msgspec.Struct):
    effort: str | None = None


class ResponsesBody(msgspec.Struct, kw_only=True):
    model: str
    input: str | Annotated[list[Item], msgspec.Meta(min_length=1)]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    tools: list[_Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | _Choice | None = None
    parallel_tool_calls: bool | None = None
    text: _Text | None = None
    reasoning: _Reasoning | None = None
    max_output_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    metadata: Annotated[dict[str, str], msgspec.Meta(max_length=16)] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    truncation: str | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None


_IGNORED = frozenset((
    "stream_options", "service_tier", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    "max_tool_calls",
))  # fmt: skip
"""They are about OpenAI's own house."""
_REFUSED = ("background", "conversation", "prompt", "moderation", "context_management")
_OWN = frozenset((*ResponsesBody.__struct_fields__, *_IGNORED, *_REFUSED))


def read(body: bytes, *, response_id: str, created_at: int, shelf: Shelf) -> Translated:
    """POST /v1/responses. Raises `BadRequestError` naming the field."""
    fields = strict_json.parse_object(body)
    asked = shaped(fields, ResponsesBody)
    _refuse(fields, asked)
    before = _before(asked, shelf)
    said = _said(fields, asked, shelf)
    made = further(fields, _OWN, "/v1/responses")
    made["model"] = asked.model
    made["messages"] = joined(_messages(asked, before, said))
    made |= _generation(asked)
    made |= _tools(asked)
    keep = None if asked.store is False else partial(shelf.keep, response_id)
    opening = response_of(response_id, created_at, fields)
    items = msgspec.json.encode([*before, *said]) if keep is not None else b""
    return Translated(Endpoint.CHAT_COMPLETIONS, made, lambda: ResponseAnswer(opening, items, keep))


def _refuse(fields: Mapping[str, Any], asked: ResponsesBody) -> None:
    for name in _REFUSED:
        if fields.get(name):
            raise BadRequestError(f"{name}: there is no such thing here; leave it out", param=name)
    if asked.truncation not in (None, "disabled"):
        raise BadRequestError(
            "truncation: only `disabled` is known; shorten the input, or raise n_ctx of the model", param="truncation"
        )
    if asked.top_logprobs or "message.output_text.logprobs" in (asked.include or ()):
        param = "top_logprobs" if asked.top_logprobs else "include"
        raise BadRequestError(f"{param}: logprobs are told by /v1/chat/completions only", param=param)


def _before(asked: ResponsesBody, shelf: Shelf) -> list[dict[str, Any]]:
    """The items of the conversation so far."""
    if asked.previous_response_id is None:
        return []
    stored = shelf.find(asked.previous_response_id)
    if stored is None:
        raise PreviousResponseNotFoundError(
            f"Previous response with id '{asked.previous_response_id[:128]}' not found: it was made with store: false, "
            "belongs to another client, or had to make room; send the whole conversation as input",
            param="previous_response_id",
        )
    return [*msgspec.json.decode(stored.before), *_output_of(stored)]


def _output_of(stored: Stored) -> list[dict[str, Any]]:
    output: list[dict[str, Any]] = msgspec.json.decode(stored.document)["output"]
    return output


def _said(fields: Mapping[str, Any], asked: ResponsesBody, shelf: Shelf) -> list[dict[str, Any]]:
    """The request's own items, those that are referred to put in."""
    if isinstance(asked.input, str):
        return [{"type": "message", "role": "user", "content": asked.input}]
    return [
        _referred(item, f"input[{index}]", shelf) if item.kind == "item_reference" else raw
        for index, (raw, item) in enumerate(zip(fields["input"], asked.input, strict=True))
    ]


def _referred(item: Item, where: str, shelf: Shelf) -> dict[str, Any]:
    """The output item of this id: it names the response that it is of."""
    item_id = item.id or ""
    stored = shelf.find("resp_" + item_id.partition("_")[2].rpartition("_")[0])
    for output in _output_of(stored) if stored is not None else ():
        if output["id"] == item_id:
            return output
    raise BadRequestError(f"{where}.id: no item {item_id[:128]!r} is stored; send the item itself", param=f"{where}.id")


def _messages(asked: ResponsesBody, before: list[dict[str, Any]], said: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The instructions are this request's alone."""
    items = msgspec.convert([*before, *said], list[Item])
    made = messages(items, lambda index: f"input[{index - len(before)}]")
    return made if asked.instructions is None else [{"role": "system", "content": asked.instructions}, *made]


def _generation(asked: ResponsesBody) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if asked.stream:
        made |= {"stream": True, "stream_options": {"include_usage": True}}
    if asked.max_output_tokens is not None:
        made["max_completion_tokens"] = asked.max_output_tokens
    for name in ("temperature", "top_p", "parallel_tool_calls"):
        if getattr(asked, name) is not None:
            made[name] = getattr(asked, name)
    if asked.reasoning is not None and asked.reasoning.effort is not None:
        made["reasoning_effort"] = effort(asked.reasoning.effort)
    if (user := asked.safety_identifier or asked.user) is not None:
        made["user"] = user
    form = asked.text.format if asked.text is not None else None
    if form is not None and form.type == "json_object":
        made["response_format"] = {"type": "json_object"}
    elif form is not None and form.type == "json_schema":
        if form.schema is None:
            raise BadRequestError("text.format.schema: this field is required", param="text.format.schema")
        schema = {"name": form.name or "answer", "schema": form.schema, "strict": form.strict is not False}
        made["response_format"] = {"type": "json_schema", "json_schema": schema}
    return made


def _tools(asked: ResponsesBody) -> dict[str, Any]:
    tools = {}
    for index, tool in enumerate(asked.tools or ()):
        name = _function(tool, f"tools[{index}]")
        tools[name] = offered(name, tool.description, tool.parameters, tool.strict)
    made: dict[str, Any] = {}
    choice = asked.tool_choice
    if isinstance(choice, _Choice) and choice.type == "allowed_tools":
        allowed = [_function(tool, f"tool_choice.tools[{index}]") for index, tool in enumerate(choice.tools or ())]
        tools = {name: tool for name, tool in tools.items() if name in allowed}
        choice = choice.mode
    if isinstance(choice, _Choice):
        if choice.type != "function" or not choice.name:
            raise BadRequestError(
                f"tool_choice: {choice.type[:64]!r} is not available here, only a function's name", param="tool_choice"
            )
        made["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    elif choice is not None:
        made["tool_choice"] = choice
    if tools:
        made["tools"] = list(tools.values())
    return made


def _function(tool: _Tool, where: str) -> str:
    """The name of a tool that a client runs itself. Raises `BadRequestError` for all others."""
    if tool.type != "function":
        raise BadRequestError(
            f"{where}.type: {tool.type[:64]!r} is not available here, only tools of type function, which a client "
            "runs itself",
            param=f"{where}.type",
        )
    if not tool.name:
        raise BadRequestError(f"{where}.name: this field is required", param=f"{where}.name")
    return tool.name
