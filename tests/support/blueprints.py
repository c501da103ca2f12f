"""Puts models together as sparse files: a header, and zeros that take no disk space.

llama.cpp reads such a header and makes a context (`no_alloc`), which is all that sizes depend on; none can answer.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass, field
from pathlib import Path

from support.gguf_files import packed_header, packed_key, packed_string, packed_tensor, smollm2_vocabulary

from backends.gguf_format import SCALAR_FORMATS, TENSOR_TYPES, ValueType

Value = str | bool | int | float | tuple[int, ...] | tuple[bool, ...]
_TYPE_NUMBERS = {kind.name: number for number, kind in TENSOR_TYPES.items()}
_ALIGNMENT = 32


@dataclass
class Blueprint:
    """One model being put together. Dimensions are elements, a matrix is (columns, rows) as in GGUF."""

    architecture: str
    n_embd: int
    n_layer: int
    n_head: int
    n_head_kv: int | tuple[int, ...]
    n_ff: int | tuple[int, ...]
    n_vocab: int = 4096
    head_k: int = 0
    head_v: int = 0
    n_ctx_train: int = 131072
    matrix_type: str = "q8_0"
    layer_norm: bool = False
    """Norms subtract the mean too."""
    metadata: dict[str, Value] = field(default_factory=dict)
    tensors: list[tuple[str, tuple[int, ...], str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.key("context_length", self.n_ctx_train)
        self.key("embedding_length", self.n_embd)
        self.key("block_count", self.n_layer)
        self.key("feed_forward_length", self.n_ff)
        if self.n_head:
            self.key("attention.head_count", self.n_head)
            self.key("attention.head_count_kv", self.n_head_kv)
        if self.head_k:
            self.key("attention.key_length", self.head_k)
            self.key("attention.value_length", self.head_v or self.head_k)
            self.key("rope.dimension_count", self.head_k)
        elif self.n_head:
            self.head_k = self.n_embd // self.n_head
            self.key("rope.dimension_count", self.head_k)
        self.head_v = self.head_v or self.head_k
        self.key(f"attention.layer_norm_{'' if self.layer_norm else 'rms_'}epsilon", 1e-5)

    def key(self, name: str, value: Value) -> None:
        self.metadata[f"{self.architecture}.{name}"] = value

    def matrix(self, name: str, *dims: int, kind: str = "") -> None:
        self.tensors.append((f"{name}.weight", dims, kind or self.matrix_type))

    def vector(self, name: str, *dims: int) -> None:
        self.tensors.append((name, dims, "f32"))

    def norm(self, name: str, size: int = 0, *, bias: bool = False) -> None:
        self.vector(f"{name}.weight", size or self.n_embd)
        if bias:
            self.vector(f"{name}.bias", size or self.n_embd)

    def heads_kv(self, layer: int) -> int:
        return self.n_head_kv if isinstance(self.n_head_kv, int) else self.n_head_kv[layer]

    def width(self, layer: int) -> int:
        return self.n_ff if isinstance(self.n_ff, int) else self.n_ff[layer]

    def edges(self, *, tied: bool = False, output_norm: str = "output_norm") -> Blueprint:
        """The token embedding, the last norm and the output matrix."""
        self.matrix("token_embd", self.n_embd, self.n_vocab)
        self.norm(output_norm)
        if not tied:
            self.matrix("output", self.n_embd, self.n_vocab)
        return self

    def attention(
        self,
        layer: int,
        *,
        bias: bool = False,
        output_bias: bool = False,
        qk_norm: bool = False,
        fused: bool = False,
        norm: bool = True,
        own_kv: bool = True,
    ) -> None:
        block, q = f"blk.{layer}", self.n_head * self.head_k
        k, v = self.heads_kv(layer) * self.head_k, self.heads_kv(layer) * self.head_v
        parts = [("attn_qkv", q + k + v)] if fused else [("attn_q", q), ("attn_k", k), ("attn_v", v)]
        if norm:
            self.norm(f"{block}.attn_norm")
        for name, rows in parts if own_kv else parts[:1]:
            self.matrix(f"{block}.{name}", self.n_embd, rows)
            if bias:
                self.vector(f"{block}.{name}.bias", rows)
        if qk_norm:
            self.norm(f"{block}.attn_q_norm", self.head_k)
            self.norm(f"{block}.attn_k_norm", self.head_k)
        self.matrix(f"{block}.attn_output", self.n_head * self.head_v, self.n_embd)
        if output_bias:
            self.vector(f"{block}.attn_output.bias", self.n_embd)

    def feed_forward(
        self, layer: int, *, gated: bool = True, bias: bool = False, norm: bool = True, suffix: str = "", width: int = 0
    ) -> None:
        block, n_ff = f"blk.{layer}", width or self.width(layer)
        if norm:
            self.norm(f"{block}.ffn_norm")
        for name in ("ffn_gate", "ffn_up") if gated else ("ffn_up",):
            self.matrix(f"{block}.{name}{suffix}", self.n_embd, n_ff)
            if bias:
                self.vector(f"{block}.{name}{suffix}.bias", n_ff)
        self.matrix(f"{block}.ffn_down{suffix}", n_ff, self.n_embd)
        if bias:
            self.vector(f"{block}.ffn_down{suffix}.bias", self.n_embd)

    def experts(self, layer: int, count: int, width: int, *, bias: bool = False, norm: bool = True) -> None:
        block = f"blk.{layer}"
        if norm:
            self.norm(f"{block}.ffn_norm")
        self.matrix(f"{block}.ffn_gate_inp", self.n_embd, count, kind="f32")
        for name, dims in (
            ("ffn_gate_exps", (self.n_embd, width, count)),
            ("ffn_up_exps", (self.n_embd, width, count)),
            ("ffn_down_exps", (width, self.n_embd, count)),
        ):
            self.matrix(f"{block}.{name}", *dims)
            if bias:
                self.vector(f"{block}.{name}.bias", *dims[1:])
        if bias:
            self.vector(f"{block}.ffn_gate_inp.bias", count)

    def experts_used(self, count: int, used: int, width: int) -> None:
        self.key("expert_count", count)
        self.key("expert_used_count", used)
        self.key("expert_feed_forward_length", width)

    def ssm(self, *, conv: int, inner: int, state: int, rank: int, groups: int = 0) -> None:
        self.key("ssm.conv_kernel", conv)
        self.key("ssm.inner_size", inner)
        self.key("ssm.state_size", state)
        self.key("ssm.time_step_rank", rank)
        if groups:
            self.key("ssm.group_count", groups)

    def mamba2(
        self, layer: int, *, conv: int, inner: int, state: int, rank: int, groups: int, norm: bool = True
    ) -> None:
        block, channels = f"blk.{layer}", inner + 2 * groups * state
        if norm:
            self.norm(f"{block}.attn_norm")
        self.matrix(f"{block}.ssm_in", self.n_embd, inner + channels + rank)
        self.vector(f"{block}.ssm_conv1d.weight", conv, channels)
        self.vector(f"{block}.ssm_conv1d.bias", channels)
        self.vector(f"{block}.ssm_dt.bias", rank)
        self.vector(f"{block}.ssm_a", 1, rank)
        self.vector(f"{block}.ssm_d", 1, rank)
        self.vector(f"{block}.ssm_norm.weight", inner // groups, groups)
        self.matrix(f"{block}.ssm_out", inner, self.n_embd)

    def write(self, path: Path) -> Path:
        """Write the header and make the file as long as its tensors say."""
        entries = [_packed_value("general.architecture", self.architecture), *_packed_vocabulary(self.n_vocab)]
        entries += [_packed_value(key, value) for key, value in self.metadata.items()]
        table, offset = [], 0
        for name, dims, kind in self.tensors:
            table.append(packed_tensor(name, dims, _TYPE_NUMBERS[kind], offset))
            size = TENSOR_TYPES[_TYPE_NUMBERS[kind]].row_bytes(dims[0])
            for dim in dims[1:]:
                size *= dim
            offset += -(-size // _ALIGNMENT) * _ALIGNMENT
        head = packed_header(entries, table)
        with path.open("wb") as file:
            file.write(head)
            file.truncate(len(head) + offset)
        return path


def _packed_value(key: str, value: Value) -> bytes:
    if isinstance(value, str):
        return packed_key(key, ValueType.STRING, packed_string(value))
    if isinstance(value, tuple):
        kind = ValueType.BOOL if isinstance(value[0], bool) else ValueType.UINT32
        items = struct.pack(f"<{len(value)}{SCALAR_FORMATS[kind]}", *value)
        return packed_key(key, ValueType.ARRAY, struct.pack("<IQ", kind, len(value)) + items)
    if isinstance(value, bool):
        return packed_key(key, ValueType.BOOL, struct.pack("<?", value))
    if isinstance(value, int):
        return packed_key(key, ValueType.UINT32, struct.pack("<I", value))
    return packed_key(key, ValueType.FLOAT32, struct.pack("<f", value))


@functools.cache
def _packed_vocabulary(n_vocab: int) -> tuple[bytes, ...]:
    """SmolLM2's first tokens, then names without meaning up to `n_vocab`."""
    known = smollm2_vocabulary(512)
    tokens = known.tokens + [f"<x{index}>" for index in range(n_vocab - len(known.tokens))]

    def strings(key: str, texts: list[str]) -> bytes:
        packed = b"".join(map(packed_string, texts))
        return packed_key(key, ValueType.ARRAY, struct.pack("<IQ", ValueType.STRING, len(texts)) + packed)

    return (
        _packed_value("tokenizer.ggml.model", "gpt2"),
        _packed_value("tokenizer.ggml.pre", "smollm"),
        strings("tokenizer.ggml.tokens", tokens),
        strings("tokenizer.ggml.merges", known.merges),
        _packed_value("tokenizer.ggml.bos_token_id", 1),
        _packed_value("tokenizer.ggml.eos_token_id", 2),
    )
