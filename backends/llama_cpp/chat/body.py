"""POST /v1/chat/completions: the body, its checks, and which tools the model may, must or must not call.

Owns the chat fields and their bounds. Pure: bytes in, frozen data out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum, auto
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from backends.llama_cpp.chat.messages import (
    MAX_MESSAGES,
    MAX_TOOLS,
    Message,
    NamedChoice,
    OfferedTool,
    check_messages,
    depth,
    offered,
)
from backends.llama_cpp.chat.tools import Tool, Tools
from backends.llama_cpp.errors import RequestError
from backends.llama_cpp.requests import GenerateBody, decode
from backends.llama_cpp.unsupported import CHAT

MAX_TEMPLATE_KWARGS = 64
MAX_TEMPLATE_KWARGS_CHARS = 64 * 1024
MAX_TEMPLATE_KWARGS_DEPTH = 32
RESERVED_KWARGS = frozenset({"messages", "tools", "bos_token", "eos_token", "add_generation_prompt", "strftime_now"})
"""What rendering gives a template itself."""


class ChatBody(GenerateBody, frozen=True, kw_only=True):
    """The fields of a chat beside those of every generation."""

    messages: Annotated[tuple[Message, ...], Meta(min_length=1, max_length=MAX_MESSAGES)]
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[tuple[OfferedTool, ...], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: str | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: Annotated[dict[str, Any], Meta(max_length=MAX_TEMPLATE_KWARGS)] | None = None
    reasoning_effort: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    enable_thinking: bool | None = None
    reasoning_format: Literal["auto", "deepseek", "none"] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    def alternatives(self) -> int | None:
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
        return self.n_probs or ((self.top_logprobs or 0) if self.logprobs else None)


class Must(Enum):
    """What `tool_choice` asks of the model."""

    NONE = auto()
    AUTO = auto()
    CALL = auto()


@dataclass(frozen=True, slots=True)
class Choice:
    """The tools of a request and what is to become of them."""

    tools: Tools
    """What the model is told of; empty unless it may call."""
    must: Must = Must.NONE
    callable: Tools | None = None
    """The only ones that may be called, where that is not all of them."""
    parallel: bool = True
    """Whether one answer may hold several calls."""


def decode_chat(data: bytes) -> ChatBody:
    """Check a chat body. Raises `RequestError` naming the field."""
    body = decode(_decoder, data, CHAT)
    check_messages(body.messages)
    _check_kwargs(body.chat_template_kwargs or {})
    _check_continuation(body)
    chosen_tools(body)
    return body


_decoder = msgspec.json.Decoder(ChatBody)


def chosen_tools(body: ChatBody) -> Choice:
    """What `tools`, `tool_choice` and `parallel_tool_calls` come to. Raises `RequestError`."""
    tools: dict[str, Tool] = offered(body.tools or ())
    parallel = body.parallel_tool_calls is not False
    choice = body.tool_choice
    if isinstance(choice, NamedChoice):
        name = choice.function.name
        if name not in tools:
            raise RequestError(f"tool_choice names {name[:128]!r}, which is not among the tools", param="tool_choice")
        return Choice(tools, Must.CALL, {name: tools[name]}, parallel=False)
    if choice not in (None, "", "none", "auto", "required"):
        raise RequestError('tool_choice must be "none", "auto", "required" or a function', param="tool_choice")
    if choice == "required":
        if not tools:
            raise RequestError("tool_choice is required, but there are no tools", param="tool_choice")
        return Choice(tools, Must.CALL, parallel=parallel)
    if choice == "none" or not tools:
        return Choice({})
    return Choice(tools, Must.AUTO, parallel=parallel)


def template_kwargs(body: ChatBody) -> dict[str, Any]:
    """What the template gets beside the conversation. "none" is OpenAI's word for no reasoning at all."""
    kwargs = dict(body.chat_template_kwargs or {})
    if body.enable_thinking is not None:
        kwargs["enable_thinking"] = body.enable_thinking
    if body.reasoning_effort == "none":
        kwargs["enable_thinking"] = False
        kwargs.pop("reasoning_effort", None)
    elif body.reasoning_effort is not None:
        kwargs["reasoning_effort"] = body.reasoning_effort
    return kwargs


def continues(body: ChatBody) -> bool:
    """Whether the answer goes on with the last message, which is llama-server's rule for an assistant's."""
    if body.continue_final_message is not None:
        return body.continue_final_message
    return body.messages[-1].role == "assistant" and body.add_generation_prompt is None


def _check_continuation(body: ChatBody) -> None:
    if not continues(body):
        return
    param = "continue_final_message" if body.continue_final_message else "messages"
    last = body.messages[-1]
    if body.add_generation_prompt:
        raise RequestError("continue_final_message and add_generation_prompt exclude each other", param=param)
    if last.role != "assistant":
        raise RequestError("continue_final_message needs a last message of the assistant", param=param)
    if last.tool_calls:
        raise RequestError("messages: an assistant message with tool calls cannot be continued", param=param)
    if len(body.messages) > 1 and body.messages[-2].role == "assistant":
        raise RequestError("messages must not end in two messages of the assistant", param=param)


def _check_kwargs(kwargs: dict[str, Any]) -> None:
    param = "chat_template_kwargs"
    reserved = sorted(RESERVED_KWARGS & kwargs.keys())
    if reserved:
        raise RequestError(f"{param}.{reserved[0]} is not the client's to set", param=f"{param}.{reserved[0]}")
    unusable = next((key for key in kwargs if not key.isidentifier() or key.startswith("_") or len(key) > 128), None)
    if unusable is not None:
        raise RequestError(f"{param}: {unusable[:64]!r} is no name for a variable", param=param)
    if depth(kwargs) > MAX_TEMPLATE_KWARGS_DEPTH:
        raise RequestError(f"{param} is nested deeper than {MAX_TEMPLATE_KWARGS_DEPTH} levels", param=param)
    if len(json.dumps(kwargs)) > MAX_TEMPLATE_KWARGS_CHARS:
        raise RequestError(f"{param} is larger than {MAX_TEMPLATE_KWARGS_CHARS} characters", param=param)
    if not isinstance(kwargs.get("enable_thinking", True), bool):
        raise RequestError(f"{param}.enable_thinking must be true or false", param=f"{param}.enable_thinking")
