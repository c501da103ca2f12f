"""What a client may send: typed bodies, checked types and ranges, and their translation into engine terms.

Owns the bounds on every field but those of sampling. A null means the same as an absent field. Pure: bytes in, frozen
data out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from backends.llama_cpp.errors import RequestError
from backends.llama_cpp.sampling import INT32_MAX, SamplingBody
from backends.llama_cpp.unsupported import COMPLETION, Off, refuse_unsupported

MAX_PROMPTS = 128
MAX_STOPS = 32
MAX_STOP_CHARS = 512
MAX_PROBS = 100
"""llama-server has no bound; OpenAI's own fields have narrower ones."""

Limit = Annotated[int, Meta(ge=-1, le=INT32_MAX)]
Stop = Annotated[str, Meta(max_length=MAX_STOP_CHARS)]
TokenId = Annotated[int, Meta(ge=0, le=INT32_MAX)]
Tokens = tuple[TokenId, ...]


class StreamOptions(msgspec.Struct, frozen=True):
    """How a stream is decorated."""

    include_usage: bool | None = None


class JsonSchemaFormat(msgspec.Struct, frozen=True):
    """OpenAI's wrapping of a schema. It is enforced whether `strict` or not."""

    schema: dict[str, Any] | bool | None = None
    name: Annotated[str, Meta(max_length=256)] | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    """What an answer is to be. `schema` beside `json_object` is llama-server's."""

    type: str
    schema: dict[str, Any] | bool | None = None
    json_schema: JsonSchemaFormat | None = None


class GenerateBody(SamplingBody, frozen=True, kw_only=True):
    """The fields chat and text completions share."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=INT32_MAX)] | None = None
    n_cmpl: Annotated[int, Meta(ge=1, le=INT32_MAX)] | None = None
    """llama-server's name of `n`."""
    max_completion_tokens: Limit | None = None
    max_tokens: Limit | None = None
    n_predict: Limit | None = None
    stop: Stop | Annotated[tuple[Stop, ...], Meta(max_length=MAX_STOPS)] | None = None
    n_probs: Annotated[int, Meta(ge=0, le=MAX_PROBS)] | None = None
    """llama-server's name of what chats and completions each say in their own way."""
    cache_prompt: bool | None = None
    grammar: str | None = None
    """GBNF; empty is none."""
    json_schema: dict[str, Any] | bool | None = None
    """llama-server's way to ask for a schema; an empty one is any object."""
    response_format: ResponseFormat | None = None

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a chunk of token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def alternatives(self) -> int | None:
        """How many likely tokens are told beside each one with their logprobs; None tells nothing."""
        return self.n_probs or None


class TextBody(GenerateBody, frozen=True, kw_only=True):
    """The fields of all that goes on with a text: chats say `logprobs` in another way."""

    logprobs: Annotated[int, Meta(ge=0, le=5)] | bool | None = None

    def alternatives(self) -> int | None:
        if self.logprobs is True:
            raise RequestError("logprobs is true; give the number of alternatives, 0 to 5", param="logprobs")
        return self.n_probs or (None if self.logprobs is False else self.logprobs)


class CompletionBody(TextBody, frozen=True, kw_only=True):
    """POST /v1/completions. `prompt` is one text, one list of token ids, or a list of either."""

    prompt: str | tuple[str | TokenId | Tokens, ...]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the loaded model bounds: choices per prompt, vocabulary, usable context in tokens, size of a vector."""

    n_parallel: int
    n_vocab: int
    n_ctx: int
    n_embd: int
    n_batch: int
    n_input: int
    """Tokens of one input of an embeddings or reranking model."""


Body = TypeVar("Body")

_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_completion_decoder = msgspec.json.Decoder(CompletionBody)


def decode_completion(data: bytes) -> CompletionBody:
    """Check a text completion body. Raises `RequestError` naming the field."""
    return decode(_completion_decoder, data, COMPLETION)


def decode(decoder: msgspec.json.Decoder[Body], data: bytes, table: Mapping[str, Off]) -> Body:
    """Check any body: first against what is refused by name, then against its type. Raises `RequestError`."""
    try:
        refuse_unsupported(_fields_decoder.decode(data), table)
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _explain(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise RequestError("the body is nested too deeply") from None


_PATH = re.compile(r"^(?P<what>.*) - at `\$\.?(?P<path>.*)`$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(?P<field>\w+)`")


def _explain(error: msgspec.ValidationError) -> RequestError:
    """msgspec says "Expected `int` >= 1 - at `$.n`"; the client reads "n: expected `int` >= 1"."""
    text = str(error)
    located = _PATH.match(text)
    path, what = (located["path"], located["what"]) if located else ("", text)
    missing = _MISSING.search(what)
    if missing:
        param = f"{path}.{missing['field']}" if path else missing["field"]
        return RequestError(f"{param} is required", param=param)
    what = what[:1].lower() + what[1:]
    return RequestError(f"{path}: {what}" if path else f"the body: {what}", param=path or None)


def several(value: str | tuple[str | int | Tokens, ...], param: str, at_most: int) -> tuple[str | Tokens, ...]:
    """The prompts or inputs as a list, whichever of the four forms was sent. Never empty."""
    if isinstance(value, str):
        return (value,)
    if not value:
        raise RequestError(f"{param} must not be empty", param=param)
    ids = tuple(item for item in value if isinstance(item, int))
    if ids:
        if len(ids) != len(value):
            raise RequestError(f"{param} must not mix token ids with anything else", param=param)
        return (ids,)
    if len(value) > at_most:
        raise RequestError(f"{param} has {len(value)} entries; {at_most} are allowed", param=param)
    return tuple(item for item in value if not isinstance(item, int))


def choices(body: GenerateBody, limits: Limits) -> int:
    """How many continuations of each prompt are asked for."""
    n, param = (body.n, "n") if body.n is not None else (body.n_cmpl or 1, "n_cmpl")
    if n > limits.n_parallel:
        raise RequestError(f"{param} is {n}, but this model runs {limits.n_parallel} sequences at once", param=param)
    return n


def max_tokens(body: GenerateBody) -> int | None:
    """Tokens to generate per choice; None runs to the end of the context. Any of the three names may say it."""
    for name in ("max_completion_tokens", "max_tokens", "n_predict"):
        value: int | None = getattr(body, name)
        if value == 0:
            raise RequestError(f"{name} must be at least 1 (or -1 for no limit)", param=name)
        if value is not None:
            return None if value < 0 else value
    return None


def stops(body: GenerateBody) -> tuple[str, ...]:
    """The stop strings; empty ones stop nothing and are dropped."""
    asked = (body.stop,) if isinstance(body.stop, str) else body.stop or ()
    return tuple(stop for stop in asked if stop)
