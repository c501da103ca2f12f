"""The rows in which the footprint's formulas stand beside llama.cpp's own figures, and Ollama's published formula.

Shared by the test that holds the formulas to their targets and by the benchmark that prints the table of the docs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.llama_cpp_figures import ask_llama_cpp
from support.model_zoo import ZOO

from backends.base import Footprint, InvalidModelError
from backends.footprint import dimensions
from backends.gguf import GgufHeader, read_header
from backends.llama_cpp.backend import LlamaCppBackend
from backends.llama_cpp.settings import LlamaCppSettings

MIB = 1024 * 1024
UNMAPPED = {"use_mmap": False}
"""llama.cpp gives its account of a model that is not mapped."""

SETTINGS: list[dict[str, Any]] = [
    {},
    {"n_ctx": 2048, "n_parallel": 1, "n_ubatch": 256},
    {"n_ctx": 32768, "n_parallel": 2},
    {"n_ctx": 131072, "n_parallel": 1},
    {"n_ctx": 32768, "type_k": "q8_0", "type_v": "q8_0"},
    {"n_ctx": 65536, "n_parallel": 8, "type_k": "q4_0", "type_v": "q4_0", "flash_attn": True},
    {"n_ctx": 16384, "type_k": "f32", "type_v": "f32"},
    {"n_ctx": 16384, "flash_attn": False},
    {"n_ctx": 4000, "n_parallel": 3, "type_k": "bf16", "type_v": "bf16", "flash_attn": False},
    {"n_ctx": 16384, "n_parallel": 8, "prefix_slots": 4},
    {"n_ctx": 8192, "n_parallel": 60, "spec_type": "none"},
    {"n_ctx": 8192, "embeddings": True, "pooling": "last"},
]
DEEP: list[dict[str, Any]] = [{}, {"n_ctx": 131072, "n_parallel": 1}]
"""For models of three times the depth."""


@dataclass(frozen=True)
class Row:
    """One model under one set of keys: our figures, and llama.cpp's, in bytes."""

    model: str
    n_layer: int
    settings: dict[str, Any]
    ours: Footprint
    theirs: dict[str, int]
    ollama_bytes: int

    @property
    def name(self) -> str:
        return f"{self.model}, {self.n_layer} layers, {self.settings}"

    @property
    def our_total(self) -> int:
        return self.ours.weights_bytes + self.ours.kv_bytes + self.ours.compute_bytes

    @property
    def their_total(self) -> int:
        return sum(self.theirs.values())

    @property
    def total_error(self) -> float:
        return self.our_total / self.their_total - 1

    @property
    def compute_error(self) -> float:
        return self.ours.compute_bytes / self.theirs["compute"] - 1


def rows(directory: Path) -> list[Row]:
    """Write the models into `directory` and ask both sides about all of them. Takes some tens of seconds."""
    cases = [(name, path, settings) for name, path in _written(directory) for settings in _settings_of(name, path)]
    answers = ask_llama_cpp([{"path": str(path), "settings": settings} for _, path, settings in cases])
    return [_row(name, path, settings, answer) for (name, path, settings), answer in zip(cases, answers, strict=True)]


def _written(directory: Path) -> Iterator[tuple[str, Path]]:
    for name, make in ZOO.items():
        yield name, make().write(directory / f"{name}.gguf")
        yield name, make(3 * make().n_layer).write(directory / f"{name}-deep.gguf")


def _settings_of(name: str, path: Path) -> Iterator[dict[str, Any]]:
    """Keys that the model can be run with. Encoders give embeddings whether they are asked to or not."""
    for settings in DEEP if path.stem.endswith("-deep") else SETTINGS:
        if name == "bert" and "type_k" in settings:
            continue
        yield settings | UNMAPPED


def _row(name: str, path: Path, settings: dict[str, Any], answer: dict[str, Any]) -> Row:
    assert answer["error"] is None, f"{name} {settings}: {answer['error']}"
    header = read_header(path)
    try:
        ours = LlamaCppBackend().inspect(LlamaCppSettings(path=path, **settings)).footprint
    except InvalidModelError as error:
        raise AssertionError(f"{name} {settings}: {error}") from error
    n_layer = dimensions(header).n_layer
    return Row(name, n_layer, settings, ours, answer["bytes"], ollama_formula(header, path, settings))


def ollama_formula(header: GgufHeader, path: Path, settings: dict[str, Any]) -> int:
    """What Ollama predicts for a model on one GPU (llm/llama_server.go PredictServerVRAM, read at fb30760, 2026-08-21):
    the file, and keys and values of the layer with the fewest heads in F16 for every layer."""
    dims = dimensions(header)
    head = dims.n_embd // dims.layers[0].n_head if dims.layers[0].n_head else 0
    fewest = min(layer.n_head_kv for layer in dims.layers)
    n_ctx = min(settings.get("n_ctx", 8192), dims.n_ctx_train)
    return path.stat().st_size + 2 * dims.n_layer * fewest * head * n_ctx * 2
