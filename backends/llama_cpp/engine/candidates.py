"""The tokens a sampler chain chooses among, in llama.cpp's form and in memory of our own.

Owns one array per thread that samples, not one per request: a vocabulary of 150,000 takes 1.8 MB. Must never be kept
across two picks: the next one writes over it.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import llama_cpp.llama_cpp as llama
import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]

_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
assert _TOKEN_DATA.itemsize == ctypes.sizeof(llama.llama_token_data)


class Candidates(threading.local):
    """A `llama_token_data_array` of a whole vocabulary. Every thread that uses it has an array of its own."""

    def __init__(self, n_vocab: int) -> None:
        data = np.zeros(n_vocab, _TOKEN_DATA)
        self._ids, self._logits = data["id"], data["logit"]
        self._vocabulary = np.arange(n_vocab, dtype=np.int32)
        self._first: Any = data.ctypes.data_as(ctypes.POINTER(llama.llama_token_data))
        self._array = llama.llama_token_data_array(self._first, n_vocab, -1, False)
        self._pointer = ctypes.byref(self._array)

    def choose(self, chain: Any, logits: Logits) -> int:
        """The token that a chain selects from a row of `n_vocab` logits. The row is only read."""
        # The stages before sorted and cut the array; `p` is written before anything reads it.
        self._ids[:] = self._vocabulary
        self._logits[:] = logits
        array = self._array
        array.data, array.size, array.selected, array.sorted = self._first, len(logits), -1, False
        llama.llama_sampler_apply(chain, self._pointer)
        assert 0 <= array.selected < array.size, "a chain without a last stage"
        return int(array.data[array.selected].id)
