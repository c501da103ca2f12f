"""The compute buffer: room for what a model's graph has in hand at once, for one full micro-batch. Pure.

Owns the order of a model's blocks, from the embedding to the logits. Sources: llama.cpp's src/llama-graph.cpp
(build_inp_embd, build_attn_inp_kv, build_pooling), llama-context.cpp sched_reserve and graph_reserve, models/*.cpp.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from backends.footprint import designs
from backends.footprint.blocks import (
    FLOAT_BYTES,
    HALF_BYTES,
    INDEX_BYTES,
    MAX_EXPERTS,
    ROTATED_WIDTH,
    Builder,
    Inputs,
    Rest,
    Shapes,
    attention,
    experts,
    feed_forward,
)
from backends.footprint.graph import Graph, Tensor
from backends.footprint.layers import Dimensions, Layer
from backends.footprint.mixers import recurrent
from backends.footprint.plan import ContextPlan, reserved_outputs, reserved_tokens
from backends.gguf import GgufHeader
from backends.gguf_format import TENSOR_TYPES_BY_NAME

TOKEN_BYTES = 4
REPEATS = 3
"""Of blocks that follow each other in the same way so many are laid out: later ones take the places of earlier ones."""


@dataclass(frozen=True, slots=True)
class ComputeBuffers:
    """Bytes of the scheduler's buffers for one full micro-batch."""

    whole: int
    """On a device that computes everything."""
    inputs: int
    """In RAM when GPUs compute everything: what is filled in before, and the embedding's rows."""


def compute_buffers(header: GgufHeader, dims: Dimensions, plan: ContextPlan) -> ComputeBuffers:
    """Lay the graph out, once whole and once without its blocks."""
    edges, blocks = shapes(header, dims)
    whole, inputs = (_builder(header, dims, plan) for _ in range(2))
    _embedding(inputs, edges)
    x = _embedding(whole, edges)
    outputs = whole.graph.input(TOKEN_BYTES * reserved_outputs(plan))
    chosen = _worth_laying_out(blocks, dims.layers[: dims.n_trunk])
    fetches = _fetches(dims, [blocks[il] for il in chosen], [dims.layers[il] for il in chosen])
    if dims.layers[0].recurrent and dims.architecture not in designs.NORM_BEFORE_STATE:
        whole.fetch()
    is_late = dims.architecture in designs.LATE_SELECTION
    for position, il in enumerate(chosen):
        whole.fetch_after = fetches.get(position, "")
        is_cut = position == len(chosen) - 1 and not is_late
        x = _block(whole, blocks[il], dims.layers[il], x, outputs if is_cut else None)
    _end(whole, x, outputs if is_late else None)
    margin = designs.ROUGH_MARGIN if dims.architecture in designs.ROUGH else 0.0
    peak = whole.graph.peak_bytes()
    return ComputeBuffers(peak + int(margin * peak), inputs.graph.peak_bytes())


def _fetches(dims: Dimensions, blocks: list[Shapes], layers: list[Layer]) -> dict[int, str]:
    """After which part of which block the next recurrent one's rolling state is fetched: the last one before it that
    is computed as soon as it is built (ggml_build_forward_expand), while what follows is built lazily."""
    found: dict[int, str] = {}
    if dims.architecture in designs.NORM_BEFORE_STATE:
        return found
    last: tuple[int, str] | None = None
    for position, (block, layer) in enumerate(zip(blocks, layers, strict=True)):
        if layer.recurrent and not layer.attends and last is not None:
            found[last[0]] = last[1]
        if layer.recurrent or (layer.attends and "attn_output.weight" in block):
            last = (position, "mixer")
        if "ffn_gate_inp.weight" in block:
            last = (position, "experts")
    return found


