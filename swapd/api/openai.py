"""OpenAI's dialect at the edge: is this request well formed, what does a worker get to see, what are the models.

Owns the types and ranges that every OpenAI-compatible server shares; what only an engine can know is left to
the worker, and fields not named here pass through. Pure: must never do I/O or keep a request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Annotated, Any, Literal

import msgspec

from swapd.api import grammars, media, native, size, strict_json
from swapd.api.llama_fields import DROPPED, LlamaFields
from swapd.api.shapes import shaped
from swapd.config.schema import Model
from swapd.errors import BadRequestError
from swapd.pool.lease import Ability, Sense
from swapd.pool.status import ListedModel

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
_Temperature = Annotated[float, msgspec.Meta(ge=0.0, le=2.0)]
_Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
_Penalty = Annotated[float, msgspec.Meta(ge=-2.0, le=2.0)]
_Choices = Annotated[int, msgspec.Meta(ge=1, le=128)]
_Positive = Annotated[int, msgspec.Meta(ge=1)]
_Natural = Annotated[int, msgspec.Meta(ge=0)]
_Stops = Annotated[list[str], msgspec.Meta(max_length=64)]
_Tokens = list[Annotated[int, msgspec.Meta(ge=0)]]
_Text = str | Annotated[list[str | int | _Tokens], msgspec.Meta(min_length=1)]
"""A text, several texts, the tokens of one, or the tokens of several; `_check_text` refuses mixtures."""
_Bias = float | bool
_Biases = dict[str, _Bias] | list[tuple[int | str, _Bias]]
"""llama.cpp's clients also send lists, and false for a ban."""


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Sampled(LlamaFields, kw_only=True):
    """What both ways to generate text have in common."""

    model: _Name
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    temperature: _Temperature | None = None
    top_p: _Share | None = None
    n: _Choices | None = None
    seed: int | None = None
    stop: str | _Stops | None = None
    frequency_penalty: _Penalty | None = None
    presence_penalty: _Penalty | None = None
    logit_bias: _Biases | None = None
    user: str | None = None


class _Part(msgspec.Struct):
    type: str
    text: str | None = None


_SENSES: Mapping[str, Sense] = {"image_url": "vision", "input_audio": "audio"}
"""Kinds of parts that not every model takes."""


class _Message(msgspec.Struct):
    role: Annotated[str, msgspec.Meta(min_length=1)]
    content: str | list[_Part] | None = None
    tool_calls: list[dict[str, Any]] | None = None


class _ResponseFormat(msgspec.Struct):
    type: str


class _Chat(_Sampled, kw_only=True):
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    max_tokens: _Positive | None = None
    max_completion_tokens: _Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    response_format: _ResponseFormat | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None


class _Completion(_Sampled, kw_only=True):
    prompt: _Text
    max_tokens: _Natural | None = None
    best_of: _Choices | None = None
    echo: bool | None = None
    suffix: str | None = None
    logprobs: _Natural | None = None


class _Embeddings(msgspec.Struct, kw_only=True):
    model: _Name
    input: _Text
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: _Positive | None = None
    user: str | None = None


class Endpoint(Enum):
    """A route of the dialect; the value is its path, here and at a worker."""

    CHAT_COMPLETIONS = "/v1/chat/completions"
    CHAT_INPUT_TOKENS = "/v1/chat/completions/input_tokens"
    COMPLETIONS = "/v1/completions"
    EMBEDDINGS = "/v1/embeddings"
    RERANK = "/v1/rerank"
    COMPLETION = "/completion"
    INFILL = "/infill"
    TOKENIZE = "/tokenize"
    DETOKENIZE = "/detokenize"
    APPLY_TEMPLATE = "/apply-template"


ALSO_AT: Mapping[Endpoint, tuple[str, ...]] = {
    Endpoint.RERANK: ("/rerank", "/v1/reranking", "/reranking"),
    Endpoint.COMPLETION: ("/completions",),
}
"""Further paths that clients know an endpoint by."""

NATIVE_PATHS = frozenset((Endpoint.COMPLETION.value, Endpoint.INFILL.value))
"""Where workers answer in llama-server's own dialect."""

_Native = native.Completion | native.Infill | native.Rerank | native.Tokenize | native.Detokenize
_Shape = _Chat | _Completion | _Embeddings | _Native
_SHAPES: dict[Endpoint, tuple[type[_Shape], Ability | None]] = {
    Endpoint.CHAT_COMPLETIONS: (_Chat, "chat"),
    Endpoint.CHAT_INPUT_TOKENS: (_Chat, None),
    Endpoint.COMPLETIONS: (_Completion, "completions"),
    Endpoint.EMBEDDINGS: (_Embeddings, "embeddings"),
    Endpoint.RERANK: (native.Rerank, "rerank"),
    Endpoint.COMPLETION: (native.Completion, "completions"),
    Endpoint.INFILL: (native.Infill, "completions"),
    Endpoint.TOKENIZE: (native.Tokenize, None),
    Endpoint.DETOKENIZE: (native.Detokenize, None),
    Endpoint.APPLY_TEMPLATE: (_Chat, None),
}
"""What each takes, and what a model must be able to do for it."""
_GENERATING = frozenset((Endpoint.CHAT_COMPLETIONS, Endpoint.COMPLETIONS, Endpoint.COMPLETION, Endpoint.INFILL))


