"""The parts that most models are built of, tensor by tensor: norms, attention, feed-forward layers, experts.

Owns what each part keeps alive while it is computed. Which parts a block has is told by the tensors it has. Pure.
Sources: llama.cpp's src/llama-graph.cpp (build_norm, build_qkv, build_attn, build_attn_mha, build_ffn, build_moe_ffn),
in the order in which the graph computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from backends.footprint import designs
from backends.footprint.graph import Graph, Tensor
from backends.footprint.layers import Dimensions, Layer
from backends.footprint.plan import ContextPlan
from backends.gguf_format import TENSOR_TYPES_BY_NAME

FLOAT_BYTES = 4
"""Activations are F32."""
HALF_BYTES = 2
INDEX_BYTES = 8
ROTATED_WIDTH = 64
"""Quantized caches store heads rotated, in parts of so many elements (llama-kv-cache.cpp, constructor)."""

Rest = Callable[[], "Tensor"]
"""Lays out the rest of a part, once what llama.cpp computes in between is laid out, and returns its result."""

_NONE = (0, 0)
MAX_EXPERTS = 1024
"""llama-hparams.h LLAMA_MAX_EXPERTS; llama.cpp aborts beyond it."""


class Shapes(dict[str, tuple[int, ...]]):
    """Dimensions of the tensors of one block, by the name after `blk.N.`; (columns, rows) of a matrix, at least two.

    A tensor that is not there counts nothing: whether the model can do without it is for llama.cpp to say.
    """

    def __missing__(self, name: str) -> tuple[int, ...]:
        return _NONE


@dataclass(frozen=True, slots=True)
class Inputs:
    """What attention needs before a computation: whom to look at, where to write."""

    mask: Tensor
    key_places: Tensor | None
    value_places: Tensor | None
    key_rotation: Tensor | None = None
    value_rotation: Tensor | None = None
    cells: int = 0


@dataclass(slots=True)
class Builder:
    """One computation being laid out. `tokens` are the rows of what is computed now."""

    graph: Graph
    dims: Dimensions
    plan: ContextPlan
    tokens: int
    n_seqs: int
    layer_norm: bool
    """Mean and variance, which is not written over its input; else RMS."""
    n_expert_used: int
    full: Inputs | None = None
    windowed: Inputs | None = None
    fetched: Tensor | None = None
    """The next recurrent block's rolling state, once it is fetched."""
    fetch_after: str = ""
    """The part of this block after which it is fetched: mixer, experts, or none."""
    per_layer: Callable[[], Tensor] | None = None
    """Every layer's own embedding of the tokens, laid out when it is first needed."""

    def fetch(self) -> None:
        """Copy the rolling state of the next recurrent block for every sequence of the batch."""
        self.fetched = self.graph.op(FLOAT_BYTES * self.dims.conv_state * self.n_seqs)

    def rows(self, width: int, *sources: Tensor) -> Tensor:
        """A result of `width` elements per token, such as a product with a matrix."""
        return self.graph.op(FLOAT_BYTES * max(0, width) * self.tokens, *sources)

    def project(self, block: Shapes, name: str, *sources: Tensor, width: int = 0) -> Tensor:
        """A product with the matrix `name`, plus its bias."""
        out = self.rows(width or block[f"{name}.weight"][1], *sources)
        return self.graph.same(out) if f"{name}.bias" in block else out

    def norm(self, source: Tensor, *, bias: bool = False) -> Tensor:
        """Normed and weighed."""
        normed = self.graph.op(source.size_bytes, source, in_place=not self.layer_norm)
        weighed = self.graph.same(normed)
        return self.graph.same(weighed) if bias else weighed


