"""What a GPU has in hand of a part that lies in RAM, by hand for models of known shapes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.model_zoo import ZOO

from backends.base import Footprint
from backends.footprint import ContextPlan, dimensions, footprint
from backends.gguf import read_header

Q8_0 = 34 / 32
"""Bytes per weight."""
PLAN = ContextPlan(
    n_ctx=8192, n_seq_max=4, n_outputs_max=4, n_batch=2048, n_ubatch=512, type_k="f16", type_v="f16", flash_attn=True
)


def needs(path: Path, **plan: object) -> Footprint:
    header = read_header(path)
    return footprint(header, dimensions(header), replace(PLAN, **plan))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ZOO["llama"]().write(tmp_path_factory.mktemp("dense") / "dense.gguf")


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ZOO["qwen3moe"]().write(tmp_path_factory.mktemp("experts") / "experts.gguf")


def test_one_weight_at_a_time_is_copied_the_largest_counts(dense: Path) -> None:
    found = needs(dense)
    assert found.gpu_layer_copy_bytes == 2048 * 8192 * Q8_0
    assert (found.gpu_expert_copy_bytes, found.gpu_kept_copy_bytes) == (0, 0)


def test_of_experts_all_that_are_in_one_tensor_are_copied(experts: Path) -> None:
    found = needs(experts)
    assert found.gpu_expert_copy_bytes == found.gpu_layer_copy_bytes == 128 * 2048 * 768 * Q8_0


def test_small_batches_are_computed_where_the_weights_are(dense: Path) -> None:
    assert needs(dense, n_ubatch=28).gpu_layer_copy_bytes == 0
    assert needs(dense, n_ubatch=32).gpu_layer_copy_bytes > 0


def test_with_a_long_context_a_layers_cache_needs_more_room_than_its_weights(dense: Path) -> None:
    """llama-server on Vulkan0 had 120.01 MiB of compute buffers with all layers there, 204.25 with half of them."""
    found = needs(dense, n_ctx=65536, n_seq_max=1)
    assert found.layer_kv_bytes[0] == 128 * 2**20
    assert 204.25 <= (found.compute_bytes + found.gpu_layer_copy_bytes) / 2**20 <= 1.03 * 204.25


def test_what_the_settings_keep_in_ram_is_copied_even_if_all_else_is_on_gpus(dense: Path) -> None:
    found = needs(dense, host_patterns=(r"attn_q",))
    assert found.gpu_kept_copy_bytes == 2048 * 2048 * Q8_0
    assert found.gpu_layer_copy_bytes == 2048 * 8192 * Q8_0
