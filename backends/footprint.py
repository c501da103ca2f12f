"""What a GGUF model takes when llama.cpp runs it: header facts and context settings in, bytes out. Pure arithmetic.

Exact for the weights and KV cache of dense models (llama, qwen, mistral and their kin), within a few per cent for
their compute buffer. For other designs the dense formula is the answer and errs as follows: sliding-window and MLA
models take less KV than said here (every layer is counted with a full cache, K and V); the recurrent layers of
mamba-like and hybrid models keep a state per sequence that is not counted; expert models are counted with all experts,
their compute buffer from above. Must never read a file or ask a device.

Sources are files and functions of llama.cpp's src/.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from backends.base import Footprint, InvalidModelError
from backends.gguf import GgufHeader, Tensor
from backends.gguf_format import TENSOR_TYPES_BY_NAME

MAX_LAYERS = 512
"""llama-hparams.h LLAMA_MAX_LAYERS; llama.cpp aborts beyond it."""
MAX_DIMENSION = 2**31 - 1
CONTEXT_MULTIPLE = 256
"""llama_context pads n_ctx to it."""

PROCESS_BASE_BYTES = 64 * 1024 * 1024
"""A worker with its libraries, before the vocabulary. Measured as proportional set size (smaps), Linux x86-64, CPU
build: 56 MiB for Python 3.11 with llama_cpp, aiohttp, numpy, msgspec and jinja2 imported, 4 MiB more for a loaded
512-token model and its context without their buffers, 2 MiB for the first decode and its threads; the rest is room
for requests."""
PROCESS_BYTES_PER_TOKEN = 400
"""llama.cpp's vocabulary and a table of the tokens' text: 300 and 70 bytes per token measured with SmolLM2's 49,152."""

_HOST_TENSORS = frozenset(
    ("token_embd.weight", "position_embd.weight", "token_types.weight", "per_layer_token_embd.weight")
)
"""llama-arch.cpp LLM_TENSOR_INFOS: the tensors of LLM_TENSOR_LAYER_INPUT, which stay on the CPU."""
_BLOCK = re.compile(r"(?:enc\.|dec\.)?blk\.(\d+)\.")
_FIRST_BLOCK_TENSORS = frozenset(("token_embd_norm.weight", "token_embd_norm.bias", "rope_freqs.weight"))

_REPACKED_TYPES = frozenset(("q4_0", "q4_K", "iq4_nl", "mxfp4"))
"""ggml-cpu/repack.cpp ggml_repack_get_optimal_repack_type on a CPU with AVX2 (q2_K needs AVX-512 and is left out)."""


@dataclass(frozen=True, slots=True)
class Dimensions:
    """What the formulas need of a header. Per-layer tuples have one entry per block; lengths are elements."""

    n_layer: int
    n_embd: int
    n_vocab: int
    n_head: int
    """The largest number of query heads of any layer."""
    n_head_kv: tuple[int, ...]
    key_length: int
    value_length: int
    n_ff: int
    """Width of the widest feed-forward layer; for expert models that of all experts used at once."""
    n_ctx_train: int


@dataclass(frozen=True, slots=True)
class ContextPlan:
    """How the context is made. Types are ggml's names; the KV cache is one for all sequences (unified)."""

    n_ctx: int
    n_seq_max: int
    n_outputs_max: int
    """Rows of logits of one batch; llama.cpp demands n_outputs_max >= n_seq_max."""
    n_batch: int
    n_ubatch: int
    type_k: str
    type_v: str
    flash_attn: bool
    embeddings: bool = False
    use_extra_bufts: bool = True
    has_cache: bool = True
    """False for encoders, which llama.cpp gives no KV cache."""


