"""How the compute buffer grows. That it is llama.cpp's is test_footprint_matrix.py's part."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from support.model_zoo import ZOO

from backends.footprint import dimensions
from backends.footprint.compute import ComputeBuffers, compute_buffers
from backends.gguf import read_header
from backends.llama_cpp.backend import context_plan
from backends.llama_cpp.settings import LlamaCppSettings


def buffers(path: Path, **settings: Any) -> ComputeBuffers:
    header = read_header(path)
    dims = dimensions(header)
    plan = context_plan(header, dims, LlamaCppSettings(path=path, **settings), embeddings=False)
    return compute_buffers(header, dims, plan)


def test_it_grows_with_the_micro_batch_and_hardly_with_the_context(tmp_path: Path) -> None:
    path = ZOO["llama"]().write(tmp_path / "llama.gguf")
    small, large = buffers(path, n_ubatch=128).whole, buffers(path, n_ubatch=512).whole
    assert 3 * small < large < 5 * small
    mask = 512 * (32768 - 8192) * 2
    assert buffers(path, n_ctx=32768).whole - buffers(path).whole == mask


def test_without_flash_attention_every_heads_scores_are_held(tmp_path: Path) -> None:
    path = ZOO["llama"]().write(tmp_path / "llama.gguf")
    assert buffers(path, flash_attn=False).whole > 4 * 32 * 8192 * 512


def test_what_stays_in_ram_under_a_gpu_is_the_inputs(tmp_path: Path) -> None:
    path = ZOO["llama"]().write(tmp_path / "llama.gguf")
    embedded, mask = 512 * 2048 * 4, 512 * 8192 * 2
    inputs = buffers(path).inputs
    assert embedded + mask < inputs < 2.1 * embedded + mask


def test_a_deep_model_needs_no_more_than_a_shallow_one(tmp_path: Path) -> None:
    shallow, deep = (ZOO["qwen3"](depth).write(tmp_path / f"{depth}.gguf") for depth in (6, 60))
    assert buffers(shallow) == buffers(deep)


def test_a_deep_model_of_many_kinds_of_blocks_is_laid_out_quickly(tmp_path: Path) -> None:
    path = ZOO["qwen3next"](96).write(tmp_path / "deep.gguf")
    header = read_header(path)
    dims = dimensions(header)
    plan = context_plan(header, dims, LlamaCppSettings(path=path), embeddings=False)
    start = time.process_time()
    compute_buffers(header, dims, plan)
    assert time.process_time() - start < 0.25
