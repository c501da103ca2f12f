"""Sampling stages that change the logits of single tokens: biases and the penalties for repetition.

They touch the few tokens that they know of, in a row of logits or among candidates, and need neither the vocabulary nor
llama.cpp, whose own versions look every candidate up. Must never cut a candidate.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from backends.llama_cpp.engine.stages import window
from backends.llama_cpp.engine.types import Sampling

Logits = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int32]
Saved = list[tuple[Tokens, Logits]]
"""What to put back: tokens and their logits, in the order in which they were changed."""


class Edit(Protocol):
    """One stage of one sequence."""

    def tokens(self) -> Tokens:
        """The tokens that it changes next, each once."""
        ...

    def change(self, logits: Logits) -> Logits:
        """The new logits of `tokens()` from theirs."""
        ...

    def prime(self, prompt: Sequence[int]) -> None:
        """The tokens that the sequence begins with. Called once, before any are accepted."""
        ...

    def accept(self, token: int) -> None:
        """A token was emitted."""
        ...


def apply(edits: Sequence[Edit], row: Logits) -> Saved:
    """Change a row of logits in place. `undo` puts it back."""
    saved: Saved = []
    for edit in edits:
        tokens = edit.tokens()
        if len(tokens):
            before = row[tokens]
            saved.append((tokens, before))
            row[tokens] = edit.change(before)
    return saved


def undo(saved: Saved, row: Logits) -> None:
    """Take back what `apply` did to a row."""
    for tokens, before in reversed(saved):
        row[tokens] = before


def apply_among(edit: Edit, ids: Tokens, logits: Logits) -> None:
    """Change the logits of candidates in place; `ids` says which tokens they are of."""
    tokens = edit.tokens()
    there = np.flatnonzero(np.isin(ids, tokens))
    if not len(there):
        return
    order = np.argsort(tokens)
    places = order[np.searchsorted(tokens, ids[there], sorter=order)]
    before = np.zeros(len(tokens), np.float32)
    before[places] = logits[there]
    logits[there] = edit.change(before)[places]


class Bias:
    """Adds a number to the logits of some tokens; minus infinity bans one."""

    __slots__ = ("_tokens", "_values")

    def __init__(self, bias: Mapping[int, float]) -> None:
        self._tokens = np.fromiter(bias.keys(), dtype=np.int32, count=len(bias))
        self._values = np.fromiter(bias.values(), dtype=np.float32, count=len(bias))

    def tokens(self) -> Tokens:
        return self._tokens

    def change(self, logits: Logits) -> Logits:
        return logits + self._values

    def prime(self, prompt: Sequence[int]) -> None:
        pass

    def accept(self, token: int) -> None:
        pass


class Penalties:
    """Repeat, frequency and presence penalty for the last tokens (llama-sampler.cpp `llama_sampler_penalties`)."""

    __slots__ = ("_counts", "_frequency", "_last", "_presence", "_repeat", "_tokens", "_uses")

    def __init__(self, sampling: Sampling, n_ctx: int) -> None:
        self._repeat = np.float32(sampling.repeat_penalty)
        self._frequency = np.float32(sampling.frequency_penalty)
        self._presence = np.float32(sampling.presence_penalty)
        self._last: deque[int] = deque(maxlen=window(sampling.repeat_last_n, n_ctx))
        self._counts: Counter[int] = Counter()
        self._tokens: Tokens | None = None
        self._uses = np.zeros(0, np.float32)

    def tokens(self) -> Tokens:
        if self._tokens is None:
            count = len(self._counts)
            self._tokens = np.fromiter(self._counts.keys(), dtype=np.int32, count=count)
            self._uses = np.fromiter(self._counts.values(), dtype=np.float32, count=count)
        return self._tokens

    def change(self, logits: Logits) -> Logits:
        # Dividing alone would make tokens with negative logits likelier.
        scaled: Logits = np.where(logits <= 0, logits * self._repeat, logits / self._repeat)
        changed: Logits = scaled - (self._uses * self._frequency + self._presence)
        return changed

    def prime(self, prompt: Sequence[int]) -> None:
        assert self._last.maxlen is not None
        self._last.extend(prompt[-self._last.maxlen :])
        self._counts.update(self._last)

    def accept(self, token: int) -> None:
        if len(self._last) == self._last.maxlen:
            oldest = self._last[0]
            self._counts[oldest] -= 1
            if not self._counts[oldest]:
                del self._counts[oldest]
        self._last.append(token)
        self._counts[token] += 1
        self._tokens = None
