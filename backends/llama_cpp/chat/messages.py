"""The conversation as a client sends it: messages, tool calls, tools, and their bounds.

Owns the types and what is refused by name. Pure: must never know a template or a model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from backends.llama_cpp.chat.tools import Tool
from backends.llama_cpp.errors import RequestError

MAX_MESSAGES = 10_000
MAX_TOOLS = 256
MAX_CALLS = 256
"""Of one message."""
MAX_SCHEMA_CHARS = 64 * 1024
MAX_TOOLS_CHARS = 1024 * 1024
"""All tools of a request together, as JSON."""
MAX_SCHEMA_DEPTH = 32
MAX_ARGUMENTS_DEPTH = 64
PART_TYPES = ("text", "image_url", "input_audio")
"""Each names the part's field that has its content."""

MARKER = "marker"
"""The type of a part that stands in a medium's place while the conversation is rendered. No client may send it."""

Role = Annotated[str, Meta(min_length=1, max_length=64)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
CallId = Annotated[str, Meta(max_length=256)]


class ImageUrl(msgspec.Struct, frozen=True):
    """An image, written out as a data: URL."""

    url: str


class InputAudio(msgspec.Struct, frozen=True):
    """A sound in base64. Its own first bytes say which kind it is."""

    data: str
    format: str | None = None


class Part(msgspec.Struct, frozen=True):
    """One part of a message's content."""

    type: str
    text: str | None = None
    image_url: ImageUrl | None = None
    input_audio: InputAudio | None = None


class CalledFunction(msgspec.Struct, frozen=True):
    """What was called. OpenAI sends the arguments as a JSON text; an object is understood too."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    arguments: str | dict[str, Any] = "{}"


class ToolCall(msgspec.Struct, frozen=True):
    """A call in the history."""

    function: CalledFunction
    id: CallId | None = None


class Message(msgspec.Struct, frozen=True):
    """One message as the client sent it."""

    role: Role
    content: str | tuple[Part, ...] | None = None
    name: Annotated[str, Meta(max_length=256)] | None = None
    tool_calls: Annotated[tuple[ToolCall, ...], Meta(max_length=MAX_CALLS)] | None = None
    tool_call_id: CallId | None = None
    reasoning_content: str | None = None


class Function(msgspec.Struct, frozen=True):
    """What may be called. `parameters` is a JSON schema; without one there are no arguments."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class OfferedTool(msgspec.Struct, frozen=True):
    """One entry of `tools`."""

    function: Function
    type: str = "function"


class NamedFunction(msgspec.Struct, frozen=True):
    name: str


class NamedChoice(msgspec.Struct, frozen=True):
    """A `tool_choice` of one function."""

    function: NamedFunction
    type: str = "function"


def check_messages(messages: Sequence[Message]) -> None:
    """Raise a `RequestError` for what the types cannot say."""
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        _check_content(message, where)
        for position, call in enumerate(message.tool_calls or ()):
            _call_arguments(call, f"{where}.tool_calls[{position}].function.arguments")
    if sum(len(message.tool_calls or ()) for message in messages) > MAX_MESSAGES:
        raise RequestError(f"messages hold more than {MAX_MESSAGES} tool calls", param="messages")


def _check_content(message: Message, where: str) -> None:
    if not isinstance(message.content, tuple):
        return
    for index, part in enumerate(message.content):
        param = f"{where}.content[{index}]"
        if part.type not in PART_TYPES:
            raise RequestError(
                f"{param}.type is {part.type[:64]!r}; {', '.join(PART_TYPES)} are known", param=f"{param}.type"
            )
        if getattr(part, part.type) is None:
            raise RequestError(f"{param}.{part.type} is required", param=f"{param}.{part.type}")


def _call_arguments(call: ToolCall, param: str) -> None:
    arguments = call_arguments(call)
    if isinstance(arguments, dict) and depth(arguments) > MAX_ARGUMENTS_DEPTH:
        raise RequestError(f"{param} is nested deeper than {MAX_ARGUMENTS_DEPTH} levels", param=param)


def call_arguments(call: ToolCall) -> dict[str, Any] | str:
    """The arguments as an object; as their text where a model wrote something else."""
    if isinstance(call.function.arguments, dict):
        return call.function.arguments
    try:
        decoded = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        return call.function.arguments
    return decoded if isinstance(decoded, dict) else call.function.arguments


def message_text(message: Message) -> str:
    """The content as one string: texts are joined by a newline, markers by nothing, as llama-server does."""
    if not isinstance(message.content, tuple):
        return message.content or ""
    pieces: list[str] = []
    after_text = False
    for part in message.content:
        is_text = part.type != MARKER
        pieces += ["\n", part.text or ""] if is_text and after_text else [part.text or ""]
        after_text = is_text
    return "".join(pieces)


def offered(tools: Sequence[OfferedTool]) -> dict[str, Tool]:
    """The tools by name. Raises `RequestError` naming the one that is wrong."""
    made: dict[str, Tool] = {}
    total = 0
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        if tool.type != "function":
            raise RequestError(
                f"{where}.type is {tool.type[:64]!r}; only function tools are known", param=f"{where}.type"
            )
        function = tool.function
        if function.name in made:
            raise RequestError(f"{where}.function.name: {function.name} is there twice", param=f"{where}.function.name")
        parameters = _parameters(function, f"{where}.function.parameters")
        total += len(json.dumps(parameters)) + len(function.description or "")
        if total > MAX_TOOLS_CHARS:
            raise RequestError(f"tools are larger than {MAX_TOOLS_CHARS} characters", param="tools")
        made[function.name] = Tool(function.name, parameters, function.description or "")
    return made


def _parameters(function: Function, param: str) -> dict[str, Any]:
    parameters = function.parameters or {}
    if depth(parameters) > MAX_SCHEMA_DEPTH:
        raise RequestError(f"{param} is nested deeper than {MAX_SCHEMA_DEPTH} levels", param=param)
    if len(json.dumps(parameters)) > MAX_SCHEMA_CHARS:
        raise RequestError(f"{param} is larger than {MAX_SCHEMA_CHARS} characters", param=param)
    kind = parameters.get("type", "object")
    if kind != "object":
        raise RequestError(f"{param}.type must be object: arguments have names", param=f"{param}.type")
    return parameters if "type" in parameters else {"type": "object", "properties": {}, **parameters}


def depth(value: object) -> int:
    """Levels of arrays and objects in a JSON value."""
    deepest, level = 0, [value]
    while True:
        inner: list[object] = []
        for one in level:
            if isinstance(one, Mapping):
                inner.extend(one.values())
            elif isinstance(one, list | tuple):
                inner.extend(one)
        containers = any(isinstance(one, Mapping | list | tuple) for one in level)
        if not containers:
            return deepest
        deepest += 1
        level = inner
