"""llama.cpp's own samplers on made-up logits: what ours are held against."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp.llama_cpp as llama
import numpy as np
import numpy.typing as npt


class LlamaChain:
    """A chain of llama.cpp's samplers, applied to a whole row. It frees itself."""

    def __init__(self, *samplers: Any) -> None:
        self._chain: Any = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        for sampler in samplers:
            llama.llama_sampler_chain_add(self._chain, sampler)

    def __del__(self) -> None:
        llama.llama_sampler_free(self._chain)

    def accept(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            llama.llama_sampler_accept(self._chain, token)

    def pick(self, row: npt.NDArray[np.float32]) -> int:
        array = self._apply(row)
        return int(array.data[array.selected].id)

    def logits(self, row: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The row after the chain; minus infinity for what it cut."""
        array = self._apply(row)
        after = np.full_like(row, -np.inf)
        left = np.ctypeslib.as_array(ctypes.cast(array.data, ctypes.POINTER(ctypes.c_int32)), (array.size, 3))
        after[left[:, 0]] = left[:, 1].copy().view(np.float32)
        return after

    def _apply(self, row: npt.NDArray[np.float32]) -> Any:
        self._data = np.zeros((len(row), 3), np.float32)
        self._data[:, 0] = np.arange(len(row), dtype=np.int32).view(np.float32)
        self._data[:, 1] = row
        pointer = self._data.ctypes.data_as(ctypes.POINTER(llama.llama_token_data))
        array = llama.llama_token_data_array(pointer, len(row), -1, False)
        llama.llama_sampler_apply(self._chain, ctypes.byref(array))
        return array


def dry(
    vocab: Any, *, multiplier: float, base: float, allowed_length: int, last_n: int, breakers: Sequence[bytes]
) -> Any:
    array = (ctypes.c_char_p * len(breakers))(*breakers)
    return llama.llama_sampler_init_dry(vocab, multiplier, base, allowed_length, last_n, array, len(breakers))
