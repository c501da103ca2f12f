"""What Ollama's clients send, checked, and as the request of OpenAI's that a worker gets.

Owns the bodies of /api/chat, /api/generate, /api/embed and /api/embeddings. Fields not named here are read over, as
Ollama does. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from swapd.api import strict_json
from swapd.api.ollama import answer, options
from swapd.api.ollama.answer import Heading, Shape, Times
from swapd.api.ollama.keep_alive import keep_alive_s
from swapd.api.ollama.messages import Message, content, openai_messages
from swapd.api.ollama.options import Options
from swapd.api.openai import Endpoint
from swapd.api.shapes import required, shaped
from swapd.api.translation import Translated
from swapd.errors import BadRequestError

_Name = Annotated[str, Meta(min_length=1, max_length=256)]
_Schema = dict[str, Any]


class _Asked(msgspec.Struct, kw_only=True):
    """What all have in common. `model` may have `:latest` behind it."""

    model: _Name
    options: Options | None = None
    keep_alive: float | str | None = None


class _Generating(_Asked, kw_only=True):
    stream: bool | None = None
    format: str | _Schema | None = None
    think: bool | Literal["low", "medium", "high", "max", ""] | None = None


class NameBody(msgspec.Struct, kw_only=True):
    """Of /api/show and /api/pull, which only name a model; older clients say `name`."""

    model: str | None = None
    name: str | None = None


class ChatBody(_Generating, kw_only=True):
    messages: list[Message] | None = None
    tools: list[dict[str, Any]] | None = None


class GenerateBody(_Generating, kw_only=True):
    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: list[int] | None = None
    raw: bool | None = None
    images: list[str] | None = None


class EmbedBody(_Asked, kw_only=True):
    input: str | list[str] | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None


class EmbeddingsBody(_Asked, kw_only=True):
    prompt: str | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A well-formed request."""

    model_name: str
    """As the client wrote it."""
    keep_alive_s: float | None
    """How long the model is to stay afterwards; infinity is for ever."""
    translated: Translated | None
    """None where there is nothing to compute: the model is to be loaded, or with a `keep_alive_s` of 0 to go."""
    empty: Callable[[str], bytes]
    """What is answered then, with the reason: `load` or `unload`."""


def read_name(body: bytes) -> str:
    """POST /api/show and /api/pull. Raises `BadRequestError` naming the field."""
    asked = shaped(strict_json.parse_object(body), NameBody)
    return required(asked.model or asked.name or None, "model")


def read_chat(body: bytes, times: Times) -> Asked:
    """POST /api/chat. Raises `BadRequestError` naming the field."""
    asked = _read(body, ChatBody)
    heading = Heading(asked.model, Shape.CHAT, times)
    fields = _generating(asked)
    if not asked.messages:
        return _asked(asked, None, heading)
    fields["messages"] = openai_messages(asked.messages)
    if asked.tools:
        fields["tools"] = asked.tools
    return _asked(asked, _translated(Endpoint.CHAT_COMPLETIONS, fields, asked, heading), heading)


def read_generate(body: bytes, times: Times) -> Asked:
    """POST /api/generate: a chat of one message, a gap to fill, or with `raw` a text to go on with. Raises as above."""
    asked = _read(body, GenerateBody)
    heading = Heading(asked.model, Shape.GENERATE, times)
    fields = _generating(asked)
    _refuse(asked)
    if not asked.prompt:
        return _asked(asked, None, heading)
    endpoint = Endpoint.CHAT_COMPLETIONS
    if asked.suffix:
        endpoint = Endpoint.INFILL
        fields |= {"input_prefix": asked.prompt, "input_suffix": asked.suffix}
    elif asked.raw:
        endpoint = Endpoint.COMPLETIONS
        fields["prompt"] = asked.prompt
    else:
        system = [{"role": "system", "content": asked.system}] if asked.system else []
        fields["messages"] = [*system, {"role": "user", "content": content(asked.prompt, asked.images)}]
    if endpoint is not Endpoint.CHAT_COMPLETIONS:
        fields.pop("chat_template_kwargs", None)
        fields.pop("reasoning_effort", None)
    return _asked(asked, _translated(endpoint, fields, asked, heading), heading)


