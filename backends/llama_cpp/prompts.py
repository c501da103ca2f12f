"""From a checked body to the engine's requests: render, tokenize, measure against the context.

Owns the limits that need the model's vocabulary. Blocking (a long text takes milliseconds to tokenize), so the
server calls it off the event loop. Must never keep anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol

from backends.llama_cpp.chat.template import ChatTemplate
from backends.llama_cpp.engine.types import Generate
from backends.llama_cpp.errors import RequestError, context_exceeded
from backends.llama_cpp.requests import (
    MAX_PROMPTS,
    ChatBody,
    CompletionBody,
    GenerateBody,
    Limits,
    Message,
    Tokens,
    choices,
    max_tokens,
    message_text,
    sampling,
    several,
    stops,
)


class Tokenizer(Protocol):
    """What is needed of the model here. Safe to call from any thread."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...


def chat_requests(
    body: ChatBody,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    limits: Limits,
    new_id: Callable[[], str],
    now: datetime,
) -> list[Generate]:
    """One Generate for the conversation. `now` is what a template may print."""
    prompt = chat_tokens(body, tokenizer, template, now)
    check_prompt(prompt, limits, "messages")
    return generates(body, [prompt], limits, new_id)


def render_chat(body: ChatBody, template: ChatTemplate, now: datetime) -> str:
    """The conversation as the text that the model reads. `now` is what a template may print."""
    return template.render([_template_message(message) for message in body.messages], now=now)


def chat_tokens(body: ChatBody, tokenizer: Tokenizer, template: ChatTemplate, now: datetime) -> Tokens:
    """The conversation as the tokens that the model reads."""
    text = render_chat(body, template, now)
    # A template that writes the beginning-of-sequence token itself must not get a second one.
    writes_bos = bool(template.bos_token) and text.startswith(template.bos_token)
    return tuple(tokenizer.tokenize(text, add_special=not writes_bos, parse_special=True))


def completion_requests(
    body: CompletionBody, tokenizer: Tokenizer, limits: Limits, new_id: Callable[[], str]
) -> list[Generate]:
    """One Generate per prompt, in order."""
    prompts = [_tokens(prompt, tokenizer, limits, "prompt") for prompt in several(body.prompt, "prompt", MAX_PROMPTS)]
    return generates(body, prompts, limits, new_id)


def _template_message(message: Message) -> dict[str, object]:
    content: dict[str, object] = {"role": message.role, "content": message_text(message)}
    if message.name is not None:
        content["name"] = message.name
    return content


def _tokens(one: str | Tokens, tokenizer: Tokenizer, limits: Limits, param: str) -> Tokens:
    if isinstance(one, str):
        tokens = tuple(tokenizer.tokenize(one, add_special=True, parse_special=True))
    else:
        tokens = one
        check_known(tokens, limits, param)
    check_prompt(tokens, limits, param)
    return tokens


def check_known(tokens: Sequence[int], limits: Limits, param: str) -> None:
    """Raise a `RequestError` unless every token is one of the model's."""
    unknown = next((token for token in tokens if token >= limits.n_vocab), None)
    if unknown is not None:
        raise RequestError(
            f"{param}: {unknown} is not a token id of this model (0 to {limits.n_vocab - 1})", param=param
        )


def check_prompt(tokens: Sequence[int], limits: Limits, param: str) -> None:
    """Raise a `RequestError` unless there is something to go on from and room for it."""
    if not tokens:
        raise RequestError(f"{param} must not be empty", param=param)
    if len(tokens) >= limits.n_ctx:
        raise context_exceeded(len(tokens), limits.n_ctx, param)


def generates(
    body: GenerateBody, prompts: Sequence[Tokens], limits: Limits, new_id: Callable[[], str]
) -> list[Generate]:
    """One Generate per prompt with the sampling the body asks for."""
    n, limit, stop, sampler = choices(body, limits), max_tokens(body), stops(body), sampling(body, limits)
    cache = body.cache_prompt is not False
    return [Generate(new_id(), prompt, sampler, limit, stop, n, cache) for prompt in prompts]
