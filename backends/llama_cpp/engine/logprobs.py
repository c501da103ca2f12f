"""What is told of a choice's tokens beside its text, and when: together with the text that they are the beginning of.

Owns the entries that wait for held back text. Computed only for requests that ask, from the logits as the model gave
them: OpenAI and llama-server tell what the model thought, not what the samplers left of it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import numpy as np

from backends.llama_cpp.engine.candidates import check_row, ranked
from backends.llama_cpp.engine.edits import Logits
from backends.llama_cpp.engine.types import MIN_LOGPROB, Logprob, TokenLogprobs


class Logprobs:
    """The entries of one choice. `piece` gives a token's bytes, special tokens written out."""

    __slots__ = ("_chosen", "_count", "_likely", "_piece", "_total", "_waiting")

    def __init__(self, count: int, piece: Callable[[int], bytes]) -> None:
        self._count = count
        self._piece = piece
        self._total = 0.0
        self._likely: tuple[Logprob, ...] = ()
        self._chosen: deque[tuple[Logprob, tuple[Logprob, ...]]] = deque()
        self._waiting: deque[TokenLogprobs] = deque()

    def observe(self, logits: Logits) -> None:
        """Look at a row before anything is masked in it or picked from it. Raises `SamplingError` for no numbers."""
        best = check_row(logits)
        self._total = best + math.log(float(np.exp(logits - np.float32(best)).sum(dtype=np.float64)))
        places = ranked(logits, self._count) if self._count else ()
        self._likely = tuple(self._logprob(int(token), logits) for token in places)

    def choose(self, token: int, logits: Logits) -> None:
        """This token was picked from the row that was looked at last."""
        self._chosen.append((self._logprob(token, logits), self._likely))

    def say(self, offset: int, *, shown: bool) -> None:
        """The oldest token that was picked is taken into the text, of which there are `offset` characters so far."""
        chosen, likely = self._chosen.popleft()
        if shown:
            self._waiting.append(TokenLogprobs(chosen, likely, offset))

    def release(self, sent: int) -> tuple[TokenLogprobs, ...]:
        """The entries of the tokens that begin within the first `sent` characters, each once."""
        released = []
        while self._waiting and self._waiting[0].offset < sent:
            released.append(self._waiting.popleft())
        return tuple(released)

    def _logprob(self, token: int, logits: Logits) -> Logprob:
        return Logprob(token, self._piece(token), max(MIN_LOGPROB, float(logits[token]) - self._total))
