"""DRY: the longer a repetition has become, the more the token that would carry it on is made to cost.

llama.cpp's own stage reads the whole vocabulary once per breaker and request: 50 ms for its four default ones and
250 ms for one of 21 characters, with the engine standing still. Here breakers are looked for in the text as it grows.
By p-e-w, https://github.com/oobabooga/text-generation-webui/pull/5677; figures as in llama-sampler.cpp
`llama_sampler_dry_apply`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from backends.llama_cpp.engine.edits import Logits, Tokens
from backends.llama_cpp.engine.stages import breakers_in_bytes, window
from backends.llama_cpp.engine.types import Sampling

_MAX_PENALTY_LOG = 88.7228391
"""The logarithm of the largest float: exponents end where the penalty would pass it."""
MAX_PENALTY = 1e6
"""More makes a token no less likely, and what is computed from the logits later no number."""
_MAX_PRIMED = 1000
"""How long a repetition at the end of a prompt is measured, which takes a step per token."""
_NONE = np.zeros(0, np.int32)


class Dry:
    """The edit of one sequence. `piece` gives a token's bytes, special tokens written out."""

    __slots__ = (
        "_allowed",
        "_base",
        "_breakers",
        "_capacity",
        "_count",
        "_ends",
        "_lengths",
        "_longest_breaker",
        "_max_exponent",
        "_multiplier",
        "_penalties",
        "_piece",
        "_since_break",
        "_tail",
        "_tokens",
        "_window",
    )

    def __init__(self, sampling: Sampling, piece: Callable[[int], bytes], n_ctx: int) -> None:
        self._piece = piece
        self._multiplier, self._base = sampling.dry_multiplier, sampling.dry_base
        self._allowed = sampling.dry_allowed_length
        self._window = window(sampling.dry_penalty_last_n, n_ctx)
        self._breakers = breakers_in_bytes(sampling.dry_sequence_breakers)
        self._longest_breaker = max(map(len, self._breakers), default=0)
        grows = self._base > 1.000001
        self._max_exponent = int(_MAX_PENALTY_LOG / math.log(self._base)) if grows else 0
        # Twice the window, so that the front half is thrown away only once in a window's tokens.
        self._capacity = 2 * self._window
        self._tokens = np.zeros(self._capacity, np.int32)
        self._lengths = np.zeros(self._capacity, np.int32)
        """How many tokens up to each place are the same as the last so many of all."""
        self._ends = _NONE
        """The places where that is not 0, the last one left out."""
        self._count = 0
        self._since_break = 0
        """Tokens behind the one in which a breaker last ended."""
        self._tail = b""
        """The end of the text, one byte shorter than a breaker may be."""
        self._penalties = np.zeros(0, np.float32)

    def tokens(self) -> Tokens:
        """The tokens that would carry on a repetition of at least the allowed length."""
        longest = self._repetitions()
        costly = [token for token in longest if not any(breaker in self._piece(token) for breaker in self._breakers)]
        self._penalties = np.array([self._penalty(longest[token]) for token in costly], np.float32)
        return np.array(costly, np.int32)

    def change(self, logits: Logits) -> Logits:
        return logits - self._penalties

    def prime(self, prompt: Sequence[int]) -> None:
        tokens = prompt[-self._window :]
        if not tokens:
            return
        self._count = len(tokens)
        self._tokens[: self._count] = tokens
        self._find_last_break(tokens)
        last = self._count - 1
        same = self._ends = np.flatnonzero(self._tokens[:last] == self._tokens[last]).astype(np.int32)
        length = 0
        while len(same) and length < _MAX_PRIMED:
            self._lengths[same] += 1
            length += 1
            same = same[same >= length]
            same = same[self._tokens[same - length] == self._tokens[last - length]]

    def accept(self, token: int) -> None:
        self._note_break(token)
        if self._count == self._capacity:
            self._forget_the_front()
        start = max(0, self._count - self._window)
        ends = np.flatnonzero(self._tokens[start : self._count] == token).astype(np.int32) + start
        lengths = self._lengths[ends - 1] + 1
        if len(ends) and ends[0] == 0:
            lengths[0] = 1
        self._lengths[self._ends] = 0
        self._lengths[ends] = lengths
        self._ends = ends
        self._tokens[self._count] = token
        self._count += 1

    def _forget_the_front(self) -> None:
        shift = self._count - self._window
        for array in (self._tokens, self._lengths):
            array[: self._window] = array[shift : self._count]
            array[self._window :] = 0
        self._ends = self._ends[self._ends >= shift] - shift
        self._count = self._window

    def _note_break(self, token: int) -> None:
        if not self._breakers:
            self._since_break += 1
            return
        before, piece = len(self._tail), self._piece(token)
        text = self._tail + piece
        broken = any(text.find(one, max(0, before - len(one) + 1)) >= 0 for one in self._breakers)
        self._since_break = 0 if broken else self._since_break + 1
        self._tail = text[max(0, len(text) - self._longest_breaker + 1) :]

    def _find_last_break(self, tokens: Sequence[int]) -> None:
        pieces = [self._piece(token) for token in tokens] if self._breakers else []
        text = b"".join(pieces)
        end = max((found + len(one) for one in self._breakers if (found := text.rfind(one)) >= 0), default=0)
        ends = np.cumsum([len(piece) for piece in pieces])
        self._since_break = len(tokens) - 1 - int(np.searchsorted(ends, end)) if end else len(tokens)
        self._tail = text[max(0, len(text) - self._longest_breaker + 1) :]

    def _repetitions(self) -> dict[int, int]:
        """By the token that would carry it on: how long the longest repetition has become."""
        start = max(0, self._count - self._window)
        seen = self._count - start
        limit = min(seen, self._since_break)
        if seen <= self._allowed or limit < self._allowed:
            return {}
        longest: dict[int, int] = {}
        if self._allowed == 0:
            longest = dict.fromkeys(self._tokens[start + 1 : self._count].tolist(), 0)
        inside = self._ends[self._ends >= start]
        lengths = np.minimum(np.minimum(self._lengths[inside], limit), inside - start + 1)
        enough = lengths >= self._allowed
        followers = self._tokens[inside[enough] + 1]
        for token, length in zip(followers.tolist(), lengths[enough].tolist(), strict=True):
            longest[token] = max(longest.get(token, 0), length)
        return longest

    def _penalty(self, length: int) -> float:
        exponent = min(length - self._allowed, self._max_exponent)
        return min(MAX_PENALTY, self._multiplier * math.pow(self._base, exponent))
