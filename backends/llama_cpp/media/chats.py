"""Chats with media on their way to the engine: rendered and checked first, decoded and encoded in their turn.

Owns the two steps and what lies between them. Blocking, so the server calls them off the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

import msgspec

from backends.llama_cpp.chat.body import ChatBody
from backends.llama_cpp.chat.conversation import Chat, Rendered
from backends.llama_cpp.engine.types import Generate, MediaSpan
from backends.llama_cpp.media.parts import Abilities, Medium, assembled, marked, take_media
from backends.llama_cpp.prompts import ChatRequest, Grammars, compiled, generates, visible_tokens, wants_bos
from backends.llama_cpp.requests import Limits, Tokens
from backends.llama_cpp.sampling import Tokenizer
from backends.llama_cpp.structured.constraints import chat_constraint

Part = str | Medium


class Prompt(Protocol):
    """What the engine gets: tokens, and the media among them."""

    @property
    def tokens(self) -> Tokens: ...

    @property
    def spans(self) -> tuple[MediaSpan, ...]: ...


class MediaReader(Protocol):
    """What makes such a prompt. `count` is for any thread, `read` for one at a time."""

    @property
    def able(self) -> Abilities: ...

    @property
    def steps(self) -> int: ...

    def count(self, parts: Sequence[Part], /, *, add_special: bool) -> int: ...

    def read(self, parts: Sequence[Part], /, *, add_special: bool, stop: Callable[[], bool]) -> Prompt: ...


@dataclass(frozen=True, slots=True)
class UnreadChat:
    """A conversation as texts and media in their order, before any was decoded."""

    parts: list[Part]
    add_special: bool
    """Whether the vocabulary's beginning of sequence is to be put in front."""
    rendered: Rendered


def unread_chat(body: ChatBody, chat: Chat, able: Abilities, now: datetime, secret: str) -> UnreadChat:
    """Render a conversation and check its media. `secret` keeps clients' texts from passing for media.

    Raises `RequestError` and `ChatTemplateError`.
    """
    media = take_media(body.messages, able)
    rendered = chat.render(msgspec.structs.replace(body, messages=marked(body.messages, secret)), now)
    parts = assembled(rendered.prompt, media, secret)
    return UnreadChat(parts, wants_bos(rendered.prompt, chat), rendered)


def unread_request(
    body: ChatBody,
    chat: Chat,
    able: Abilities,
    tokenizer: Tokenizer,
    grammars: Grammars,
    limits: Limits,
    new_id: Callable[[], str],
    now: datetime,
    secret: str,
) -> tuple[UnreadChat, Generate]:
    """Such a conversation and its Generate, with all its fields checked and still without a prompt."""
    unread = unread_chat(body, chat, able, now, secret)
    constraint = compiled(chat_constraint(body, unread.rendered, tokenizer), grammars)
    (generate,) = generates(body, [()], tokenizer, limits, new_id, constraint)
    return unread, replace(generate, visible_tokens=visible_tokens(unread.rendered.reading.markers, tokenizer))


def read_chat(unread: UnreadChat, generate: Generate, reader: MediaReader, stop: Callable[[], bool]) -> ChatRequest:
    """The same with its prompt. `stop` says that nobody waits for it any more."""
    prompt = reader.read(unread.parts, add_special=unread.add_special, stop=stop)
    return ChatRequest([replace(generate, prompt=prompt.tokens, media=prompt.spans)], unread.rendered.reading)
