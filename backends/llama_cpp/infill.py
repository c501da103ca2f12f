"""Fill in the middle: llama-server's /infill, which code editors use.

Owns the body and the prompt of a gap between two pieces of code. Pure; blocking where
texts are tokenized, so the server calls it off the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from backends.llama_cpp.engine.types import Generate, SpecialTokens
from backends.llama_cpp.errors import RequestError
from backends.llama_cpp.native import NativeBody, Text, native_request, refuse_choices
from backends.llama_cpp.prompts import Grammars
from backends.llama_cpp.requests import Limits, Tokens, decode, max_tokens
from backends.llama_cpp.sampling import Tokenizer
from backends.llama_cpp.tokens import mixed_tokens
from backends.llama_cpp.unsupported import NATIVE

MAX_EXTRA = 1024
ANSWER_TOKENS = 256
"""Kept free of extra context for an answer whose length was not asked for."""
_REPOSITORY, _FILE, _UNNAMED = "myproject\n", "filename\n", "tmp"
_SNIPPET = "\n\n--- snippet ---\n\n"


class Extra(msgspec.Struct, frozen=True):
    """A piece of another file."""

    text: str
    filename: Annotated[str, Meta(max_length=4096)] | None = None


class InfillBody(NativeBody, frozen=True, kw_only=True):
    """POST /infill. The gap is between `input_prefix` with `prompt` after it, and `input_suffix`."""

    input_prefix: Text
    input_suffix: Text
    input_extra: Annotated[tuple[Extra, ...], Meta(max_length=MAX_EXTRA)] | None = None
    prompt: str | None = None


_decoder = msgspec.json.Decoder(InfillBody)


def decode_infill(data: bytes, limits: Limits) -> InfillBody:
    """Check a body. Raises `RequestError` naming the field."""
    body = decode(_decoder, data, NATIVE)
    refuse_choices(body, limits)
    return body


def require_fim(special: SpecialTokens, model_id: str) -> None:
    """Raise a `RequestError` for a model that was not trained to fill gaps."""
    wanted = {"prefix": special.fim_prefix, "suffix": special.fim_suffix, "middle": special.fim_middle}
    missing = [name for name, token in wanted.items() if token is None]
    if missing:
        raise RequestError(
            f"{model_id} cannot fill in the middle: its vocabulary has no {' and no '.join(missing)} token",
            code="unsupported_endpoint",
        )


def infill_request(
    body: InfillBody,
    tokenizer: Tokenizer,
    grammars: Grammars,
    special: SpecialTokens,
    limits: Limits,
    new_id: Callable[[], str],
) -> Generate:
    """The Generate that fills the gap."""
    prompt = infill_prompt(body, tokenizer, special, limits)
    return native_request(body, prompt, tokenizer, grammars, limits, new_id)


def infill_prompt(body: InfillBody, tokenizer: Tokenizer, special: SpecialTokens, limits: Limits) -> Tokens:
    """Extra files, then the gap's two sides and the token that asks for what is between them.

    server-common.cpp format_prompt_infill, the pattern of Qwen2.5-Coder (arXiv:2409.12186): of a long prefix the end
    is taken and of a long suffix the beginning, three to one, as much as one batch holds. Extra context is cut from
    its beginning to what the context has left.
    """
    assert special.fim_prefix is not None
    assert special.fim_suffix is not None
    assert special.fim_middle is not None

    def side(text: Text, param: str) -> list[int]:
        parts = (text,) if isinstance(text, str) else text
        return mixed_tokens(parts, tokenizer, limits, param, add_special=False, parse_special=False)

    prompt = tokenizer.tokenize(body.prompt or "", add_special=False, parse_special=True)
    prefix, suffix = side(body.input_prefix, "input_prefix"), side(body.input_suffix, "input_suffix")
    quarter = min(limits.n_batch, limits.n_ctx) // 4
    prefix = prefix[max(0, len(prefix) - 3 * quarter) :]
    suffix = suffix[: max(0, quarter - 2 - len(prompt))]
    bos = [special.bos] if special.add_bos and special.bos is not None else []
    gap = [*bos, special.fim_prefix, *prefix, *prompt, special.fim_suffix, *suffix, special.fim_middle]
    extra = _extra_tokens(body.input_extra or (), tokenizer, special)
    answer = 1 if body.warms_up else max_tokens(body) or ANSWER_TOKENS
    room = max(0, limits.n_ctx - len(gap) - answer)
    return (*extra[max(0, len(extra) - room) :], *gap)


def _extra_tokens(extra: Sequence[Extra], tokenizer: Tokenizer, special: SpecialTokens) -> list[int]:
    def plain(text: str) -> list[int]:
        return tokenizer.tokenize(text, add_special=False, parse_special=False)

    tokens: list[int] = []
    if special.fim_repository is not None:
        tokens += [special.fim_repository, *plain(_REPOSITORY)]
    for one in extra:
        if special.fim_separator is not None:
            tokens += [special.fim_separator, *plain(f"{one.filename or _UNNAMED}\n")]
        else:
            tokens += plain(_SNIPPET)
        tokens += plain(one.text)
    if special.fim_separator is not None:
        tokens += [special.fim_separator, *plain(_FILE)]
    return tokens
