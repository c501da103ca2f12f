"""Mirostat: draws so that the surprise of the text stays at a target (arXiv:2007.14966, both versions).

llama.cpp's stages learn when they draw, also from tokens that are then turned down, and sort the whole vocabulary every
time. This one learns from what was emitted. Owns its random numbers. Must never look at the vocabulary's texts.
"""

from __future__ import annotations

import math
from random import Random

import numpy as np
import numpy.typing as npt

from backends.llama_cpp.engine.candidates import ranked
from backends.llama_cpp.engine.edits import Logits, Tokens

_LOOKED_AT = 100
"""Most probable tokens from which version 1 estimates how probabilities fall (llama.cpp's m)."""


class Mirostat:
    """The last stage of one sequence."""

    __slots__ = ("_eta", "_mu", "_n_vocab", "_picked", "_random", "_tau", "_version")

    def __init__(self, version: int, *, tau: float, eta: float, seed: int, n_vocab: int) -> None:
        assert version in (1, 2)
        self._version = version
        self._tau, self._eta = tau, eta
        self._mu = 2 * tau
        """The surprise up to which tokens are drawn, in bits."""
        self._random = Random(seed)  # noqa: S311 (not for secrets)
        self._n_vocab = n_vocab
        self._picked: tuple[int, float] | None = None
        """The token that was drawn last and its surprise in bits."""

    def pick(self, ids: Tokens, logits: Logits) -> int:
        """Draw one of the candidates; `ids` says which tokens they are, in any order."""
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        kept = self._kept(probabilities)
        sums = np.cumsum(probabilities[kept], dtype=np.float64)
        at = min(int(np.searchsorted(sums, self._random.random() * sums[-1], side="right")), len(sums) - 1)
        chosen = kept[at]
        token = int(ids[chosen])
        self._picked = token, math.log2(sums[-1] / probabilities[chosen])
        return token

    def accept(self, token: int) -> None:
        """Learn from an emitted token, if it is the one that was drawn."""
        if self._picked is not None and self._picked[0] == token:
            self._mu -= self._eta * (self._picked[1] - self._tau)
        self._picked = None

    def _kept(self, probabilities: Logits) -> npt.NDArray[np.intp]:
        """Which candidates may be drawn, at least one."""
        if self._version == 1:
            likely = probabilities[ranked(probabilities, _LOOKED_AT)]
            return ranked(probabilities, self._how_many(likely, len(probabilities)))
        with np.errstate(over="ignore"):
            kept = np.flatnonzero(probabilities >= np.exp2(-self._mu))
        return kept if len(kept) else np.array([probabilities.argmax()])

    def _how_many(self, likely: Logits, count: int) -> int:
        """Version 1's k of `count` candidates, from the likely ones in falling order (the paper's algorithm 1)."""
        likely = likely[likely > 0].astype(np.float64)
        if len(likely) < 2:
            return 1
        ranks = np.arange(1, len(likely))
        steps = np.log((ranks + 1) / ranks)
        s_hat = steps @ np.log(likely[:-1] / likely[1:]) / (steps @ steps)
        epsilon = s_hat - 1
        with np.errstate(all="ignore"):
            scale = epsilon / (1 - np.power(float(self._n_vocab), -epsilon)) if epsilon else 1 / np.log(self._n_vocab)
            k = np.power(scale * np.exp2(self._mu), 1 / s_hat)
        # No number at all is as good as certainty: the estimate has nothing to go by.
        return count if k >= count else max(1, int(k)) if k > 1 else 1
