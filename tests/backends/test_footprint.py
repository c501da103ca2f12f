"""The footprint formulas against what llama.cpp itself reports for the same file and settings."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import pytest
from support.gguf_files import Shape, smollm2_path, write_model
from support.llama_cpp_figures import ask_llama_cpp

from backends import footprint as formulas
from backends.base import Footprint, InvalidModelError
from backends.footprint import ContextPlan, Dimensions, dimensions, kv_layers, weights
from backends.gguf import read_header
from backends.gguf_format import TENSOR_TYPES
from backends.llama_cpp.backend import LlamaCppBackend
from backends.llama_cpp.settings import LlamaCppSettings

MIB = 1024 * 1024
PRINTED_MIB = 0.0051
"""llama.cpp prints two digits."""

Q4_0 = gguf.GGMLQuantizationType.Q4_0
Q8_0 = gguf.GGMLQuantizationType.Q8_0

SHAPES = {
    "grouped heads": Shape(n_embd=512, n_head=8, n_head_kv=2, n_ff=1792, n_layer=3, n_vocab=2048),
    "one kv head, tied": Shape(n_embd=448, n_head=7, n_head_kv=1, n_ff=2432, n_layer=3, n_vocab=2048, tied=True),
    "every head its own": Shape(n_embd=512, n_head=8, n_head_kv=8, n_ff=1376, n_layer=3, n_vocab=2048),
    "explicit key length": Shape(
        n_embd=256, n_head=4, n_head_kv=2, key_length=128, value_length=128, n_ff=1024, n_vocab=1024
    ),
    "heads per layer": Shape(
        n_embd=256, n_head=8, n_head_kv=(2, 4, 8, 1), n_ff=1024, n_layer=4, n_vocab=1024, architecture="deci"
    ),
    "tied q4_0": Shape(n_embd=256, n_head=4, n_head_kv=2, n_ff=768, n_vocab=1024, tied=True, weight_type=Q4_0),
    "tied q8_0": Shape(n_embd=256, n_head=4, n_head_kv=2, n_ff=768, n_vocab=1024, tied=True, weight_type=Q8_0),
}

SETTINGS: list[dict[str, Any]] = [
    {},
    {"n_ctx": 1000, "n_parallel": 3},
    {"n_ctx": 16384, "n_parallel": 8, "n_ubatch": 256},
    {"n_ctx": 4096, "n_parallel": 100},
    {"n_ctx": 4096, "n_batch": 128, "n_ubatch": 64, "prefix_slots": 0},
    {"type_k": "q8_0", "type_v": "q8_0"},
    {"type_k": "q4_0", "type_v": "q4_0", "flash_attn": True},
    {"type_k": "f32", "type_v": "f16"},
    {"type_k": "f16", "type_v": "iq4_nl"},
    {"flash_attn": False},
    {"spec_type": "none"},
    {"n_ctx": 4096, "n_parallel": 20, "spec_type": "none"},
    {"embeddings": True},
]


@dataclass(frozen=True)
class Case:
    """Ours beside llama.cpp's, in MiB."""

    name: str
    ours: Footprint
    theirs: dict[str, Any]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("footprint")
    made = {name: write_model(directory / f"{name}.gguf", shape) for name, shape in SHAPES.items()}
    return {"SmolLM2": smollm2_path()} | made


@pytest.fixture(scope="module")
def cases(models: dict[str, Path]) -> list[Case]:
    """Every model with every settings, context made but nothing allocated."""
    pairs = [(name, path, settings) for name, path in models.items() for settings in SETTINGS]
    answers = ask_llama_cpp([{"path": str(path), "settings": settings} for _, path, settings in pairs])
    return [
        Case(f"{name} {settings}", footprint_of(path, settings), answer)
        for (name, path, settings), answer in zip(pairs, answers, strict=True)
    ]


def footprint_of(path: Path, settings: dict[str, Any]) -> Footprint:
    return LlamaCppBackend().inspect(LlamaCppSettings(path=path, **settings)).footprint


