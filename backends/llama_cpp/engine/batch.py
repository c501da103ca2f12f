"""What llama_decode is given: tokens, their positions and sequences, and which of them get logits.

Owns the arrays. Must never call llama.cpp.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Protocol

import llama_cpp.llama_cpp as llama
import numpy as np


class AnyBatch(Protocol):
    """A `llama_batch` and what it asks for."""

    @property
    def struct(self) -> Any: ...

    @property
    def outputs(self) -> int:
        """Tokens with a row of logits."""
        ...

    def __len__(self) -> int: ...


class Batch:
    """A `llama_batch` over numpy arrays of our own: filled by slices, freed with this object."""

    def __init__(self, capacity: int) -> None:
        self.token = np.zeros(capacity, np.int32)
        self.pos = np.zeros(capacity, np.int32)
        self.seq = np.zeros(capacity, np.int32)
        self.output = np.zeros(capacity, np.int8)
        self._one = np.ones(capacity, np.int32)
        self._positions = np.arange(capacity, dtype=np.int32)
        step = self.seq.itemsize
        self._seq_pointers = self.seq.ctypes.data + np.arange(capacity, dtype=np.uintp) * np.uintp(step)
        self.struct = llama.llama_batch(
            token=self.token.ctypes.data_as(ctypes.POINTER(llama.llama_token)),
            pos=self.pos.ctypes.data_as(ctypes.POINTER(llama.llama_pos)),
            n_seq_id=self._one.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seq_id=self._seq_pointers.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(llama.llama_seq_id))),
            logits=self.output.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

        self.outputs = 0

    def __len__(self) -> int:
        return int(self.struct.n_tokens)

    def clear(self) -> None:
        self.struct.n_tokens = self.outputs = 0

    def add_single(self, tokens: Sequence[int], positions: Sequence[int], seq_ids: Sequence[int]) -> None:
        """One token each of several sequences, all with an output."""
        start = len(self)
        end = start + len(tokens)
        self.token[start:end] = tokens
        self.pos[start:end] = positions
        self.seq[start:end] = seq_ids
        self.output[start:end] = 1
        self.outputs += end - start
        self.struct.n_tokens = end

    def add_chunk(self, tokens: Sequence[int], position: int, seq_id: int, *, outputs: int) -> None:
        """Consecutive tokens of one sequence; `outputs` of them, from the last, get logits."""
        start = len(self)
        end = start + len(tokens)
        self.token[start:end] = tokens
        np.add(self._positions[: end - start], position, out=self.pos[start:end])
        self.seq[start:end] = seq_id
        self.output[start:end] = 0
        self.output[end - outputs : end] = 1
        self.outputs += outputs
        self.struct.n_tokens = end
