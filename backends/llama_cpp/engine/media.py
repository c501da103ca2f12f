"""Images and sound among a prompt's tokens: which tokens stand for them, where they lie, and their own batches.

A medium is a run of tokens that no text has: negative numbers made from a hash of its content, so that prefixes with it
are found, shared and kept like any others. What is decoded for them are embeddings, in batches apart from those of
tokens. Owns that arithmetic and the arrays of such a batch. For the engine thread, but for making spans.
"""

from __future__ import annotations

import ctypes
import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import llama_cpp.llama_cpp as llama
import numpy as np

from backends.llama_cpp.engine.batch import Batch
from backends.llama_cpp.engine.model import Model
from backends.llama_cpp.engine.types import MediaSpan

_ID_BITS = 62
_FIRST_ID = -2
"""llama.cpp uses -1 for no token."""


def media_tokens(content: bytes, count: int) -> list[int]:
    """The tokens that stand for a medium of this content (and place within it), the same for the same content."""
    first = int.from_bytes(hashlib.sha256(content).digest()[:8]) >> (64 - _ID_BITS)
    return [_FIRST_ID - (first + index) % 2**_ID_BITS for index in range(count)]


class Layout:
    """Where the media of one prompt lie. Indices are tokens; past the last medium everything is text."""

    __slots__ = ("_savings", "_spans", "_starts")

    def __init__(self, spans: Sequence[MediaSpan] = ()) -> None:
        self._spans = spans
        self._starts = [span.start for span in spans]
        self._savings = [0, *accumulate(span.n_tokens - span.n_pos for span in spans)]

    def span_at(self, index: int) -> MediaSpan | None:
        """The medium that the token at `index` belongs to."""
        if not self._starts:
            return None
        found = bisect_right(self._starts, index) - 1
        return self._spans[found] if found >= 0 and index < self._spans[found].end else None

    def position(self, index: int) -> int:
        """Position of the text token at `index`, or that of the first token of the medium that begins there."""
        if not self._starts:
            return index
        found = bisect_right(self._starts, index)
        inside = found > 0 and index < self._spans[found - 1].end
        return index - self._savings[found - 1 if inside else found]

    def whole(self, length: int) -> int:
        """The longest beginning of at most `length` tokens that ends in no medium."""
        span = self.span_at(length)
        return length if span is None or span.start == length else span.start

    def run(self, index: int, end: int) -> int:
        """Tokens from `index` on, up to `end`, that are text, or of one medium: what one batch may hold."""
        if not self._starts:
            return end - index
        span = self.span_at(index)
        if span is not None:
            return span.end - index
        found = bisect_right(self._starts, index)
        return (self._starts[found] if found < len(self._starts) else end) - index


TEXT_ONLY = Layout()


def check_media(prompt: Sequence[int], spans: Sequence[MediaSpan], *, n_embd: int, n_ubatch: int) -> None:
    """Assert what the makers of prompts promise. Raises `ValueError` for a prompt that ends in a medium."""
    if prompt[-1] < 0:
        raise ValueError("the prompt ends in a medium; there is no token to go on from")
    assert sum(token < 0 for token in prompt) == sum(span.n_tokens for span in spans)
    end = 0
    for span in spans:
        assert span.start >= end
        assert all(token < 0 for token in prompt[span.start : span.end])
        assert span.embeddings.shape[1] == n_embd
        assert span.positions.shape[1] == span.n_tokens
        # llama.cpp aborts the process for one that does not fit a micro-batch.
        assert span.causal or span.n_tokens <= n_ubatch
        end = span.end


class EmbeddingBatch:
    """A `llama_batch` of rows of a medium, over their embeddings as they lie. Asks for no logits."""

    outputs = 0

    def __init__(self, span: MediaSpan, first: int, count: int, seq_id: int) -> None:
        """`count` of the span's tokens, from its token number `first` on."""
        assert 0 <= first < first + count <= span.n_tokens
        assert span.causal or (first, count) == (0, span.n_tokens)
        self.causal = span.causal
        self._embeddings = np.ascontiguousarray(span.embeddings[first : first + count])
        self._positions = np.ascontiguousarray(span.positions[:, first : first + count])
        self._one = np.ones(count, np.int32)
        self._seq = np.full(count, seq_id, np.int32)
        step = self._seq.itemsize
        self._pointers = self._seq.ctypes.data + np.arange(count, dtype=np.uintp) * np.uintp(step)
        self._output = np.zeros(count, np.int8)
        self.struct = llama.llama_batch(
            n_tokens=count,
            embd=self._embeddings.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
            pos=self._positions.ctypes.data_as(ctypes.POINTER(llama.llama_pos)),
            n_seq_id=self._one.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seq_id=self._pointers.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(llama.llama_seq_id))),
            logits=self._output.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def __len__(self) -> int:
        return int(self.struct.n_tokens)


def decode(model: Model, batch: Batch | EmbeddingBatch) -> int:
    """Run a batch. The code is llama.cpp's, as of `Model.decode`."""
    if isinstance(batch, Batch) or batch.causal:
        return model.decode(batch)
    llama.llama_set_causal_attn(model.ctx, False)
    try:
        return model.decode(batch)
    finally:
        llama.llama_set_causal_attn(model.ctx, True)