def _builder(header: GgufHeader, dims: Dimensions, plan: ContextPlan) -> Builder:
    used = header.per_layer(f"{dims.architecture}.expert_used_count", dims.n_layer) or (0,)
    return Builder(
        graph=Graph(),
        dims=dims,
        plan=plan,
        tokens=reserved_tokens(plan),
        n_seqs=plan.n_seq_max,
        layer_norm=header.metadata.get(f"{dims.architecture}.attention.layer_norm_rms_epsilon") is None,
        n_expert_used=min(max(used), MAX_EXPERTS),
    )


def shapes(header: GgufHeader, dims: Dimensions) -> tuple[Shapes, tuple[Shapes, ...]]:
    """Tensor dimensions: of those that belong to no block by name, and of each block by the name after `blk.N.`."""
    edges, blocks = Shapes(), [Shapes() for _ in range(dims.n_layer)]
    for tensor in header.tensors:
        if tensor.name.startswith("blk."):
            number, _, name = tensor.name[4:].partition(".")
            if number.isdecimal() and int(number) < dims.n_layer:
                blocks[int(number)][name] = (*tensor.dims, 1)[: max(2, len(tensor.dims))]
        else:
            edges[tensor.name] = (*tensor.dims, 1)[: max(2, len(tensor.dims))]
    return edges, tuple(blocks)


def _worth_laying_out(blocks: tuple[Shapes, ...], layers: tuple[Layer, ...]) -> list[int]:
    """Indices of blocks: the first few that follow a block of a kind in the same way, and always the last of all."""
    kinds: list[tuple[Layer, Shapes]] = []
    chosen: list[int] = []
    seen: Counter[tuple[int, int]] = Counter()
    before = -1
    for il, described in enumerate(zip(layers, blocks, strict=False)):
        if described not in kinds:
            kinds.append(described)
        kind = kinds.index(described)
        seen[before, kind] += 1
        if seen[before, kind] <= REPEATS or il == len(layers) - 1:
            chosen.append(il)
        before = kind
    return chosen


def _embedding(b: Builder, edges: Shapes) -> Tensor:
    """The inputs, and the rows of the embedding."""
    g = b.graph
    tokens = g.input(TOKEN_BYTES * b.tokens)
    g.input(FLOAT_BYTES * b.dims.n_embd * b.tokens)
    places = g.input(TOKEN_BYTES * b.tokens)
    x = b.rows(b.dims.n_embd, tokens)
    if "per_layer_token_embd.weight" in edges:
        selected = g.same(g.view(b.rows(edges["per_layer_token_embd.weight"][0], tokens)))
        embedded = x = g.same(x)
        b.per_layer = lambda: _projected_per_layer(b, edges, embedded, selected)
    if "position_embd.weight" in edges:
        x = g.same(b.rows(b.dims.n_embd, places), g.same(x))
    if "token_embd_norm.weight" in edges and b.dims.architecture not in ("lfm2", "lfm2moe"):
        x = b.norm(x, bias="token_embd_norm.bias" in edges)
    b.full, b.windowed = _attention_inputs(b)
    if any(layer.recurrent for layer in b.dims.layers):
        g.input(TOKEN_BYTES * b.n_seqs)
    return x


def _attention_inputs(b: Builder) -> tuple[Inputs | None, Inputs | None]:
    """Of full and of windowed layers, each with a cache of its own where a model has both kinds."""
    full = windowed = None
    if b.dims.windowed_cache or any(layer.attends for layer in b.dims.layers):
        full = _inputs_of(
            b, [layer for layer in b.dims.layers if layer.owns_cache and not layer.windowed], b.plan.cells
        )
    if b.dims.windowed_cache:
        cells = b.plan.window_cells(b.dims.window)
        windowed = _inputs_of(b, [layer for layer in b.dims.layers if layer.owns_cache and layer.windowed], cells)
    return full, windowed


