"""llama-server's endpoints about tokens: text to tokens and back.

Owns their bodies and shapes. Pure; blocking where long texts are tokenized, so the server calls it off the event loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from backends.llama_cpp.prompts import check_known
from backends.llama_cpp.requests import Limits, TokenId, Tokens, decode
from backends.llama_cpp.sampling import Tokenizer


class Vocabulary(Tokenizer, Protocol):
    """What is needed of the model here. Safe to call from any thread."""

    def token_bytes(self, token: int, /) -> bytes: ...


class TokenizeBody(msgspec.Struct, frozen=True, kw_only=True):
    """POST /tokenize. `content` is a text, or texts and token ids in any mixture."""

    content: str | tuple[str | TokenId, ...]
    add_special: bool | None = None
    """Begin and end as the vocabulary wants prompts to; llama-server's default is not to."""
    parse_special: bool | None = None
    """Read special tokens that are written out in the text; on unless false."""
    with_pieces: bool | None = None


class DetokenizeBody(msgspec.Struct, frozen=True, kw_only=True):
    """POST /detokenize."""

    tokens: Tokens


class Piece(msgspec.Struct, frozen=True):
    """A token and its text, or its bytes where they are no whole characters."""

    id: int
    piece: str | list[int]


class Tokenized(msgspec.Struct, frozen=True):
    tokens: Sequence[int] | Sequence[Piece]


class Detokenized(msgspec.Struct, frozen=True):
    content: str


class Prompt(msgspec.Struct, frozen=True):
    """The answer to /apply-template."""

    prompt: str


class InputTokens(msgspec.Struct, frozen=True):
    """The answer to /v1/chat/completions/input_tokens."""

    input_tokens: int
    object: str = "response.input_tokens"


_tokenize_decoder = msgspec.json.Decoder(TokenizeBody)
_detokenize_decoder = msgspec.json.Decoder(DetokenizeBody)


def tokenize(data: bytes, vocabulary: Vocabulary, limits: Limits) -> bytes:
    """The answer to a /tokenize body. Raises `RequestError` naming the field."""
    body = decode(_tokenize_decoder, data, {})
    tokens = mixed_tokens(
        (body.content,) if isinstance(body.content, str) else body.content,
        vocabulary,
        limits,
        "content",
        add_special=body.add_special is True,
        parse_special=body.parse_special is not False,
    )
    if body.with_pieces:
        return msgspec.json.encode(Tokenized([Piece(token, _shown(vocabulary.token_bytes(token))) for token in tokens]))
    return msgspec.json.encode(Tokenized(tokens))


def mixed_tokens(
    parts: Sequence[str | int],
    tokenizer: Tokenizer,
    limits: Limits,
    param: str,
    *,
    add_special: bool,
    parse_special: bool,
) -> list[int]:
    """Texts and token ids as one sequence; only a text that comes first gets a beginning (tokenize_mixed)."""
    tokens: list[int] = []
    for index, part in enumerate(parts):
        if isinstance(part, str):
            first = add_special and index == 0
            tokens += tokenizer.tokenize(part, add_special=first, parse_special=parse_special)
        else:
            check_known((part,), limits, f"{param}[{index}]")
            tokens.append(part)
    return tokens


def _shown(piece: bytes) -> str | list[int]:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)


def detokenize(data: bytes, vocabulary: Vocabulary, limits: Limits) -> bytes:
    """The answer to a /detokenize body, special tokens written out. Raises `RequestError` naming the field."""
    body = decode(_detokenize_decoder, data, {})
    check_known(body.tokens, limits, "tokens")
    text = b"".join(map(vocabulary.token_bytes, body.tokens)).decode("utf-8", errors="replace")
    return msgspec.json.encode(Detokenized(text))