def dimensions(header: GgufHeader) -> Dimensions:
    """Take the dimensions from a header (llama-model.cpp llama_model_base::load_hparams).

    Raises `InvalidModelError` when a key is missing, of a wrong type or out of range.
    """
    prefix = header.architecture
    n_layer = _required(header, f"{prefix}.block_count", MAX_LAYERS)
    n_embd = _required(header, f"{prefix}.embedding_length", MAX_DIMENSION)
    heads = header.per_layer(f"{prefix}.attention.head_count", n_layer) or (0,) * n_layer
    heads_kv = header.per_layer(f"{prefix}.attention.head_count_kv", n_layer) or heads
    head_size = n_embd // heads[0] if heads[0] else 0
    found = Dimensions(
        n_layer=n_layer,
        n_embd=n_embd,
        n_vocab=header.length("tokenizer.ggml.tokens") or header.integer(f"{prefix}.vocab_size") or 0,
        n_head=max(heads),
        n_head_kv=heads_kv,
        key_length=_optional(header, f"{prefix}.attention.key_length", head_size),
        value_length=_optional(header, f"{prefix}.attention.value_length", head_size),
        n_ff=_feed_forward_width(header, n_layer, n_embd),
        n_ctx_train=_required(header, f"{prefix}.context_length", MAX_DIMENSION),
    )
    if max(found.n_head, *heads_kv, found.n_ff) > MAX_DIMENSION:
        raise InvalidModelError(f"{header.path}: metadata gives a layer more heads or width than can be")
    return found


def _required(header: GgufHeader, key: str, most: int) -> int:
    value = header.integer(key)
    if value is None:
        raise InvalidModelError(f"{header.path}: metadata key {key} is missing; the file is no complete model")
    return _ranged(header, key, value, most)


def _optional(header: GgufHeader, key: str, default: int) -> int:
    value = header.integer(key)
    return default if value is None else _ranged(header, key, value, MAX_DIMENSION)


def _ranged(header: GgufHeader, key: str, value: int, most: int) -> int:
    if 1 <= value <= most:
        return value
    raise InvalidModelError(f"{header.path}: metadata key {key} is {value}, it should be between 1 and {most}")