def _inputs_of(b: Builder, layers: list[Layer], cells: int) -> Inputs:
    """The mask is F16 for flash attention. Without it V is written element by element, in another order."""
    g, plan = b.graph, b.plan
    element = HALF_BYTES if plan.flash_attn else FLOAT_BYTES
    if not plan.has_cache:
        return Inputs(g.input(element * b.tokens * b.tokens), None, None, cells=b.tokens)
    key_rotation, value_rotation = (
        g.input(FLOAT_BYTES * size * size) if size and not b.dims.latent else None
        for size in (
            _rotation(plan.type_k, [layer.key_length for layer in layers], whole=True),
            _rotation(plan.type_v, [layer.value_length for layer in layers], whole=False),
        )
    )
    keys = g.input(INDEX_BYTES * b.tokens)
    each = 1 if plan.flash_attn else b.dims.widest_value
    values = None if b.dims.latent else g.input(INDEX_BYTES * b.tokens * each)
    mask = g.input(element * cells * b.tokens)
    return Inputs(mask, keys, values, key_rotation, value_rotation, cells)


def _rotation(kind: str, lengths: list[int], *, whole: bool) -> int:
    """Rows of the matrix that turns heads before they are quantized, 0 without one (build_input_k_rot and _v_rot)."""
    length = lengths[0] if lengths else 0
    if not length or TENSOR_TYPES_BY_NAME[kind].block_size == 1 or len(set(lengths)) != 1 or length % ROTATED_WIDTH:
        return 0
    size = ROTATED_WIDTH
    while whole and length % (2 * size) == 0:
        size *= 2
    return size


def _projected_per_layer(b: Builder, edges: Shapes, x: Tensor, selected: Tensor) -> Tensor:
    """models/gemma4.cpp project_per_layer_inputs."""
    g = b.graph
    width = edges["per_layer_model_proj.weight"][1]
    normed = b.norm(g.view(g.same(b.rows(width, x))))
    return b.rows(width, g.view(g.same(g.same(normed, selected))))


def _block(b: Builder, block: Shapes, layer: Layer, x: Tensor, outputs: Tensor | None) -> Tensor:
    """One block, from its input to the next one's; `outputs` says which rows of the last one count."""
    if "layer_output_norm.weight" in block:
        return _encoder_block(b, block, layer, x, outputs)
    has_norm, has_ffn_norm = "attn_norm.weight" in block, _ffn_norm(block)
    normed = b.norm(x, bias="attn_norm.bias" in block) if has_norm else x
    mix = _mixed(b, block, layer, x, normed)
    if mix is None:
        return _unmixed(b, block, x, normed, outputs)
    parallel = has_norm and not has_ffn_norm and "post_attention_norm.weight" not in block and _is_wide(block)
    if parallel:
        return _side_by_side(b, block, x, normed, mix, outputs)
    mixed = mix()
    if outputs is not None:
        b.tokens = outputs.size_bytes // TOKEN_BYTES
        mixed, x = b.rows(b.dims.n_embd, mixed, outputs), b.rows(b.dims.n_embd, x, outputs)
    is_post = "post_attention_norm.weight" in block and (has_ffn_norm or not has_norm)
    if is_post:
        mixed = b.norm(mixed)
    x = b.graph.same(x, mixed) if b.dims.architecture in designs.RESIDUAL_FIRST else b.graph.same(mixed, x)
    if not _is_wide(block):
        return x
    before = b.norm(x, bias="ffn_norm.bias" in block) if has_ffn_norm or (has_norm and not is_post) else x
    out = _wide(b, block, before)
    if "post_ffw_norm.weight" in block:
        out = b.norm(out)
    x = b.graph.same(x, out) if b.dims.architecture in designs.RESIDUAL_FIRST else b.graph.same(out, x)
    return x if b.per_layer is None else _with_per_layer(b, block, x)


def _ffn_norm(block: Shapes) -> bool:
    return "ffn_norm.weight" in block or "ffn_norm" in block


def _is_wide(block: Shapes) -> bool:
    return "ffn_up.weight" in block or "ffn_gate_inp.weight" in block


def _wide(b: Builder, block: Shapes, x: Tensor) -> Tensor:
    return experts(b, block, x) if "ffn_gate_inp.weight" in block else feed_forward(b, block, x)


