"""Which tensors go with a layer, which stay in RAM, which are there twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import pytest
from support.context_plans import PLAN
from support.gguf_files import Shape, write_model
from support.llama_cpp_figures import ask_llama_cpp
from support.model_zoo import ZOO

from backends.footprint import Weights, dimensions, weights
from backends.gguf import GgufHeader, read_header

MIB = 1024 * 1024
PLAIN = Shape(n_embd=256, n_head=4, n_head_kv=2, n_ff=768, n_layer=3, n_vocab=1024)
TIED = Shape(n_embd=256, n_head=4, n_head_kv=2, n_ff=768, n_layer=3, n_vocab=1024, tied=True)
TIED_Q4_0 = Shape(
    n_embd=256, n_head=4, n_head_kv=2, n_ff=768, n_vocab=1024, tied=True, weight_type=gguf.GGMLQuantizationType.Q4_0
)


def parts_of(path: Path, *patterns: str, use_extra_bufts: bool = True) -> tuple[GgufHeader, Weights]:
    header = read_header(path)
    plan = replace(PLAN, use_extra_bufts=use_extra_bufts, host_patterns=patterns)
    return header, weights(header, dimensions(header), plan)


def test_each_layer_holds_its_own_tensors_and_the_last_entry_the_output(tmp_path: Path) -> None:
    header, parts = parts_of(write_model(tmp_path / "plain.gguf", PLAIN))
    by_name = {tensor.name: tensor.size_bytes for tensor in header.tensors}
    assert len(parts.layers) == 4
    assert parts.layers[1] == sum(size for name, size in by_name.items() if name.startswith("blk.1."))
    assert parts.layers[3] == by_name["output.weight"] + by_name["output_norm.weight"]
    assert parts.host == by_name["token_embd.weight"]
    assert parts.experts == ()


def test_a_tied_embedding_counts_once_in_ram_and_again_on_another_device(tmp_path: Path) -> None:
    header, parts = parts_of(write_model(tmp_path / "tied.gguf", TIED))
    embedding = header.tensors[0]
    assert embedding.name == "token_embd.weight"
    assert parts.host == embedding.size_bytes
    assert parts.tied_output == embedding.size_bytes
    assert sum(parts.layers) + parts.host == sum(tensor.size_bytes for tensor in header.tensors)
    assert parts_of(write_model(tmp_path / "untied.gguf", PLAIN))[1].tied_output == 0


def test_a_tied_embedding_that_the_cpu_repacks_is_held_twice_in_ram(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tied.gguf", TIED_Q4_0)
    (header, repacked), (_, plain) = parts_of(path), parts_of(path, use_extra_bufts=False)
    embedding = header.tensors[0].size_bytes
    assert sum(repacked.layers) - sum(plain.layers) == embedding
    assert (plain.tied_output, repacked.tied_output) == (embedding, 0)
    (theirs,) = ask_llama_cpp([{"path": str(path), "settings": {"n_ctx": 256}, "real": True}])
    matrices = sum(tensor.size_bytes for tensor in header.tensors if len(tensor.dims) == 2)
    if theirs["repack"]:  # only where the CPU has kernels for it
        assert theirs["repack"] == pytest.approx(matrices / MIB, abs=0.0051)


def test_experts_are_counted_apart_and_shared_ones_are_none(tmp_path: Path) -> None:
    header, parts = parts_of(ZOO["glm4moe"]().write(tmp_path / "experts.gguf"))
    names = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
    sizes = {tensor.name: tensor.size_bytes for tensor in header.tensors}
    assert parts.experts[0] == 0  # a dense layer
    assert parts.experts[1] == sum(sizes[f"blk.1.{name}.weight"] for name in names)
    assert len(parts.experts) == len(parts.layers)
    assert all(expert <= layer for expert, layer in zip(parts.experts, parts.layers, strict=True))


def test_a_block_for_speculation_is_not_loaded(tmp_path: Path) -> None:
    _, parts = parts_of(ZOO["glm4moe"](4).write(tmp_path / "nextn.gguf"))
    assert parts.layers[3] == 0
    assert all(parts.layers[:3])


def test_tensors_that_match_a_pattern_are_held_in_ram(tmp_path: Path) -> None:
    path = ZOO["qwen3moe"]().write(tmp_path / "moe.gguf")
    (header, plain), (_, kept) = parts_of(path), parts_of(path, r"blk\.1\.ffn_.*_exps", r"^output\.weight")
    output = next(tensor.size_bytes for tensor in header.tensors if tensor.name == "output.weight")
    assert kept.host - plain.host == plain.experts[1] + output
    assert kept.layers[1] == plain.layers[1] - plain.experts[1]
    assert kept.experts == (plain.experts[0], 0, *plain.experts[2:])


def test_a_tied_output_that_is_held_in_ram_is_not_copied(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tied.gguf", TIED_Q4_0)
    _, parts = parts_of(path, "token_embd")
    assert parts.tied_output == 0
    assert sum(parts.layers) + parts.host == sum(tensor.size_bytes for tensor in read_header(path).tensors)


def test_nothing_is_lost_whatever_the_design(tmp_path: Path) -> None:
    for name, make in ZOO.items():
        header, parts = parts_of(make().write(tmp_path / "model.gguf"), use_extra_bufts=False)
        dims = dimensions(header)
        speculative = [f"blk.{il}." for il in range(dims.n_trunk, dims.n_layer)]
        loaded = [tensor for tensor in header.tensors if not tensor.name.startswith(tuple(speculative))]
        assert sum(parts.layers) + parts.host == sum(tensor.size_bytes for tensor in loaded), name
