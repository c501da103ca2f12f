"""What `/v1/messages` and `/v1/messages/count_tokens` take, as a chat's fields.

Owns the fields of the dialect: which are carried, which mean nothing here and which are refused. Pure.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from swapd.api import strict_json
from swapd.api.anthropic.answer import CountAnswer, MessageAnswer
from swapd.api.anthropic.blocks import Block, Turns, messages
from swapd.api.conversation import effort, further, joined, offered
from swapd.api.openai import Endpoint
from swapd.api.shapes import shaped
from swapd.api.translation import Translated
from swapd.errors import BadRequestError

_Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]


class _Tool(msgspec.Struct):
    """`input_schema` is what tools have that a client runs and describes itself."""

    name: str | None = None
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class _ToolChoice(msgspec.Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _Thinking(msgspec.Struct):
    type: str
    budget_tokens: int | None = None


class _Metadata(msgspec.Struct):
    user_id: str | None = None


class _Format(msgspec.Struct):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class _OutputConfig(msgspec.Struct):
    effort: str | None = None
    format: _Format | None = None


class CountBody(msgspec.Struct, kw_only=True):
    """What has a say in how long a prompt is."""

    model: str
    messages: Turns
    system: str | list[Block] | None = None
    tools: list[_Tool] | None = None
    tool_choice: _ToolChoice | None = None
    thinking: _Thinking | None = None
    output_config: _OutputConfig | None = None
    output_format: _Format | None = None
    """What older clients have in place of `output_config.format`."""


class MessagesBody(CountBody, kw_only=True):
    max_tokens: Annotated[int, msgspec.Meta(ge=1)]
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: _Share | None = None
    top_p: _Share | None = None
    top_k: int | None = None
    metadata: _Metadata | None = None


_IGNORED = frozenset((
    "cache_control", "context_management", "diagnostics", "inference_geo", "service_tier", "speed", "user_profile_id",
    "workspace_id", "betas",
))  # fmt: skip
"""They are about Anthropic's own house. Prefixes are shared here without being asked."""
_REFUSED = ("mcp_servers", "container")
_OWN = frozenset((*MessagesBody.__struct_fields__, *_IGNORED, *_REFUSED))


def read(body: bytes) -> Translated:
    """POST /v1/messages. Raises `BadRequestError` naming the field."""
    fields = strict_json.parse_object(body)
    asked = shaped(fields, MessagesBody)
    made = _chat(fields, asked, "/v1/messages")
    made["max_tokens"] = asked.max_tokens
    if asked.stream:
        made |= {"stream": True, "stream_options": {"include_usage": True}}
    if asked.stop_sequences:
        made["stop"] = asked.stop_sequences
    for name in ("temperature", "top_p", "top_k"):
        if getattr(asked, name) is not None:
            made[name] = getattr(asked, name)
    if asked.metadata is not None and asked.metadata.user_id is not None:
        made["user"] = asked.metadata.user_id
    return Translated(Endpoint.CHAT_COMPLETIONS, made, MessageAnswer)


def read_count(body: bytes) -> Translated:
    """POST /v1/messages/count_tokens. Raises `BadRequestError` naming the field."""
    fields = strict_json.parse_object(body)
    made = _chat(fields, shaped(fields, CountBody), "/v1/messages/count_tokens")
    return Translated(Endpoint.CHAT_INPUT_TOKENS, made, CountAnswer)


def _chat(fields: dict[str, Any], asked: CountBody, where: str) -> dict[str, Any]:
    """What both routes have in common."""
    for name in _REFUSED:
        if fields.get(name):
            raise BadRequestError(f"{name}: there is no such thing here; leave it out", param=name)
    made = further(fields, _OWN, where)
    made["model"] = asked.model
    made["messages"] = joined(messages(asked.system, asked.messages))
    if asked.tools:
        made["tools"] = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(asked.tools)]
    if asked.tool_choice is not None:
        made |= _choice(asked.tool_choice)
    if asked.thinking is not None and asked.thinking.type in ("enabled", "disabled"):
        kwargs = made.get("chat_template_kwargs")
        enabled = {"enable_thinking": asked.thinking.type == "enabled"}
        made["chat_template_kwargs"] = kwargs | enabled if isinstance(kwargs, dict) else enabled
    output = asked.output_config or _OutputConfig()
    if output.effort is not None:
        made["reasoning_effort"] = effort(output.effort)
    form = output.format or asked.output_format
    if form is not None:
        schema = {"name": "answer", "schema": form.schema, "strict": True}
        made["response_format"] = {"type": "json_schema", "json_schema": schema}
    return made


def _tool(tool: _Tool, where: str) -> dict[str, Any]:
    if tool.type not in (None, "custom") or tool.input_schema is None:
        named = tool.type or tool.name or "a tool without a type"
        raise BadRequestError(
            f"{where}: {named[:64]!r} is not available here, only tools that a client describes by an input_schema "
            "and runs itself",
            param=where,
        )
    if not tool.name:
        raise BadRequestError(f"{where}.name: this field is required", param=f"{where}.name")
    return offered(tool.name, tool.description, tool.input_schema, tool.strict)


def _choice(choice: _ToolChoice) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if choice.type == "tool":
        if not choice.name:
            raise BadRequestError("tool_choice.name: this field is required", param="tool_choice.name")
        made["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    else:
        made["tool_choice"] = "required" if choice.type == "any" else choice.type
    if choice.disable_parallel_tool_use is not None:
        made["parallel_tool_calls"] = not choice.disable_parallel_tool_use
    return made