def attention(b: Builder, block: Shapes, layer: Layer, x: Tensor) -> Rest:
    """Queries, keys, values and what comes of them; then the output matrix."""
    inputs = b.windowed if layer.windowed else b.full
    assert inputs is not None
    gate: Tensor | None = None
    if "attn_kv_a_mqa.weight" in block:
        out, rotation = _latent_attention(b, block, layer, inputs, x)
        if layer.indexed:
            out = b.graph.op(out.size_bytes, out, *_indexed(b, inputs))
    elif "attn_qkv.weight" in block:
        out, rotation = _fused_attention(b, block, layer, inputs, x), inputs.value_rotation
    else:
        gate = b.project(block, "attn_q", x)
        out, rotation = _split_attention(b, block, layer, inputs, x, gate), inputs.value_rotation
    if b.dims.architecture not in designs.GATED_ATTENTION:
        gate = None

    def rest() -> Tensor:
        done = _rotated(b, out, rotation)
        return b.project(block, "attn_output", done if gate is None else _gated(b, done, gate))

    return rest


def _fused_attention(b: Builder, block: Shapes, layer: Layer, inputs: Inputs, x: Tensor) -> Tensor:
    qkv = b.project(block, "attn_qkv", x)
    q, k = (
        _rotated(
            b,
            _positioned(b, block, layer, norm, b.graph.view(qkv, FLOAT_BYTES * b.tokens * width)),
            inputs.key_rotation,
        )
        for norm, width in (("attn_q_norm", _q_width(layer)), ("attn_k_norm", layer.key_width))
    )
    v = _rotated(b, b.graph.view(qkv, FLOAT_BYTES * b.tokens * layer.value_width), inputs.value_rotation)
    return _attend(b, layer, inputs, q, k, v)


