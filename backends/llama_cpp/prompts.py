"""From a checked body to the engine's requests: render, tokenize, measure against the context.

Owns the limits that need the model's vocabulary. Blocking (a long text takes milliseconds to tokenize), so the
server calls it off the event loop. Must never keep anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

import msgspec

from backends.llama_cpp.chat.body import ChatBody
from backends.llama_cpp.chat.conversation import Chat
from backends.llama_cpp.chat.reader import Reading
from backends.llama_cpp.engine.grammars import GrammarError
from backends.llama_cpp.engine.types import Constraint, Generate
from backends.llama_cpp.errors import RequestError, context_exceeded
from backends.llama_cpp.media.parts import Abilities, check_media, marked
from backends.llama_cpp.requests import (
    MAX_PROMPTS,
    CompletionBody,
    GenerateBody,
    Limits,
    Tokens,
    choices,
    max_tokens,
    several,
    stops,
)
from backends.llama_cpp.sampling import Tokenizer, sampling
from backends.llama_cpp.structured.constraints import Asked, chat_constraint, completion_constraint


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A conversation as the engine gets it, and how its answers are read."""

    generates: list[Generate]
    reading: Reading


class Grammars(Protocol):
    """What compiles grammars for the model. Safe to call from any thread; blocks."""

    def check(self, grammar: str, said: str = "") -> None: ...


def chat_request(
    body: ChatBody,
    tokenizer: Tokenizer,
    grammars: Grammars,
    chat: Chat,
    limits: Limits,
    new_id: Callable[[], str],
    now: datetime,
) -> ChatRequest:
    """One Generate for the conversation. `now` is what a template may print."""
    rendered = chat.render(body, now)
    prompt = _chat_tokens(rendered.prompt, tokenizer, chat)
    check_prompt(prompt, limits, "messages")
    constraint = compiled(chat_constraint(body, rendered, tokenizer), grammars)
    (generate,) = generates(body, [prompt], tokenizer, limits, new_id, constraint)
    visible = visible_tokens(rendered.reading.markers, tokenizer)
    return ChatRequest([replace(generate, visible_tokens=visible)], rendered.reading)


def render_chat(body: ChatBody, chat: Chat, able: Abilities, now: datetime) -> str:
    """The conversation as the text that the model reads. `now` is what a template may print."""
    check_media(body.messages, able)
    return chat.render(msgspec.structs.replace(body, messages=marked(body.messages, None)), now).prompt


def count_chat_tokens(body: ChatBody, tokenizer: Tokenizer, chat: Chat, now: datetime) -> int:
    """How many tokens a conversation without media is to the model."""
    return len(_chat_tokens(chat.render(body, now).prompt, tokenizer, chat))


def _chat_tokens(text: str, tokenizer: Tokenizer, chat: Chat) -> Tokens:
    return tuple(tokenizer.tokenize(text, add_special=wants_bos(text, chat), parse_special=True))


def wants_bos(text: str, chat: Chat) -> bool:
    """A template that writes the beginning-of-sequence token itself must not get a second one."""
    bos_token = chat.template.bos_token
    return not (bos_token and text.startswith(bos_token))


def visible_tokens(markers: Iterable[str], tokenizer: Tokenizer) -> frozenset[int]:
    """The markers that are single tokens: a control token's text is needed to read an answer."""
    found = (tokenizer.tokenize(marker, add_special=False, parse_special=True) for marker in markers)
    return frozenset(tokens[0] for tokens in found if len(tokens) == 1)


def compiled(asked: Asked | None, grammars: Grammars) -> Constraint | None:
    """A constraint that the engine can follow. Raises `RequestError` for one that does not compile."""
    if asked is None:
        return None
    try:
        grammars.check(asked.constraint.grammar, asked.constraint.said)
    except GrammarError as error:
        if asked.optional:
            return None
        raise RequestError(f"{asked.param}: {error}", param=asked.param) from None
    return asked.constraint


def completion_requests(
    body: CompletionBody, tokenizer: Tokenizer, grammars: Grammars, limits: Limits, new_id: Callable[[], str]
) -> list[Generate]:
    """One Generate per prompt, in order."""
    prompts = [_tokens(prompt, tokenizer, limits, "prompt") for prompt in several(body.prompt, "prompt", MAX_PROMPTS)]
    constraint = compiled(completion_constraint(body, tokenizer), grammars)
    return generates(body, prompts, tokenizer, limits, new_id, constraint)


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
    body: GenerateBody,
    prompts: Sequence[Tokens],
    tokenizer: Tokenizer,
    limits: Limits,
    new_id: Callable[[], str],
    constraint: Constraint | None = None,
) -> list[Generate]:
    """One Generate per prompt with the sampling the body asks for."""
    n, limit, stop = choices(body, limits), max_tokens(body), stops(body)
    sampler = sampling(body, limits.n_vocab, tokenizer)
    cache, logprobs = body.cache_prompt is not False, body.alternatives()
    return [
        Generate(new_id(), prompt, sampler, limit, stop, n, cache, constraint=constraint, logprobs=logprobs)
        for prompt in prompts
    ]
