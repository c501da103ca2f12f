"""What a context remembers, in bytes per layer: keys and values, and the states of recurrent layers. Pure.

Sources: llama.cpp's src/llama-kv-cache.cpp and llama-kv-cache-iswa.cpp, constructors (MLA, windows, padding of V);
llama-kv-cache-dsa.cpp (indexer keys); llama-memory-recurrent.cpp, constructor.
"""

from __future__ import annotations

from backends.footprint.layers import Dimensions, Layer
from backends.footprint.plan import ContextPlan
from backends.gguf_format import TENSOR_TYPES_BY_NAME

STATE_ELEMENT_BYTES = 4
"""Recurrent states are F32 (llama-model.cpp create_memory)."""


def kv_layers(dims: Dimensions, plan: ContextPlan) -> tuple[int, ...]:
    """KV cache and recurrent state bytes per block, and 0 for the output layer."""
    if not plan.has_cache:
        return (0,) * (dims.n_layer + 1)
    per_block = []
    for layer in dims.layers:
        size = attention_cache(dims, layer, plan) if layer.owns_cache else 0
        if layer.indexed:
            size += _indexer_cache(dims, layer, plan)
        if layer.recurrent:
            size += recurrent_state(dims, plan)
        per_block.append(size)
    return (*per_block, 0)


def attention_cache(dims: Dimensions, layer: Layer, plan: ContextPlan) -> int:
    """Keys and values of one layer. Rows are stored in whole blocks of the cache type.

    Without flash attention V is transposed and every layer's as wide as the widest (n_embd_v_gqa_max).
    """
    cells = plan.window_cells(dims.window) if layer.windowed else plan.cells
    row = _row(plan.type_k, layer.key_width)
    if not dims.latent:
        row += _row(plan.type_v, layer.value_width if plan.flash_attn else dims.widest_value)
    return plan.streams * cells * row


def _indexer_cache(dims: Dimensions, layer: Layer, plan: ContextPlan) -> int:
    """One key of one head; and values of one, where keys and values are not one latent."""
    row = _row(plan.type_k, dims.indexer_length)
    if not dims.latent:
        row += _row(plan.type_v, layer.value_length)
    return plan.streams * plan.cells * row


def recurrent_state(dims: Dimensions, plan: ContextPlan) -> int:
    """Both states of one layer, for every sequence."""
    return STATE_ELEMENT_BYTES * (dims.conv_state + dims.recurrent_state) * plan.n_seq_max


def _row(kind: str, elements: int) -> int:
    return TENSOR_TYPES_BY_NAME[kind].row_bytes(elements)
