"""Patterns of tensor names that llama.cpp and the footprint read alike."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.blueprints import Blueprint
from support.llama_cpp_figures import ask_llama_cpp
from support.model_zoo import ZOO

from backends.base import Footprint
from backends.llama_cpp.backend import LlamaCppBackend
from backends.llama_cpp.settings import LlamaCppSettings
from backends.overrides import host_pattern

READ = [
    r"blk\.[0-2]\.ffn_(up|down)_exps",
    r"^token_embd\.weight$",
    r"ffn_.*?_exps|output",
    r"blk\.\d{1,2}\.(?!attn)",
    r"[^.]+\.\w+_exps\b",
]


@pytest.mark.parametrize("pattern", READ)
def test_common_patterns_are_taken_as_they_are(pattern: str) -> None:
    assert host_pattern(f"{pattern}=CPU") == pattern


def test_llama_cpp_reads_all_of_these(tmp_path: Path) -> None:
    path = ZOO["qwen3moe"](2).write(tmp_path / "moe.gguf")
    entries = [f"{pattern}=CPU" for pattern in READ]
    (answer,) = ask_llama_cpp([{"path": str(path), "settings": {"override_tensor": entries, "n_ctx": 256}}])
    assert answer["error"] is None


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("ffn_up", "should be PATTERN=CPU"),
        ("=CPU", "should be PATTERN=CPU"),
        ("ffn_up=CUDA0", r"kept in RAM \(CPU\) and nowhere else"),
        ("x" * 201 + "=CPU", "201 characters; 200 is the most"),
        ("(=CPU", "unterminated|missing"),
        (")=CPU", "unbalanced"),
        ("[z-a]=CPU", "bad character range"),
        ("*=CPU", "a part that not every reader knows"),
        ("a++=CPU", "a part that not every reader knows"),
        ("(?i)a=CPU", "a part that not every reader knows"),
        ("(?P<x>a)=CPU", "a part that not every reader knows"),
        (r"\Aa=CPU", "a part that not every reader knows"),
        (r"(a)\1=CPU", "a part that not every reader knows"),
        ("[]a]=CPU", "a part that not every reader knows"),
        ("a{,3}=CPU", "a part that not every reader knows"),
    ],
)
def test_others_are_refused_with_the_reason(entry: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LlamaCppSettings(path=Path("m.gguf"), override_tensor=(entry,))


def test_tensors_kept_in_ram_leave_their_layers_footprint(tmp_path: Path) -> None:
    def footprint(model: Blueprint, *entries: str) -> Footprint:
        path = model.write(tmp_path / "model.gguf")
        return LlamaCppBackend().inspect(LlamaCppSettings(path=path, override_tensor=entries)).footprint

    plain, kept = (footprint(ZOO["qwen3moe"](2), *entries) for entries in ((), (r"blk\.1\.ffn_.*_exps=CPU",)))
    assert kept.layer_weights_bytes[1] == plain.layer_weights_bytes[1] - plain.layer_expert_bytes[1]
    assert kept.weights_bytes == plain.weights_bytes