def _split_attention(b: Builder, block: Shapes, layer: Layer, inputs: Inputs, x: Tensor, q: Tensor) -> Tensor:
    if b.dims.architecture in designs.GATED_ATTENTION:
        q = b.graph.view(q, q.size_bytes // 2)
    q = _rotated(b, _positioned(b, block, layer, "attn_q_norm", q), inputs.key_rotation)
    if "attn_k.weight" not in block and b.plan.has_cache:
        return _attend(b, layer, inputs, q, None, None)
    k, v = _keys_and_values(b, block, layer, inputs, x)
    return _attend(b, layer, inputs, q, k, v)


def _q_width(layer: Layer) -> int:
    return layer.key_length * layer.n_head


def _keys_and_values(b: Builder, block: Shapes, layer: Layer, inputs: Inputs, x: Tensor) -> tuple[Tensor, Tensor]:
    """V before K where there is one kind of cache (build_attn for llm_graph_input_attn_kv)."""

    def keys() -> Tensor:
        k = b.project(block, "attn_k", x)
        return _rotated(b, _positioned(b, block, layer, "attn_k_norm", k), inputs.key_rotation)

    def values() -> Tensor:
        v = b.project(block, "attn_v", x) if "attn_v.weight" in block else b.rows(layer.value_width, x)
        return _rotated(b, b.graph.view(v), inputs.value_rotation)

    if b.dims.windowed_cache or not b.plan.has_cache:
        k = keys()
        return k, values()
    v = values()
    return keys(), v


def _positioned(b: Builder, block: Shapes, layer: Layer, norm: str, x: Tensor) -> Tensor:
    """Split into heads, normed where the model does that, and turned by position."""
    size = block.get(f"{norm}.weight", (0,))[0]
    heads = x
    if size and FLOAT_BYTES * size * b.tokens == x.size_bytes:
        heads = b.norm(x, bias=f"{norm}.bias" in block)
        size = 0
    heads = b.graph.view(heads)
    if size:
        heads = b.norm(heads, bias=f"{norm}.bias" in block)
    return b.graph.same(heads) if layer.turned else heads


def _rotated(b: Builder, x: Tensor, rotation: Tensor | None) -> Tensor:
    return x if rotation is None else b.graph.op(x.size_bytes, rotation, b.graph.view(x))


def _attend(b: Builder, layer: Layer, inputs: Inputs, q: Tensor, k: Tensor | None, v: Tensor | None) -> Tensor:
    """Write into the cache, then look at all of it (build_attn_mha)."""
    g = b.graph
    if b.plan.has_cache:
        for new, places in ((k, inputs.key_places), (v, inputs.value_places)):
            if new is not None and places is not None:
                g.consume(g.view(new), places)
        kept: tuple[Tensor, ...] = ()
    else:
        assert k is not None
        assert v is not None
        kept = (g.view(k), g.view(v))
    size = FLOAT_BYTES * b.tokens * layer.n_head * layer.value_length
    query = g.view(q)
    if b.plan.flash_attn:
        return g.view(g.op(size, query, *_halves(b, layer, inputs, kept), inputs.mask))
    values = [g.op(kept[1].size_bytes, kept[1])] if kept else []
    scores = g.op(FLOAT_BYTES * inputs.cells * b.tokens * layer.n_head, query, *kept[:1])
    if b.dims.architecture in designs.CAPPED_SCORES:
        scores = g.same(scores)
    scores = g.same(scores, inputs.mask)
    return g.op(size, g.view(g.op(size, *values, scores)))


def _halves(b: Builder, layer: Layer, inputs: Inputs, kept: tuple[Tensor, ...]) -> list[Tensor]:
    """The kernel wants keys and values in F16 at most: F32 ones are converted, one layer's cache at a time."""
    g = b.graph
    if kept:
        return [g.op(tensor.size_bytes // 2, tensor) for tensor in kept]
    kinds = ((b.plan.type_k, layer.key_width), (b.plan.type_v, layer.value_width))
    return [g.op(HALF_BYTES * inputs.cells * width) for kind, width in kinds if kind == "f32"]


def _gated(b: Builder, out: Tensor, gate: Tensor) -> Tensor:
    g = b.graph
    opened = g.same(g.op(gate.size_bytes // 2, g.view(gate)))
    return g.same(out, opened)


def _latent_attention(
    b: Builder, block: Shapes, layer: Layer, inputs: Inputs, x: Tensor
) -> tuple[Tensor, Tensor | None]:
    """MLA (models/deepseek2.cpp): with the heads folded into the query, or unfolded into ordinary ones."""
    g = b.graph
    rank = block["attn_kv_a_norm.weight"][0]
    rope = block["attn_kv_a_mqa.weight"][1] - rank
    if "attn_q_a.weight" in block:
        q = b.project(block, "attn_q_b", b.norm(b.project(block, "attn_q_a", x)))
    else:
        q = b.project(block, "attn_q", x)
    if "attn_k_b.weight" not in block:
        return _unfolded_attention(b, block, layer, inputs, x, q, rank, rope), inputs.value_rotation
    folded = g.view(b.rows(layer.n_head * rank, g.view(q)))
    turned = b.rows(layer.n_head * rope, g.view(q))
    query = b.rows(layer.n_head * (rank + rope), folded, turned)
    compressed = b.project(block, "attn_kv_a_mqa", x)
    latent = g.view(b.norm(g.view(compressed, FLOAT_BYTES * b.tokens * rank)))
    key = b.rows(rank + rope, latent, b.rows(rope, g.view(compressed)))
    g.consume(g.view(key), *filter(None, (inputs.key_places,)))
    value_length = block["attn_v_b.weight"][1]
    if b.plan.flash_attn:
        halves = [g.op(HALF_BYTES * inputs.cells * width) for width in (rank + rope, rank) if b.plan.type_k == "f32"]
        looked = g.view(b.rows(layer.n_head * rank, g.view(query), *halves, inputs.mask))
    else:
        values = g.op(TENSOR_TYPES_BY_NAME[b.plan.type_k].row_bytes(inputs.cells) * rank)
        scores = b.rows(inputs.cells * layer.n_head, g.view(query))
        looked = b.rows(layer.n_head * rank, values, g.same(scores, inputs.mask))
    return b.rows(layer.n_head * value_length, g.view(b.rows(layer.n_head * value_length, looked))), None


def _indexed(b: Builder, inputs: Inputs) -> tuple[Tensor, ...]:
    """What choosing the keys to attend to has in hand, from above (models/deepseek32.cpp): queries before and after
    they are rotated, every key's score, masks made of them, the chosen keys."""
    queries, chosen = b.dims.indexer_heads * b.dims.indexer_length, min(inputs.cells, b.dims.indexer_top_k)
    return tuple(
        b.rows(width) for width in (queries, queries, inputs.cells, inputs.cells, inputs.cells, chosen, chosen)
    )


def _unfolded_attention(
    b: Builder, block: Shapes, layer: Layer, inputs: Inputs, x: Tensor, q: Tensor, rank: int, rope: int
) -> Tensor:
    g = b.graph
    query = _rotated(b, b.rows(_q_width(layer), g.view(q)), inputs.key_rotation)
    compressed = b.project(block, "attn_kv_a_mqa", x)
    both = b.project(block, "attn_kv_b", b.norm(g.view(compressed, FLOAT_BYTES * b.tokens * rank)))
    v = _rotated(b, b.rows(layer.value_width, g.view(both)), inputs.value_rotation)
    repeated = b.rows(layer.n_head * rope, b.rows(rope, g.view(compressed)))
    k = _rotated(b, b.rows(layer.key_width, g.view(both), repeated), inputs.key_rotation)
    return _attend(b, layer, inputs, query, k, v)


def feed_forward(b: Builder, block: Shapes, x: Tensor, suffix: str = "") -> Tensor:
    """One wide layer, with a gate beside it, inside it, or without."""
    g, down = b.graph, f"ffn_down{suffix}"
    if f"ffn_gate{suffix}.weight" in block:
        gate = b.project(block, f"ffn_gate{suffix}", x)
        wide = g.op(gate.size_bytes, gate, b.project(block, f"ffn_up{suffix}", x))
    else:
        up = b.project(block, f"ffn_up{suffix}", x)
        n_in = block[f"{down}.weight"][0]
        is_double = block[f"ffn_up{suffix}.weight"][1] == 2 * n_in
        wide = b.rows(n_in, up) if is_double else g.same(up)
    return b.project(block, down, wide)


def experts(b: Builder, block: Shapes, x: Tensor) -> Tensor:
    """The experts chosen for each token, and the shared one if there is one."""
    g, used = b.graph, b.n_expert_used
    count = block["ffn_gate_inp.weight"][1]
    scores = b.project(block, "ffn_gate_inp", x)
    scores = g.same(scores)
    ranked = g.view(b.rows(count, g.same(scores) if "exp_probs_b.bias" in block else scores))
    shares = g.view(b.rows(used, g.view(scores), ranked))
    each = g.view(x)
    wide = _expert_activation(b, block, each, ranked)
    down = b.rows(used * block["ffn_down_exps.weight"][1], wide, ranked)
    if "ffn_down_exps.bias" in block:
        down = g.same(down, ranked)
    weighed = g.same(down, shares)
    parts = [g.view(weighed) for _ in range(used)]
    out = b.rows(block["ffn_down_exps.weight"][1], *parts[:2])
    for part in parts[2:]:
        out = g.same(out, part)
    if b.fetch_after == "experts":
        b.fetch()
    return _with_shared_expert(b, block, x, out)


def _expert_activation(b: Builder, block: Shapes, x: Tensor, ranked: Tensor) -> Tensor:
    g, used = b.graph, b.n_expert_used

    def chosen(name: str) -> Tensor:
        out = b.rows(used * block[f"{name}.weight"][1], x, ranked)
        return g.same(out, ranked) if f"{name}.bias" in block else out

    if "ffn_gate_up_exps.weight" in block:
        both = chosen("ffn_gate_up_exps")
        return b.rows(used * block["ffn_down_exps.weight"][0], g.view(both), g.view(both))
    if "ffn_gate_exps.weight" not in block:
        return g.same(chosen("ffn_up_exps"))
    gate = chosen("ffn_gate_exps")
    return g.op(gate.size_bytes, gate, chosen("ffn_up_exps"))


def _with_shared_expert(b: Builder, block: Shapes, x: Tensor, out: Tensor) -> Tensor:
    if "ffn_up_shexp.weight" in block:
        shared = feed_forward(b, block, x, "_shexp")
        if "ffn_gate_inp_shexp.weight" in block:
            shared = b.graph.same(shared, b.graph.same(b.rows(1, x)))
        return b.graph.same(out, shared)
    if "ffn_up.weight" in block:
        return b.graph.same(out, feed_forward(b, block, x))
    return out
