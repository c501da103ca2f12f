"""What a GPU has in hand besides its own part while another part of the model lies in RAM. Pure.

Source: ggml-backend.cpp ggml_backend_sched_backend_id_from_cur (op_offload) and ggml_backend_sched_split_graph: for
batches of 32 tokens and more, what would be computed with a weight in RAM is computed on the first GPU, one weight at a
time being copied there; attention goes along, with a copy of its layer's keys and values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from backends.footprint.blocks import FLOAT_BYTES
from backends.footprint.compute import ComputeBuffers
from backends.footprint.graph import padded
from backends.footprint.layers import Dimensions
from backends.footprint.plan import ContextPlan, reserved_tokens
from backends.footprint.weights import EXPERTS, is_host_tensor, layer_of
from backends.gguf import GgufHeader

LEAST_TOKENS = 32
"""GGML_OP_OFFLOAD_MIN_BATCH, as CUDA, Vulkan, Metal and SYCL have it."""
_EXPERTS = re.compile(EXPERTS)


@dataclass(frozen=True, slots=True)
class Copies:
    """Bytes on the first GPU beside its compute buffer; 0 where RAM's layers are computed in RAM."""

    layers: int
    """While whole layers are in RAM."""
    experts: int
    """While nothing but experts is."""
    kept: int
    """While nothing is but the tensors that the settings keep there."""


def copies(
    header: GgufHeader, dims: Dimensions, plan: ContextPlan, compute: ComputeBuffers, layer_kv_bytes: tuple[int, ...]
) -> Copies:
    """The largest weight of each kind; for layers also one layer's cache, if attention with it needs more room."""
    if reserved_tokens(plan) < LEAST_TOKENS:
        return Copies(0, 0, 0)
    patterns = [re.compile(pattern, re.ASCII) for pattern in plan.host_patterns]
    layers = experts = kept = 0
    for tensor in header.tensors:
        layer = layer_of(tensor.name, dims.n_layer)
        if dims.n_trunk <= layer < dims.n_layer or is_host_tensor(tensor.name):
            continue
        size_bytes = padded(tensor.size_bytes)
        if any(pattern.search(tensor.name) for pattern in patterns):
            kept = max(kept, size_bytes)
        elif layer < dims.n_layer:
            layers = max(layers, size_bytes)
            if _EXPERTS.search(tensor.name):
                experts = max(experts, size_bytes)
    beyond = _attention_beyond(dims, plan, compute, max(layer_kv_bytes))
    return Copies(max(layers, beyond, kept), max(experts, kept), kept)


def _attention_beyond(dims: Dimensions, plan: ContextPlan, compute: ComputeBuffers, kv_bytes: int) -> int:
    """What attention over a copied cache needs beyond the compute buffer: the mask, the copy, queries and results.

    Without flash attention the scores are in the compute buffer, and the copy is beside them.
    """
    if not plan.flash_attn:
        return kv_bytes
    width = max((dims.n_embd, *(layer.n_head * layer.key_length for layer in dims.layers)))
    return compute.inputs + kv_bytes + 2 * FLOAT_BYTES * width * reserved_tokens(plan) - compute.whole
