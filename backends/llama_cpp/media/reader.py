"""From a rendered chat with media to the tokens and spans that the engine decodes.

Owns the order of the work (sizes first, then the context's limit, pixels and embeddings last, one medium at a time) and
the embeddings kept for the next turn of a conversation. Blocking, for one thread at a time; must never touch the
model's context.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from backends.llama_cpp.engine.media import media_tokens
from backends.llama_cpp.engine.mtmd import Bitmap, Chunk, EncodeError, MediaChunk, Projector, StoppedError, TextChunk
from backends.llama_cpp.engine.types import MediaSpan
from backends.llama_cpp.errors import RequestError, context_exceeded, engine_failed
from backends.llama_cpp.media.parts import Abilities, Medium
from backends.llama_cpp.requests import Limits, Tokens
from backends.mmproj import KEPT_BYTES

__all__ = ["MediaReader", "Prompt", "StoppedError"]

Embeddings = npt.NDArray[np.float32]
Part = str | Medium


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the engine gets."""

    tokens: Tokens
    spans: tuple[MediaSpan, ...]


@dataclass(frozen=True, slots=True)
class _Placed:
    """One medium's chunk in the prompt."""

    number: int
    """Of the medium, in the prompt."""
    key: bytes
    start: int
    """Its first token in the prompt."""
    chunk: MediaChunk

    @property
    def n_pos(self) -> int:
        return self.chunk.n_pos

    @property
    def causal(self) -> bool:
        return self.chunk.causal


class Tokenizer(Protocol):
    """What is needed of the model here. Safe to call from any thread."""

    def text_parts(self, text: str, /) -> list[str]: ...