def test_llama_cpp_makes_every_one_of_these_contexts(cases: list[Case]) -> None:
    assert [(case.name, case.theirs["error"]) for case in cases if case.theirs["error"]] == []


def test_the_kv_cache_is_exactly_what_llama_cpp_allocates(cases: list[Case]) -> None:
    wrong = [
        (case.name, case.ours.kv_bytes / MIB, case.theirs["kv"])
        for case in cases
        if abs(case.ours.kv_bytes / MIB - case.theirs["kv"]) > PRINTED_MIB
    ]
    assert wrong == []


def test_the_compute_buffer_is_within_a_few_per_cent_and_never_much_too_small(cases: list[Case]) -> None:
    errors = {case.name: case.ours.compute_bytes / MIB / case.theirs["compute"] - 1 for case in cases}
    print(f"compute buffer: worst {max(errors.values()):+.1%}, lowest {min(errors.values()):+.1%}")
    assert {name: error for name, error in errors.items() if not -0.01 <= error <= 0.07} == {}


def test_the_output_buffer_covers_every_row_that_can_be_asked_for(cases: list[Case]) -> None:
    for case in cases:
        ours, theirs = case.ours.output_bytes / MIB, case.theirs["output"]
        # A context starts with n_seq_max rows. It grows by those of guessed tokens, and for embeddings to a whole
        # micro-batch, when they are first asked for.
        exact = "'spec_type': 'none'" in case.name
        assert ours == pytest.approx(theirs, abs=PRINTED_MIB) if exact else theirs <= ours + PRINTED_MIB


def test_weights_are_exactly_what_llama_cpp_loads(models: dict[str, Path]) -> None:
    settings = {"n_ctx": 256, "use_extra_bufts": False}
    jobs = [{"path": str(path), "settings": settings, "real": True} for path in models.values()]
    for (name, path), theirs in zip(models.items(), ask_llama_cpp(jobs), strict=True):
        assert theirs["error"] is None
        assert footprint_of(path, settings).weights_bytes / MIB == pytest.approx(theirs["model"], abs=PRINTED_MIB), name


def test_a_tied_embedding_counts_once_in_ram_and_again_on_another_device(models: dict[str, Path]) -> None:
    header = read_header(models["one kv head, tied"])
    embedding = header.tensors[0]
    assert embedding.name == "token_embd.weight"
    parts = weights(header, 3, use_extra_bufts=True)
    assert parts.host == embedding.size_bytes
    assert parts.tied_output == embedding.size_bytes
    assert sum(parts.layers) + parts.host == sum(tensor.size_bytes for tensor in header.tensors)
    untied = weights(read_header(models["grouped heads"]), 3, use_extra_bufts=True)
    assert untied.tied_output == 0


def test_a_tied_embedding_that_the_cpu_repacks_is_held_twice_in_ram(models: dict[str, Path]) -> None:
    path = models["tied q4_0"]
    embedding = read_header(path).tensors[0].size_bytes
    plain = footprint_of(path, {"use_extra_bufts": False})
    repacked = footprint_of(path, {"use_extra_bufts": True})
    assert repacked.weights_bytes - plain.weights_bytes == embedding
    assert (plain.tied_output_bytes, repacked.tied_output_bytes) == (embedding, 0)
    job = {"path": str(path), "settings": {"n_ctx": 256}, "real": True}
    (theirs,) = ask_llama_cpp([job])
    matrices = sum(t.size_bytes for t in read_header(path).tensors if len(t.dims) == 2)
    if theirs["repack"]:  # only where the CPU has kernels for it
        assert theirs["repack"] == pytest.approx(matrices / MIB, abs=PRINTED_MIB)