def read_embed(body: bytes, times: Times) -> Asked:
    """POST /api/embed. Raises as above."""
    asked = _read(body, EmbedBody)
    if asked.input is None:
        raise BadRequestError("input: this field is required", param="input")
    heading = Heading(asked.model, Shape.EMBED, times)
    fields: dict[str, Any] = {"input": asked.input, "encoding_format": "float"}
    if asked.dimensions is not None:
        fields["dimensions"] = asked.dimensions
    return _asked(asked, _vectors(fields, heading) if asked.input else None, heading)


def read_embeddings(body: bytes, times: Times) -> Asked:
    """POST /api/embeddings, the older form. Raises as above."""
    asked = _read(body, EmbeddingsBody)
    heading = Heading(asked.model, Shape.EMBEDDINGS, times)
    fields: dict[str, Any] = {"input": asked.prompt, "encoding_format": "float"}
    return _asked(asked, _vectors(fields, heading) if asked.prompt else None, heading)


_Body = TypeVar("_Body", bound=_Asked)


def _read(body: bytes, kind: type[_Body]) -> _Body:
    fields = strict_json.parse_object(body)
    if "name" in fields:
        fields.setdefault("model", fields["name"])
    return shaped(fields, kind)


def _asked(asked: _Asked, translated: Translated | None, heading: Heading) -> Asked:
    if translated is not None:
        translated.fields["model"] = asked.model
    return Asked(asked.model, keep_alive_s(asked.keep_alive), translated, partial(answer.empty, heading))


def _generating(asked: _Generating) -> dict[str, Any]:
    """The fields that do not depend on what is to be said."""
    fields = options.fields(asked.options)
    fields |= {"stream": True, "stream_options": {"include_usage": True}}
    if isinstance(asked.format, dict):
        schema = {"name": "answer", "schema": asked.format, "strict": True}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif asked.format == "json":
        fields["response_format"] = {"type": "json_object"}
    elif asked.format:
        raise BadRequestError(f'format: {asked.format[:32]!r} is not known; "json" or a schema is', param="format")
    if isinstance(asked.think, bool):
        fields["chat_template_kwargs"] = {"enable_thinking": asked.think}
    elif asked.think:
        fields["chat_template_kwargs"] = {"enable_thinking": True}
        fields["reasoning_effort"] = asked.think
    return fields


def _translated(endpoint: Endpoint, fields: dict[str, Any], asked: _Generating, heading: Heading) -> Translated:
    # Workers stream in any case: only so can be told how long prompt and answer took.
    way = answer.Document if asked.stream is False else answer.Lines
    return Translated(endpoint, fields, partial(way, heading, answer.READERS[endpoint]))


def _vectors(fields: dict[str, Any], heading: Heading) -> Translated:
    return Translated(Endpoint.EMBEDDINGS, fields, partial(answer.Vectors, heading))


def _refuse(asked: GenerateBody) -> None:
    """What would be answered wrongly if it was read over."""
    if asked.template:
        raise BadRequestError(
            "template: a template of Ollama's own language cannot be used; set chat_template in the model list, "
            "or write out the prompt and send raw: true",
            param="template",
        )
    if asked.context:
        raise BadRequestError("context: is not kept here; send the conversation to /api/chat instead", param="context")
    if asked.raw and (asked.system or asked.images):
        param = "system" if asked.system else "images"
        raise BadRequestError(f"{param}: raw is true, so the prompt must hold everything itself", param=param)
    if asked.suffix and (asked.system or asked.images):
        param = "system" if asked.system else "images"
        raise BadRequestError(f"{param}: is not taken together with suffix", param=param)
