"""What a client reads of the tokens behind a text: OpenAI's two shapes and llama-server's own.

Pure: the engine's entries in, JSON structures out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from backends.llama_cpp.engine.types import Logprob, TokenLogprobs


class ChatToken(msgspec.Struct, frozen=True):
    """A token that might have come. `token` has U+FFFD where the bytes are no whole characters."""

    token: str
    logprob: float
    bytes: Sequence[int]


class ChatTokenLogprobs(ChatToken, frozen=True):
    """A token of a chat's answer."""

    top_logprobs: Sequence[ChatToken]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """Of every token that was generated: reasoning and calls as well as content."""

    content: Sequence[ChatTokenLogprobs]
    refusal: None = None


class TextLogprobs(msgspec.Struct, frozen=True):
    """Of a text completion. Offsets are characters from the beginning of the choice's text."""

    tokens: Sequence[str]
    token_logprobs: Sequence[float]
    top_logprobs: Sequence[dict[str, float]]
    """Each with the token itself, so with one more than were asked for if it is not among the likeliest."""
    text_offset: Sequence[int]


class NativeToken(ChatToken, frozen=True):
    """llama-server's own form names the token's id, too."""

    id: int


class NativeTokenLogprobs(NativeToken, frozen=True):
    top_logprobs: Sequence[NativeToken]


def chat_logprobs(entries: Iterable[TokenLogprobs]) -> ChatLogprobs:
    """The `logprobs` of a chat's choice."""
    return ChatLogprobs(
        [
            ChatTokenLogprobs(
                _replaced(entry.chosen),
                entry.chosen.value,
                list(entry.chosen.text),
                [ChatToken(_replaced(one), one.value, list(one.text)) for one in entry.likely],
            )
            for entry in entries
        ]
    )


def text_logprobs(entries: Iterable[TokenLogprobs]) -> TextLogprobs:
    """The `logprobs` of a completion's choice."""
    kept = list(entries)
    return TextLogprobs(
        [_spelt(entry.chosen) for entry in kept],
        [entry.chosen.value for entry in kept],
        [_by_text((*entry.likely, entry.chosen)) for entry in kept],
        [entry.offset for entry in kept],
    )


def native_logprobs(entries: Iterable[TokenLogprobs]) -> list[NativeTokenLogprobs]:
    """The `completion_probabilities` of llama-server."""
    return [
        NativeTokenLogprobs(
            _replaced(entry.chosen),
            entry.chosen.value,
            list(entry.chosen.text),
            entry.chosen.token,
            [NativeToken(_replaced(one), one.value, list(one.text), one.token) for one in entry.likely],
        )
        for entry in entries
    ]


def _by_text(tokens: Sequence[Logprob]) -> dict[str, float]:
    """Different tokens may be spelt alike; the likelier one is told."""
    found: dict[str, float] = {}
    for token in tokens:
        found.setdefault(_spelt(token), token.value)
    return found


def _replaced(token: Logprob) -> str:
    return token.text.decode("utf-8", errors="replace")


def _spelt(token: Logprob) -> str:
    """A token's text; OpenAI spells out the bytes of one that is no text by itself."""
    try:
        return token.text.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.text)