class Kept:
    """Embeddings by key, least recently used first, at most `limit_bytes` of them."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held: OrderedDict[bytes, Embeddings] = OrderedDict()
        self.held_bytes = 0

    def get(self, key: bytes) -> Embeddings | None:
        found = self._held.get(key)
        if found is not None:
            self._held.move_to_end(key)
        return found

    def put(self, key: bytes, embeddings: Embeddings) -> None:
        """Keep one that is not there yet, unless it is larger than everything that may be kept."""
        if embeddings.nbytes > self._limit_bytes:
            return
        self._held[key] = embeddings
        self.held_bytes += embeddings.nbytes
        while self.held_bytes > self._limit_bytes:
            self.held_bytes -= self._held.popitem(last=False)[1].nbytes


class MediaReader:
    """Reads prompts with media for one model. `n_whole` is how many tokens one micro-batch takes."""

    def __init__(
        self, projector: Projector, tokenizer: Tokenizer, limits: Limits, *, n_whole: int, kept_bytes: int = KEPT_BYTES
    ) -> None:
        self._projector = projector
        self._tokenizer = tokenizer
        self._limits = limits
        self._n_whole = n_whole
        self._kept = Kept(kept_bytes)
        self.encoded = 0
        """Chunks that had to be encoded."""

    @property
    def steps(self) -> int:
        """Parts of encodings finished, for whoever wants to see progress."""
        return self._projector.steps

    @property
    def able(self) -> Abilities:
        """What the model takes beside text."""
        return Abilities(self._projector.sees, self._projector.hears)

    def count(self, parts: Sequence[Part], *, add_special: bool) -> int:
        """Tokens of a prompt. Raises `RequestError`. Computes no embeddings."""
        with self._layout(parts, add_special) as chunks:
            return sum(_length(chunk) for chunk in chunks)

    def read(self, parts: Sequence[Part], *, add_special: bool, stop: Callable[[], bool]) -> Prompt:
        """A whole prompt. Raises `RequestError`, and `StoppedError` once `stop` says that nobody waits for it."""
        with self._layout(parts, add_special) as chunks:
            placed, tokens = self._place(parts, chunks)
            positions = self._positions(placed)
        found: dict[bytes, Embeddings] = {}
        for one in placed:
            kept = self._kept.get(one.key)
            if kept is not None:
                found[one.key] = kept
        for number, medium in enumerate(part for part in parts if isinstance(part, Medium)):
            keys = [one.key for one in placed if one.number == number]
            if not all(key in found for key in keys):
                self._encode(parts, add_special, medium, number, keys, found, stop)
        spans = (
            MediaSpan(one.start, found[one.key], places, one.n_pos, one.causal)
            for one, places in zip(placed, positions, strict=True)
        )
        return Prompt(tuple(tokens), tuple(spans))

    # -- the layout ----------------------------------------------------------------------------------------

    @contextmanager
    def _layout(self, parts: Sequence[Part], add_special: bool) -> Iterator[list[Chunk]]:
        """The prompt's chunks, from the sizes of its images alone."""
        with self._chunks(parts, add_special, None) as chunks:
            yield chunks

    @contextmanager
    def _chunks(self, parts: Sequence[Part], add_special: bool, shown: Medium | None) -> Iterator[list[Chunk]]:
        """The prompt's chunks, with the pixels of the image `shown`. How many tokens an image has, and where its
        positions lie, may depend on everything before it: so the prompt is always tokenized as a whole."""
        with ExitStack() as stack:
            given: list[str | Bitmap] = []
            media: list[Medium] = []
            for part in parts:
                if isinstance(part, str):
                    given += self._tokenizer.text_parts(part)
                    continue
                media.append(part)
                given.append(stack.enter_context(closing(self._bitmap(part, decode=part is shown))))
            try:
                chunks = stack.enter_context(self._projector.chunks(given, add_special=add_special))
            except EncodeError as error:
                where = media[0].param if len(media) == 1 else "messages"
                raise RequestError(f"{where}: llama.cpp cannot take it: {error}", param=where) from None
            yield chunks

    def _bitmap(self, medium: Medium, *, decode: bool) -> Bitmap:
        if medium.size is not None and not decode:
            return self._projector.sized(medium.size.width, medium.size.height)
        bitmap = self._projector.decoded(medium.data)
        if bitmap is None:
            raise RequestError(f"{medium.param}: is damaged: it cannot be decoded", param=medium.param)
        if medium.size is not None and (bitmap.width, bitmap.height) != (medium.size.width, medium.size.height):
            bitmap.close()
            raise RequestError(f"{medium.param}: is not of the size that its header says", param=medium.param)
        return bitmap

    def _place(self, parts: Sequence[Part], chunks: Sequence[Chunk]) -> tuple[list[_Placed], list[int]]:
        """Each medium's chunks and the prompt's tokens, within what the model takes. Raises `RequestError`."""
        total = sum(_length(chunk) for chunk in chunks)
        if total >= self._limits.n_ctx:
            raise context_exceeded(total, self._limits.n_ctx, "messages")
        media = [part for part in parts if isinstance(part, Medium)]
        placed: list[_Placed] = []
        tokens: list[int] = []
        ordinals = [0] * len(media)
        for chunk in chunks:
            if isinstance(chunk, TextChunk):
                self._check_known(chunk)
                tokens += chunk.tokens
                continue
            medium = media[chunk.medium]
            if not chunk.causal and chunk.n_tokens > self._n_whole:
                raise RequestError(
                    f"{medium.param}: becomes {chunk.n_tokens} tokens, which this model must read at once, but its "
                    f"n_ubatch is {self._n_whole}: raise that, or set image_max_tokens",
                    param=medium.param,
                )
            key = _key(medium, ordinals[chunk.medium], chunk)
            ordinals[chunk.medium] += 1
            placed.append(_Placed(chunk.medium, key, len(tokens), chunk))
            tokens += media_tokens(key, chunk.n_tokens)
        if not chunks or not isinstance(chunks[-1], TextChunk):
            raise RequestError(
                "messages: the model's chat template writes nothing after the last image or sound", param="messages"
            )
        return placed, tokens

    def _check_known(self, chunk: TextChunk) -> None:
        """A projector looks its marks up in the vocabulary, and finds none in that of another model."""
        if not 0 <= min(chunk.tokens) <= max(chunk.tokens) < self._limits.n_vocab:
            raise engine_failed("the projector uses tokens that the model's vocabulary does not have: another mmproj?")

    def _positions(self, placed: Sequence[_Placed]) -> list[npt.NDArray[np.int32]]:
        found, saved = [], 0
        for one in placed:
            found.append(self._projector.positions(one.chunk, one.start - saved))
            saved += one.chunk.n_tokens - one.chunk.n_pos
        return found

    # -- the embeddings ------------------------------------------------------------------------------------

    def _encode(
        self,
        parts: Sequence[Part],
        add_special: bool,
        medium: Medium,
        number: int,
        keys: Sequence[bytes],
        found: dict[bytes, Embeddings],
        stop: Callable[[], bool],
    ) -> None:
        """Add to `found` what is missing of one medium's chunks, whose keys are given in order."""
        with self._chunks(parts, add_special, medium) as chunks:
            own = [chunk for chunk in chunks if isinstance(chunk, MediaChunk) and chunk.medium == number]
            if [_key(medium, ordinal, chunk) for ordinal, chunk in enumerate(own)] != list(keys):
                raise engine_failed("the image has another number of tokens than was foreseen")
            for key, chunk in zip(keys, own, strict=True):
                if key not in found:
                    found[key] = self._encode_chunk(chunk, stop)
                    self._kept.put(key, found[key])

    def _encode_chunk(self, chunk: MediaChunk, stop: Callable[[], bool]) -> Embeddings:
        try:
            embeddings = self._projector.encode(chunk, stop)
        except EncodeError as error:
            raise engine_failed(f"llama.cpp could not encode the image or sound: {error}") from error
        self.encoded += 1
        return embeddings


def _key(medium: Medium, ordinal: int, chunk: MediaChunk) -> bytes:
    """What a chunk's embeddings depend on: the file's content, which part of it this is, and how many tokens."""
    return b"%s:%d:%d" % (medium.digest, ordinal, chunk.n_tokens)


def _length(chunk: Chunk) -> int:
    return len(chunk.tokens) if isinstance(chunk, TextChunk) else chunk.n_tokens