@dataclass(frozen=True, slots=True)
class Asked:
    """A well-formed request, as the client wrote it."""

    endpoint: Endpoint
    model_name: str
    """An id or an alias, not yet resolved."""
    fields: Mapping[str, Any]
    senses: tuple[tuple[Sense, str], ...] = ()
    """What its media ask of the model, each with the field of the first that does."""

    @property
    def needs(self) -> Ability | None:
        """What the model must be able to do; None for what every model can."""
        return _SHAPES[self.endpoint][1]


@dataclass(frozen=True, slots=True)
class Rewritten:
    """The same request as a worker gets it."""

    body: bytes
    stream: bool
    prompt_tokens: int
    """Estimated; 0 where a model computes nothing."""
    answer_limit: int | None
    """Tokens that the answer has at most; None where the request does not say."""


def shape_of(endpoint: Endpoint) -> type[_Shape]:
    """The type that a body of this endpoint is checked against."""
    return _SHAPES[endpoint][0]


def read(endpoint: Endpoint, body: bytes) -> Asked:
    """Parse and check a request's body. Raises `BadRequestError`; its `param` is the field's path."""
    return check(endpoint, strict_json.parse_object(body))


def check(endpoint: Endpoint, fields: dict[str, Any]) -> Asked:
    """Check a request's fields, wherever they come from. Raises as `read` does."""
    checked = shaped(fields, shape_of(endpoint))
    senses: dict[Sense, str] = {}
    if isinstance(checked, LlamaFields):
        grammars.refuse_heavy(checked.grammar)
    if isinstance(checked, _Chat):
        _check_messages(checked.messages)
        media.refuse_remote(fields)
        senses = _senses(checked.messages)
    elif isinstance(checked, _Completion):
        _check_text("prompt", checked.prompt)
    elif isinstance(checked, _Embeddings):
        _check_text("input", checked.input)
    elif isinstance(checked, native.Rerank):
        native.check_rerank(checked)
    return Asked(endpoint=endpoint, model_name=checked.model, fields=fields, senses=tuple(senses.items()))


def rewrite(asked: Asked, model: Model) -> Rewritten:
    """Apply the model's `params`, then those of the alias that was asked for, and the name that its worker knows.

    What one's `strip` removes, the same one's `set` and all that come later may still put in.
    """
    fields = {key: value for key, value in asked.fields.items() if key not in DROPPED}
    for params in (model.params, model.alias_params.get(asked.model_name)):
        if params is not None:
            fields = {key: value for key, value in fields.items() if key not in params.strip} | params.set
    fields["model"] = model.model_name or model.id
    body = msgspec.json.encode(fields)
    return Rewritten(
        body=body,
        stream=fields.get("stream") is True,
        prompt_tokens=0 if asked.needs is None else size.of_prompt(fields, len(body)),
        answer_limit=size.answer_limit(fields) if asked.endpoint in _GENERATING else 0,
    )


def models_document(models: Iterable[ListedModel], created: int) -> dict[str, Any]:
    """The answer to GET /v1/models. `created` is a Unix time in seconds."""
    data = [model_document(model, created) for model in models]
    return {"object": "list", "data": data, "has_more": False}


def model_document(model: ListedModel, created: int) -> dict[str, Any]:
    """One model in OpenAI's shape and Anthropic's, with its state, aliases, usable context in tokens and abilities.

    A virtual one also says what it chooses from, and whom a request would go to now.
    """
    document: dict[str, Any] = {
        "id": model.id,
        "object": "model",
        "type": "model",
        "display_name": model.name or model.id,
        "created": created,
        "created_at": datetime.fromtimestamp(created, UTC).isoformat(),
        "owned_by": "swapd",
        "aliases": list(model.aliases),
        "state": model.state,
        "context_length": model.n_ctx or None,
        "max_input_tokens": model.n_ctx or None,
        "input_modalities": list(model.input_modalities),
        "capabilities": list(model.capabilities),
    }
    if model.name:
        document["name"] = model.name
    if model.description:
        document["description"] = model.description
    if model.metadata:
        document["metadata"] = dict(model.metadata)
    if model.virtual is not None:
        document["virtual"] = msgspec.to_builtins(model.virtual)
    return document


def _check_messages(messages: list[_Message]) -> None:
    for index, message in enumerate(messages):
        if message.content is None and message.role != "assistant":
            param = f"messages[{index}].content"
            raise BadRequestError(f"{param}: a message of role `{message.role[:32]}` needs content", param=param)


def _senses(messages: list[_Message]) -> dict[Sense, str]:
    found: dict[Sense, str] = {}
    for index, message in enumerate(messages):
        for position, part in enumerate(message.content if isinstance(message.content, list) else ()):
            sense = _SENSES.get(part.type)
            if sense is not None:
                found.setdefault(sense, f"messages[{index}].content[{position}].{part.type}")
    return found


def _check_text(param: str, value: str | list[str | int | _Tokens]) -> None:
    if isinstance(value, str):
        return
    kinds = {type(entry) for entry in value}
    if len(kinds) != 1:
        raise BadRequestError(
            f"{param}: an array must hold texts, tokens or arrays of tokens, not a mixture", param=param
        )
    if any(isinstance(entry, int) and entry < 0 for entry in value):
        raise BadRequestError(f"{param}: a token must not be negative", param=param)
    if any(isinstance(entry, list) and not entry for entry in value):
        raise BadRequestError(f"{param}: an array of tokens must not be empty", param=param)
