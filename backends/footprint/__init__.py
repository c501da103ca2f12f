"""What a GGUF model takes when llama.cpp runs it: header facts and context settings in, bytes out. Pure arithmetic.

One module per concern: `layers` (what a header says), `plan` (how the context is made), `weights`, `cache`, `compute`
(the graph, laid out tensor by tensor), `copies` (of what lies in RAM), `buffers`. Must never read a file or ask a
device.
"""

from __future__ import annotations

from backends.base import Footprint
from backends.footprint.buffers import GPU_CONTEXT_BYTES, PIPELINE_COPIES, output_buffer, process_bytes
from backends.footprint.cache import kv_layers
from backends.footprint.compute import compute_buffers
from backends.footprint.copies import copies
from backends.footprint.layers import Dimensions, dimensions
from backends.footprint.plan import ContextPlan, padded_context, reserved_tokens
from backends.footprint.weights import Weights, are_mapped, is_host_tensor, layer_of, weights
from backends.gguf import GgufHeader

__all__ = [
    "ContextPlan",
    "Dimensions",
    "Weights",
    "are_mapped",
    "compute_buffers",
    "dimensions",
    "footprint",
    "is_host_tensor",
    "kv_layers",
    "layer_of",
    "output_buffer",
    "padded_context",
    "process_bytes",
    "reserved_tokens",
    "weights",
]


def footprint(header: GgufHeader, dims: Dimensions, plan: ContextPlan) -> Footprint:
    """All of it for one worker. `dims` are those of `header`."""
    parts = weights(header, dims, plan)
    compute, kv_bytes = compute_buffers(header, dims, plan), kv_layers(dims, plan)
    copied = copies(header, dims, plan, compute, kv_bytes)
    return Footprint(
        layer_weights_bytes=parts.layers,
        layer_kv_bytes=kv_bytes,
        host_weights_bytes=parts.host,
        compute_bytes=compute.whole,
        output_bytes=output_buffer(dims, plan),
        process_bytes=process_bytes(dims.n_vocab),
        tied_output_bytes=parts.tied_output,
        layer_expert_bytes=parts.experts,
        gpu_host_compute_bytes=compute.inputs,
        gpu_pipeline_bytes=(PIPELINE_COPIES - 1) * compute.inputs,
        gpu_context_bytes=GPU_CONTEXT_BYTES,
        gpu_layer_copy_bytes=copied.layers,
        gpu_expert_copy_bytes=copied.experts,
        gpu_kept_copy_bytes=copied.kept,
    )