def _feed_forward_width(header: GgufHeader, n_layer: int, n_embd: int) -> int:
    """For experts the wider of their hidden layer and their output, times the experts that run for one token."""
    prefix = header.architecture
    dense = max(header.per_layer(f"{prefix}.feed_forward_length", n_layer) or (0,))
    used = max(header.per_layer(f"{prefix}.expert_used_count", n_layer) or (0,))
    expert = max(header.per_layer(f"{prefix}.expert_feed_forward_length", n_layer) or (dense,))
    return max(dense, used * max(expert, n_embd) if used else 0)


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes of tensors by where they go. `layers` has one entry per block and a last one for the output layer."""

    layers: tuple[int, ...]
    host: int
    tied_output: int
    """A further copy of the token embedding that the output layer takes on any device but RAM."""


def weights(header: GgufHeader, n_layer: int, *, use_extra_bufts: bool) -> Weights:
    """Distribute the tensors (llama-model.cpp load_tensors; llama-model-loader.cpp create_tensor for tied ones).

    Without `output.weight` the token embedding serves as the output too. In RAM both are one tensor, unless the CPU
    repacks its type for faster multiplication: then the output layer has a copy wherever it is. Other repacked weights
    count once: their pages in the mapped file are given back under pressure.
    """
    layers = [0] * (n_layer + 1)
    host = 0
    for tensor in header.tensors:
        if is_host_tensor(tensor.name):
            host += tensor.size_bytes
        else:
            layers[layer_of(tensor.name, n_layer)] += tensor.size_bytes
    tied = _tied_embedding(header)
    if tied is None:
        return Weights(tuple(layers), host, 0)
    if use_extra_bufts and tied.type.name in _REPACKED_TYPES and len(tied.dims) == 2 and tied.dims[1] % 8 == 0:
        layers[n_layer] += tied.size_bytes
        return Weights(tuple(layers), host, 0)
    return Weights(tuple(layers), host, tied.size_bytes)


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


def kv_layers(dims: Dimensions, plan: ContextPlan) -> tuple[int, ...]:
    """KV cache bytes per block, and 0 for the output layer (llama-kv-cache.cpp, constructor).

    Rows are stored in whole blocks of the cache type. Without flash attention V is transposed and every layer's as wide
    as the widest (llama-hparams.cpp n_embd_v_gqa_max).
    """
    if not plan.has_cache:
        return (0,) * (dims.n_layer + 1)
    cells = padded_context(plan.n_ctx)
    kind_k, kind_v = TENSOR_TYPES_BY_NAME[plan.type_k], TENSOR_TYPES_BY_NAME[plan.type_v]
    widest = max(dims.n_head_kv)
    per_block = []
    for heads in dims.n_head_kv:
        heads_v = heads if plan.flash_attn or not heads else widest
        k = kind_k.row_bytes(dims.key_length * heads)
        v = kind_v.row_bytes(dims.value_length * heads_v)
        per_block.append(cells * (k + v))
    return (*per_block, 0)


def padded_context(n_ctx: int) -> int:
    """Cells of the cache for `n_ctx` tokens (llama-context.cpp, constructor)."""
    return -(-n_ctx // CONTEXT_MULTIPLE) * CONTEXT_MULTIPLE


def reserved_tokens(plan: ContextPlan) -> int:
    """Tokens of the micro-batch llama.cpp reserves for (llama-context.cpp sched_reserve, graph_reserve)."""
    n_tokens = min(padded_context(plan.n_ctx), plan.n_batch, plan.n_ubatch)
    return -(-n_tokens // plan.n_seq_max) * plan.n_seq_max


def compute_buffer(dims: Dimensions, plan: ContextPlan) -> int:
    """Bytes of the scheduler's buffer: the widest moment of the graph of one full micro-batch.

    The graph is src/models/llama.cpp with llama-graph.cpp build_attn_mha and build_ffn; all activations are F32. The
    terms count the tensors alive at once in attention, in the feed-forward part and at the logits; the shares of
    n_embd that ggml-alloc adds by fragmentation were fitted to what llama.cpp reports for models of many shapes.
    """
    n_tokens = reserved_tokens(plan)
    n_kv = padded_context(plan.n_ctx) if plan.has_cache else n_tokens
    q = dims.n_head * dims.key_length
    kv = max(dims.n_head_kv) * max(dims.key_length, dims.value_length)
    if plan.flash_attn:
        mask = 2 * n_kv * n_tokens
        # The kernel wants K and V in F16 at most: F32 ones are converted, one layer's cache at a time.
        converted = 2 if not plan.has_cache else (plan.type_k, plan.type_v).count("f32")
        attention = 4 * n_tokens * (dims.n_embd + 3 * q + 2 * kv) + converted * 2 * n_kv * kv
        feed_forward = 4 * n_tokens * (3 * dims.n_ff + q + 3 * dims.n_embd)
    else:
        mask = 4 * n_kv * n_tokens
        attention = 4 * n_tokens * (dims.n_head * n_kv + 2 * dims.n_embd + 3 * q + 2 * kv)
        feed_forward = 4 * n_tokens * (3 * dims.n_ff + 5 * dims.n_embd)
    n_outputs = min(n_tokens, plan.n_outputs_max)
    logits = 4 * (dims.n_vocab * n_outputs + 2 * dims.n_embd * (n_tokens + n_outputs))
    if plan.embeddings:
        logits += mask
    inputs = 4 * 8 * n_tokens
    return max(mask + max(attention, feed_forward), logits) + inputs


def output_buffer(dims: Dimensions, plan: ContextPlan) -> int:
    """Bytes of the host buffer for logits, and for embeddings when asked for (llama-context.cpp output_reserve)."""
    rows = max(plan.n_outputs_max, plan.n_seq_max)
    return 4 * rows * (dims.n_vocab + (dims.n_embd if plan.embeddings else 0))


def process_bytes(n_vocab: int) -> int:
    """RAM of a worker process beside weights, cache and buffers; a measured figure, see the constants."""
    return PROCESS_BASE_BYTES + PROCESS_BYTES_PER_TOKEN * n_vocab


def footprint(header: GgufHeader, dims: Dimensions, plan: ContextPlan) -> Footprint:
    """All of it for one worker. `dims` are those of `header`."""
    parts = weights(header, dims.n_layer, use_extra_bufts=plan.use_extra_bufts)
    return Footprint(
        layer_weights_bytes=parts.layers,
        layer_kv_bytes=kv_layers(dims, plan),
        host_weights_bytes=parts.host,
        compute_bytes=compute_buffer(dims, plan),
        output_bytes=output_buffer(dims, plan),
        process_bytes=process_bytes(dims.n_vocab),
        tied_output_bytes=parts.tied_output,
    )
