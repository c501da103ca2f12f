"""Where a model's tensors lie, in bytes: per layer, in RAM whatever is offloaded, and which of them are experts. Pure.

Sources: llama.cpp's src/llama-arch.cpp LLM_TENSOR_INFOS (which tensors belong to the input), llama-model.cpp
load_tensors, llama-model-loader.cpp create_tensor (tied ones, overrides), common/common.h (names of experts).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from backends.footprint import designs
from backends.footprint.graph import padded
from backends.footprint.layers import Dimensions
from backends.footprint.plan import ContextPlan
from backends.gguf import GgufHeader, Tensor

EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
"""Names of tensors that `n_cpu_moe` keeps in RAM, after `blk.N` (common.h LLM_FFN_EXPS_REGEX)."""

_HOST_TENSORS = frozenset((
    "token_embd.weight", "position_embd.weight", "token_types.weight", "per_layer_token_embd.weight",
    "masked_embd_centroids.weight", "masked_embd_ordering",
))  # fmt: skip
"""Those of LLM_TENSOR_LAYER_INPUT, which stay on the CPU."""
_BLOCK = re.compile(r"(?:enc\.|dec\.)?blk\.(\d+)\.")
_EXPERTS = re.compile(EXPERTS)
_FIRST_BLOCK_TENSORS = frozenset((
    "token_embd_norm.weight", "token_embd_norm.bias", "rope_freqs.weight", "rope_factors_long.weight",
    "rope_factors_short.weight", "per_layer_model_proj.weight", "per_layer_proj_norm.weight",
))  # fmt: skip
"""Repeating tensors that are looked up for the first block, or for the input."""

_REPACKED_TYPES = frozenset(("q4_0", "q4_K", "iq4_nl", "mxfp4"))
"""ggml-cpu/repack.cpp ggml_repack_get_optimal_repack_type on a CPU with AVX2 (q2_K needs AVX-512 and is left out)."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes of tensors by where they go. Tuples have one entry per block and a last one for the output layer."""

    layers: tuple[int, ...]
    experts: tuple[int, ...]
    """Of `layers`; empty without experts."""
    host: int
    tied_output: int
    """A further copy of the token embedding that the output layer takes on any device but RAM."""


def weights(header: GgufHeader, dims: Dimensions, plan: ContextPlan) -> Weights:
    """Distribute the tensors. Blocks for speculation are not loaded.

    Without `output.weight` the token embedding serves as the output too. In RAM both are one tensor, unless the CPU
    repacks its type for faster multiplication: then the output layer has a copy wherever it is. Other repacked weights
    count once: their pages in the mapped file are given back under pressure.
    """
    n_layer, n_trunk = dims.n_layer, dims.n_trunk
    layers, experts, host = [0] * (n_layer + 1), [0] * (n_layer + 1), 0
    kept = [re.compile(pattern, re.ASCII) for pattern in plan.host_patterns]
    for tensor in header.tensors:
        layer = layer_of(tensor.name, n_layer)
        if n_trunk <= layer < n_layer:
            continue
        size_bytes = padded(tensor.size_bytes)
        if is_host_tensor(tensor.name) or any(pattern.search(tensor.name) for pattern in kept):
            host += size_bytes
            continue
        layers[layer] += size_bytes
        if layer < n_layer and _EXPERTS.search(tensor.name):
            experts[layer] += size_bytes
    found, tied = tuple(experts) if any(experts) else (), _tied_embedding(header)
    if tied is None or any(pattern.search(tied.name) for pattern in kept):
        return Weights(tuple(layers), found, host, 0)
    is_repacked = plan.use_extra_bufts and tied.type.name in _REPACKED_TYPES
    has_copy = dims.architecture in designs.OUTPUT_BEFORE_EMBEDDING and not plan.use_mmap
    if has_copy or (is_repacked and len(tied.dims) == 2 and tied.dims[1] % 8 == 0):
        layers[n_layer] += tied.size_bytes
        return Weights(tuple(layers), found, host, 0)
    return Weights(tuple(layers), found, host, tied.size_bytes)


def are_mapped(header: GgufHeader, plan: ContextPlan) -> bool:
    """Whether weights in RAM are pages of the mapped file and nothing else: none of them is repacked."""
    repacked = plan.use_extra_bufts and any(tensor.type.name in _REPACKED_TYPES for tensor in header.tensors)
    return plan.use_mmap and not repacked


def is_host_tensor(name: str) -> bool:
    """Whether a tensor stays in RAM wherever the layers go."""
    return name in _HOST_TENSORS


def layer_of(name: str, n_layer: int) -> int:
    """The layer index of a tensor that may be offloaded; what belongs to no block goes with the output layer."""
    block = _BLOCK.match(name)
    if block:
        return min(int(block[1]), n_layer)
    return 0 if name in _FIRST_BLOCK_TENSORS else n_layer


def _tied_embedding(header: GgufHeader) -> Tensor | None:
    by_name = {tensor.name: tensor for tensor in header.tensors}
    return None if "output.weight" in by_name else by_name.get("token_embd.weight")
