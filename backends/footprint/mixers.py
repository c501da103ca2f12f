"""How recurrent layers compute, tensor by tensor: Mamba, Mamba 2, short convolutions, gated delta nets.

Owns what each keeps alive. Designs without a recipe here are counted from above. Pure.
Sources: llama.cpp's src/models/mamba-base.cpp, lfm2.cpp, delta-net-base.cpp, qwen3next.cpp and qwen35.cpp;
llama-graph.cpp build_rs.
"""

from __future__ import annotations

from backends.footprint.blocks import FLOAT_BYTES, Builder, Rest, Shapes
from backends.footprint.graph import Tensor


def recurrent(b: Builder, block: Shapes, x: Tensor) -> Rest:
    """The mixer this block's tensors are those of, up to where its states are stored."""
    if "shortconv.conv.weight" in block:
        return _short_convolution(b, block, x)
    if "ssm_x.weight" in block:
        return _mamba(b, block, x)
    if "ssm_d" in block:
        return _mamba2(b, block, x)
    if "attn_gate.weight" in block and "ssm_conv1d.weight" in block:
        return _delta_net(b, block, x)
    return _unknown(b, block, x)


def _state(b: Builder, elements: int) -> Tensor:
    return b.graph.op(FLOAT_BYTES * elements * b.n_seqs)


def _fetched(b: Builder) -> Tensor:
    """The rolling state, which most architectures have fetched before."""
    if b.fetched is None:
        b.fetch()
    state, b.fetched = b.fetched, None
    assert state is not None
    return state


def _convolved(b: Builder, state: Tensor, x: Tensor, width: int) -> Tensor:
    """The rolling state before the new columns, of which the last are kept again; then the convolution."""
    g = b.graph
    columns = g.op(state.size_bytes + FLOAT_BYTES * width * b.tokens, g.view(state), x)
    g.consume(g.view(columns))
    return columns


def _scanned(b: Builder, inner: int, *sources: Tensor) -> Tensor:
    """Results and new states in one, the states then stored."""
    out = b.graph.op(FLOAT_BYTES * (inner * b.tokens + b.dims.recurrent_state * b.n_seqs), *sources)
    b.graph.consume(b.graph.view(out))
    return out


def _mamba(b: Builder, block: Shapes, x: Tensor) -> Rest:
    g = b.graph
    inner, low = block["ssm_out.weight"][0], block["ssm_dt.weight"][0]
    state = _fetched(b)
    both = b.project(block, "ssm_in", g.view(x))
    columns = _convolved(b, state, g.view(both), inner)
    inside = g.same(g.same(b.rows(inner, columns)))
    heads = g.view(inside)
    selected = b.project(block, "ssm_x", inside)
    step = g.same(b.rows(inner, b.rows(low, g.view(selected))))
    scanned = _scanned(b, inner, heads, step, g.view(selected), g.view(selected))

    def rest() -> Tensor:
        gate = b.rows(inner, g.view(both))
        y = g.op(gate.size_bytes, g.view(scanned), g.same(inside))
        return b.project(block, "ssm_out", g.op(gate.size_bytes, gate, y))

    return rest


def _mamba2(b: Builder, block: Shapes, x: Tensor) -> Rest:
    g = b.graph
    inner = block["ssm_out.weight"][0]
    channels, heads = block["ssm_conv1d.weight"][1], max(block["ssm_d"])
    state = _fetched(b)
    projected = b.project(block, "ssm_in", x)
    columns = _convolved(b, state, g.view(projected), channels)
    mixed = g.same(b.rows(channels, columns))
    mixed = g.same(mixed) if "ssm_conv1d.bias" in block else mixed
    head_views = g.view(mixed, FLOAT_BYTES * inner * b.tokens)
    step = g.same(b.rows(heads, g.view(projected)))
    scanned = _scanned(b, inner, head_views, step, g.view(mixed), g.view(mixed))

    def rest() -> Tensor:
        gate = b.rows(inner, g.view(projected))
        y = g.same(g.view(scanned, gate.size_bytes), g.op(gate.size_bytes, head_views))
        out = g.op(gate.size_bytes, gate, y)
        if "ssm_norm.weight" in block:
            out = b.norm(g.view(out))
        return b.project(block, "ssm_out", g.view(out))

    return rest


def _short_convolution(b: Builder, block: Shapes, x: Tensor) -> Rest:
    g, width = b.graph, block["shortconv.out_proj.weight"][0]
    state = _fetched(b)
    parts = b.project(block, "shortconv.in_proj", g.view(x))
    product = b.rows(width, g.view(parts), g.view(parts))
    columns = _convolved(b, state, g.view(product), width)

    def rest() -> Tensor:
        out = b.graph.same(g.view(parts, product.size_bytes), b.rows(width, columns))
        return g.view(b.project(block, "shortconv.out_proj", out))

    return rest


def _delta_net(b: Builder, block: Shapes, x: Tensor) -> Rest:
    g = b.graph
    channels, inner = block["ssm_conv1d.weight"][1], block["ssm_out.weight"][0]
    heads = max(block["ssm_a"])
    keys = (channels - inner) // 2
    conv = _fetched(b)
    columns = _convolved(b, conv, g.view(b.project(block, "attn_qkv", x)), channels)
    state = _state(b, b.dims.recurrent_state)
    mixed = g.same(b.rows(channels, columns))
    pairs_heads = "ssm_ba.weight" in block  # qwen3next, whose keys' heads are repeated for their values'
    queries_keys = []
    for _ in range(2):
        normed = g.same(b.rows(keys, g.view(mixed)))
        queries_keys.append(g.view(b.rows(inner, g.view(normed))) if pairs_heads and keys != inner else normed)
    values = g.view(mixed)
    if pairs_heads:
        both = b.project(block, "ssm_ba", x)
        alpha = g.view(g.same(g.same(g.same(b.rows(heads, g.view(both))))))
        beta = g.view(g.same(b.rows(heads, g.view(both))))
    else:
        alpha = g.view(g.same(g.same(g.same(g.view(b.rows(heads, x))))))
        beta = g.same(g.view(b.rows(heads, x)))
    out = _scanned(b, inner, *queries_keys, values, alpha, beta, g.view(state))

    def rest() -> Tensor:
        normed = g.same(b.rows(inner, g.view(out)))
        gate = g.same(g.view(b.project(block, "attn_gate", x)))
        return g.view(b.project(block, "ssm_out", g.view(g.same(normed, gate))))

    return rest


def _unknown(b: Builder, block: Shapes, x: Tensor) -> Rest:
    """Every matrix of the block gives a result that stays until the end, beside two copies of the states."""
    kept = [_state(b, 2 * (b.dims.conv_state + b.dims.recurrent_state))]
    kept += [b.rows(dims[1], x) for name, dims in block.items() if _is_matrix(dims) and not name.startswith("ffn_")]
    return lambda: b.rows(b.dims.n_embd, *kept)


def _is_matrix(dims: tuple[int, ...]) -> bool:
    return len(dims) == 2 and dims[1] > 1
