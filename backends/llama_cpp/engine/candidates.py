"""The tokens a sampler chooses among, in llama.cpp's form and in memory of our own.

Owns one array per thread that samples, not one per request: a vocabulary of 150,000 takes 1.8 MB. Must never be kept
across two picks: the next one writes over it.
"""

from __future__ import annotations

import ctypes
import math
import threading
from typing import Any

import llama_cpp.llama_cpp as llama
import numpy as np
import numpy.typing as npt

from backends.llama_cpp.engine.edits import Logits, Tokens
from backends.llama_cpp.engine.stages import SamplingError

_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
assert _TOKEN_DATA.itemsize == ctypes.sizeof(llama.llama_token_data)

_GROUPS_PER_TOKEN = 8
_MIN_GROUPS = 256
_ROUNDING = 1e-3
"""How much lower than `min_p`'s own threshold candidates are kept, in logits: llama.cpp rounds in its own way."""


class Candidates(threading.local):
    """A `llama_token_data_array` of a whole vocabulary. Every thread that uses it has an array of its own."""

    def __init__(self, n_vocab: int) -> None:
        self.n_vocab = n_vocab
        data = np.zeros(n_vocab, _TOKEN_DATA)
        self._ids, self._logits = data["id"], data["logit"]
        self._vocabulary = np.arange(n_vocab, dtype=np.int32)
        self._first: Any = data.ctypes.data_as(ctypes.POINTER(llama.llama_token_data))
        self.array = llama.llama_token_data_array(self._first, n_vocab, -1, False)
        """What llama.cpp is given. Its stages sort and cut it, and may move its beginning."""
        self.pointer = ctypes.byref(self.array)

    def fill(self, logits: Logits, *, largest_only: int = 0, min_p: float = 0.0) -> None:
        """Take the tokens of a row that are not banned. Raises `SamplingError` if there is none or one is no number.

        Most of the time of a pick goes into moving and searching the whole vocabulary, so a first stage that keeps
        only the `largest_only` largest, or those above `min_p`, gets no more than it needs; both are off at 0.
        """
        best = check_row(logits)
        if largest_only:
            kept = largest(logits, largest_only)
        elif min_p > 0:
            kept = np.flatnonzero(logits >= best + math.log(min_p) - _ROUNDING)
        elif logits.min() == -math.inf:
            kept = np.flatnonzero(logits > -math.inf)
        else:
            kept = None
        count = len(logits) if kept is None else len(kept)
        # `p` is left as it is: every stage that reads it writes it first.
        self._ids[:count] = self._vocabulary if kept is None else kept
        self._logits[:count] = logits if kept is None else logits[kept]
        array = self.array
        array.data, array.size, array.selected, array.sorted = self._first, count, -1, False

    def view(self) -> tuple[Tokens, Logits]:
        """The candidates that are left, ids and logits, to be changed in place."""
        begin: Any = self.array.data
        moved_bytes = ctypes.addressof(begin.contents) - ctypes.addressof(self._first.contents)
        first = moved_bytes // _TOKEN_DATA.itemsize
        end = first + self.array.size
        return self._ids[first:end], self._logits[first:end]

    def selected(self) -> int:
        """The token that the last stage has chosen."""
        array = self.array
        assert 0 <= array.selected < array.size, "a chain without a last stage"
        return int(array.data[array.selected].id)


def check_row(logits: Logits) -> float:
    """The largest logit. Raises `SamplingError` unless it is a number, and with it all others or minus infinity."""
    best = float(logits.max())
    if not math.isfinite(best):
        raise SamplingError(
            "no token may be sampled: all are banned" if best == -math.inf else "the model's logits are not numbers"
        )
    return best


def largest(logits: Logits, count: int) -> npt.NDArray[np.intp]:
    """The places of the `count` largest of a row and perhaps of a few more, in no order; never of minus infinity.

    The row is looked at in groups: as many of them as there are tokens wanted have a maximum that is at least the
    smallest such maximum, so nothing smaller is wanted. Five times as fast as `numpy.argpartition`.
    """
    groups = max(_MIN_GROUPS, _GROUPS_PER_TOKEN * count)
    rows = len(logits) // groups
    if rows < 2:
        floor = -math.inf if count >= len(logits) else float(np.partition(logits, -count)[-count])
    else:
        maxima = logits[: rows * groups].reshape(rows, groups).max(axis=0)
        floor = float(np.partition(maxima, -count)[-count])
    return np.flatnonzero(logits > floor if floor == -math.inf else logits >= floor)


def ranked(logits: Logits, count: int) -> npt.NDArray[np.intp]:
    """The places of the `count` largest of a row, the largest first; fewer if others are minus infinity."""
    places = largest(logits, count)
    return places[np.argsort(-logits[places], kind="stable")[:count]]
