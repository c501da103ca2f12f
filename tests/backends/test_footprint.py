"""The footprint of the real model and of small dense ones, weights loaded for real, beside what llama.cpp logs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import pytest
from support.gguf_files import Shape, smollm2_path, write_model
from support.llama_cpp_figures import ask_llama_cpp

from backends.base import Footprint
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


def test_the_compute_buffer_is_within_one_per_cent(cases: list[Case]) -> None:
    errors = {case.name: case.ours.compute_bytes / MIB / case.theirs["compute"] - 1 for case in cases}
    print(f"compute buffer: worst {max(errors.values()):+.1%}, lowest {min(errors.values()):+.1%}")
    assert {name: error for name, error in errors.items() if abs(error) > 0.01} == {}


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


def test_block_sizes_are_those_of_the_installed_ggml() -> None:
    theirs = {number: (kind["block"], kind["bytes"]) for number, kind in ggml_types().items() if kind["block"]}
    assert {number: (kind.block_size, kind.block_bytes) for number, kind in TENSOR_TYPES.items()} == theirs


def ggml_types() -> dict[int, dict[str, int]]:
    """Block size and bytes of every type number, from the library itself; 0 for numbers out of use."""
    (answer,) = ask_llama_cpp([{"ggml_types": 43}])
    return {int(number): kind for number, kind in answer["types"].items()}