def _mixed(b: Builder, block: Shapes, layer: Layer, x: Tensor, normed: Tensor) -> Rest | None:
    """What tokens learn of each other, None in a block without such a part."""
    attended = attention(b, block, layer, normed) if layer.attends and "attn_output.weight" in block else None
    if layer.recurrent and attended is not None:
        b.fetch()
        rest = recurrent(b, block, b.norm(x))
        first = attended()
        return lambda: b.graph.same(first, rest())
    mix = recurrent(b, block, normed) if layer.recurrent else attended
    if b.fetch_after == "mixer":
        b.fetch()
    return mix


def _unmixed(b: Builder, block: Shapes, x: Tensor, normed: Tensor, outputs: Tensor | None) -> Tensor:
    """models/nemotron-h.cpp: a block that is a feed-forward part and no more."""
    out = _wide(b, block, normed) if _is_wide(block) else normed
    if outputs is not None:
        b.tokens = outputs.size_bytes // TOKEN_BYTES
        out, x = b.rows(b.dims.n_embd, out, outputs), b.rows(b.dims.n_embd, x, outputs)
    return b.graph.same(out, x)


def _side_by_side(b: Builder, block: Shapes, x: Tensor, normed: Tensor, mix: Rest, outputs: Tensor | None) -> Tensor:
    """models/command-r.cpp: the feed-forward part has the input of attention; both are added to it in the end."""
    if outputs is None and b.dims.architecture not in designs.ATTENTION_FIRST:
        total = b.graph.same(_wide(b, block, normed), x)
        return b.graph.same(total, mix())
    mixed = mix()
    if outputs is None:
        return b.graph.same(b.graph.same(mixed, _wide(b, block, normed)), x)
    b.tokens = outputs.size_bytes // TOKEN_BYTES
    mixed, x, normed = (b.rows(b.dims.n_embd, part, outputs) for part in (mixed, x, normed))
    return b.graph.same(b.graph.same(_wide(b, block, normed), x), mixed)


def _encoder_block(b: Builder, block: Shapes, layer: Layer, x: Tensor, outputs: Tensor | None) -> Tensor:
    """models/bert.cpp: norms come after each part."""
    mixed = attention(b, block, layer, x)()
    if outputs is not None:
        b.tokens = outputs.size_bytes // TOKEN_BYTES
        mixed, x = b.rows(b.dims.n_embd, mixed, outputs), b.rows(b.dims.n_embd, x, outputs)
    x = b.norm(b.graph.same(mixed, x), bias=True)
    return b.norm(b.graph.same(_wide(b, block, x), x), bias=True)


def _with_per_layer(b: Builder, block: Shapes, x: Tensor) -> Tensor:
    """models/gemma4.cpp: each layer adds its own embedding of the token."""
    g = b.graph
    assert b.per_layer is not None
    gate = g.same(b.project(block, "inp_gate", x))
    every = b.per_layer()
    b.per_layer = lambda: every
    out = b.norm(b.project(block, "proj", g.same(gate, g.view(every))))
    return g.same(x, out)


def _end(b: Builder, x: Tensor, outputs: Tensor | None) -> None:
    """The last norm, the logits, and the pooled embedding where one is asked for."""
    g, dims = b.graph, b.dims
    if outputs is not None:
        b.tokens = outputs.size_bytes // TOKEN_BYTES
        x = b.rows(dims.n_embd, x, outputs)
    if dims.architecture not in designs.WITHOUT_LOGITS:
        x = b.norm(x)
        logits = b.rows(dims.n_vocab, x)
        g.consume(g.same(logits))
    if not b.plan.embeddings:
        return
    if b.plan.pools_mean:
        means = g.input(FLOAT_BYTES * b.tokens * b.n_seqs)
        g.consume(g.op(FLOAT_BYTES * dims.n_embd * b.n_seqs, g.op(x.size_bytes, g.view(x)), means))
    else:
        g.consume(g.op(FLOAT_BYTES * dims.n_embd * b.n_seqs, x, g.input(TOKEN_BYTES * b.n_seqs)))