def test_each_layer_holds_its_own_tensors_and_the_last_entry_the_output(models: dict[str, Path]) -> None:
    header = read_header(models["grouped heads"])
    by_name = {tensor.name: tensor.size_bytes for tensor in header.tensors}
    parts = weights(header, 3, use_extra_bufts=False)
    assert len(parts.layers) == 4
    assert parts.layers[1] == sum(size for name, size in by_name.items() if name.startswith("blk.1."))
    assert parts.layers[3] == by_name["output.weight"] + by_name["output_norm.weight"]
    assert parts.host == by_name["token_embd.weight"]


DENSE = Dimensions(
    n_layer=2,
    n_embd=128,
    n_vocab=1000,
    n_head=4,
    n_head_kv=(2, 1),
    key_length=32,
    value_length=32,
    n_ff=512,
    n_ctx_train=4096,
)
PLAN = ContextPlan(
    n_ctx=1000,
    n_seq_max=8,
    n_outputs_max=8,
    n_batch=512,
    n_ubatch=512,
    type_k="f16",
    type_v="f16",
    flash_attn=True,
)


def test_a_cache_is_padded_to_256_cells_and_counted_per_layer() -> None:
    assert kv_layers(DENSE, PLAN) == (1024 * 2 * (64 + 64), 1024 * 2 * (32 + 32), 0)


def test_quantized_rows_are_counted_in_whole_blocks() -> None:
    plan = dataclasses.replace(PLAN, type_k="q8_0", type_v="q4_0")
    assert kv_layers(DENSE, plan)[0] == 1024 * (2 * 34 + 2 * 18)


def test_without_flash_attention_v_is_as_wide_as_the_widest_layer() -> None:
    plan = dataclasses.replace(PLAN, flash_attn=False)
    assert kv_layers(DENSE, plan)[1] == 1024 * 2 * (32 + 64)


def test_a_model_without_a_cache_has_none() -> None:
    assert kv_layers(DENSE, dataclasses.replace(PLAN, has_cache=False)) == (0, 0, 0)


def test_the_micro_batch_is_rounded_up_to_a_multiple_of_the_sequences() -> None:
    assert formulas.reserved_tokens(dataclasses.replace(PLAN, n_seq_max=200)) == 600
    assert formulas.reserved_tokens(dataclasses.replace(PLAN, n_ctx=200, n_seq_max=1)) == 256


def test_experts_count_with_the_width_that_runs_for_one_token(tmp_path: Path) -> None:
    extra: dict[str, int | str] = {"llama.expert_used_count": 4, "llama.expert_feed_forward_length": 96}
    path = write_model(tmp_path / "experts.gguf", Shape(), metadata=extra)
    assert dimensions(read_header(path)).n_ff == 4 * 96


@pytest.mark.parametrize(
    ("shape", "metadata", "message"),
    [
        (Shape(n_layer=0), {}, r"llama\.block_count is 0, it should be between 1 and 512"),
        (Shape(n_ctx_train=0), {}, r"llama\.context_length is 0"),
        (Shape(), {"llama.attention.key_length": "wide"}, r"llama\.attention\.key_length should be a whole number"),
    ],
)
def test_dimensions_out_of_range_name_the_key(
    tmp_path: Path, shape: Shape, metadata: dict[str, int | str], message: str
) -> None:
    path = write_model(tmp_path / "odd.gguf", shape, metadata=metadata)
    with pytest.raises(InvalidModelError, match=message):
        dimensions(read_header(path))


def test_block_sizes_are_those_of_the_installed_ggml() -> None:
    theirs = {number: (kind["block"], kind["bytes"]) for number, kind in ggml_types().items() if kind["block"]}
    assert {number: (kind.block_size, kind.block_bytes) for number, kind in TENSOR_TYPES.items()} == theirs


def ggml_types() -> dict[int, dict[str, int]]:
    """Block size and bytes of every type number, from the library itself; 0 for numbers out of use."""
    (answer,) = ask_llama_cpp([{"ggml_types": 43}])
    return {int(number): kind for number, kind in answer["types"].items()}
