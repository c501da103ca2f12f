"""Tiny LoRA adapters with random weights for the models of `gguf_files`, sound and wrong ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from support.gguf_files import Shape

RANK = 4
DEFAULTS: Mapping[str, object] = {
    "general.type": "adapter",
    "adapter.type": "lora",
    "adapter.lora.alpha": 8.0,
}

Pairs = Mapping[str, tuple[int, int]]
"""Rows and columns of each base tensor that is changed."""


def pairs_for(shape: Shape) -> Pairs:
    """Attention's query and the way down of the feed-forward part, in every layer."""
    found = {}
    for layer in range(shape.n_layer):
        found[f"blk.{layer}.attn_q.weight"] = (shape.n_head * shape.head_k, shape.n_embd)
        found[f"blk.{layer}.ffn_down.weight"] = (shape.n_embd, shape.n_ff)
    return found


def write_lora(
    path: Path,
    shape: Shape,
    *,
    pairs: Pairs | None = None,
    metadata: Mapping[str, object | None] | None = None,
    halves: tuple[str, ...] = ("lora_a", "lora_b"),
    architecture: str | None = None,
    seed: int = 1,
) -> Path:
    """Write an adapter. `metadata` replaces entries of `DEFAULTS`, None leaves one out."""
    writer = gguf.GGUFWriter(path, architecture or shape.architecture)
    for key, value in {**DEFAULTS, **(metadata or {})}.items():
        if value is not None:
            _add(writer, key, value)
    rng = np.random.default_rng(seed)
    for name, (rows, columns) in (pairs_for(shape) if pairs is None else pairs).items():
        # llama.cpp looks rows of the token embedding's A up, and so has it the other way round.
        flipped = name == "token_embd.weight"
        sizes = {"lora_a": (columns, RANK) if flipped else (RANK, columns), "lora_b": (rows, RANK)}
        for half in halves:
            writer.add_tensor(f"{name}.{half}", rng.normal(0.0, 0.3, sizes[half]).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    else:
        writer.add_float32(key, value)
