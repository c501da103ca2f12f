from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any, get_args

import llama_cpp.llama_cpp as llama
import pytest
from gguf import GGMLQuantizationType

from backends.base import Offload
from backends.gguf_settings import CacheType
from backends.llama_cpp.engine.params import (
    BufferOverride,
    ModelFacts,
    ModelLoadError,
    context_params,
    keeps_prefixes,
    model_params,
    pooling_type,
    projector_device,
    usable_cores,
)
from backends.llama_cpp.settings import MAX_DRAFT_TOKENS, LlamaCppSettings

DENSE = ModelFacts()
SLIDING = ModelFacts(per_sequence_cache=True, sliding_window=True)
RECURRENT = ModelFacts(per_sequence_cache=True)


def settings(**keys: Any) -> LlamaCppSettings:
    return LlamaCppSettings(path=Path("model.gguf"), **keys)


def model_struct(offload: Offload = Offload(), portable: bool = False, **keys: Any) -> Any:  # noqa: B008 (frozen)
    return model_params(settings(**keys), offload, portable).struct


def context_struct(facts: ModelFacts = DENSE, n_threads: int = 3, **keys: Any) -> Any:
    return context_params(settings(**keys), facts, n_threads)


PLACED = Offload(n_gpu_layers=7, tensor_split=(5.0, 2.0), n_cpu_moe=2, main_gpu=1)
BY_HAND = {"n_gpu_layers": "all", "tensor_split": (3.0, 1.0), "n_cpu_moe": 5, "main_gpu": 0}


@pytest.mark.parametrize("keys", [{}, BY_HAND], ids=["auto", "by hand"])
def test_what_goes_where_is_placements_word_alone(keys: dict[str, Any]) -> None:
    """It has taken the settings into account, and reserved memory for just that."""
    params = model_params(settings(**keys), PLACED, portable=False)
    assert (params.struct.n_gpu_layers, params.struct.main_gpu) == (7, 1)
    assert list(params.struct.tensor_split[:3]) == [5.0, 2.0, 0.0]
    assert len(params.overrides) == 2 + 1


@pytest.mark.parametrize("keys", [{}, BY_HAND], ids=["auto", "by hand"])
def test_without_a_placement_everything_is_on_the_cpu(keys: dict[str, Any]) -> None:
    struct = model_struct(**keys)
    assert (struct.n_gpu_layers, struct.main_gpu) == (0, 0)
    assert not struct.tensor_split
    assert struct.tensor_buft_overrides is None


def test_more_shares_than_llama_cpp_has_devices_are_refused() -> None:
    with pytest.raises(ModelLoadError, match="tensor_split has 17 entries") as caught:
        model_struct(Offload(tensor_split=(1.0,) * 17))
    assert caught.value.invalid


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("none", llama.LLAMA_SPLIT_MODE_NONE),
        ("layer", llama.LLAMA_SPLIT_MODE_LAYER),
        ("row", llama.LLAMA_SPLIT_MODE_ROW),
    ],
)
def test_the_split_mode_reaches_the_struct(name: str, mode: int) -> None:
    assert model_struct(split_mode=name).split_mode == mode


@pytest.mark.parametrize(
    ("use_mmap", "use_mlock", "mode"),
    [
        (True, False, llama.LLAMA_LOAD_MODE_MMAP),
        (False, False, llama.LLAMA_LOAD_MODE_NONE),
        (False, True, llama.LLAMA_LOAD_MODE_MLOCK),
        (True, True, llama.LLAMA_LOAD_MODE_MMAP_MLOCK),
    ],
)
def test_mmap_and_mlock_together_are_llama_cpps_load_mode(use_mmap: bool, use_mlock: bool, mode: int) -> None:
    assert model_struct(use_mmap=use_mmap, use_mlock=use_mlock).load_mode == mode


def test_extra_buffer_types_are_off_by_setting_and_in_portable_mode() -> None:
    assert model_struct().use_extra_bufts is True
    assert model_struct(use_extra_bufts=False).use_extra_bufts is False
    assert model_struct(portable=True).use_extra_bufts is False


def test_n_cpu_moe_keeps_the_experts_of_the_first_blocks_in_ram() -> None:
    params = model_params(settings(), Offload(n_cpu_moe=2), False)
    overrides = ctypes.cast(params.struct.tensor_buft_overrides, ctypes.POINTER(BufferOverride))
    assert overrides[0].buffer_type
    assert overrides[2].pattern is None, "the list ends with a null"
    names = ["blk.0.ffn_up_exps.weight", "blk.1.ffn_gate_up_exps.weight", "blk.1.ffn_down_chexps.weight"]
    matched = [[bool(re.search(overrides[i].pattern.decode(), name)) for i in range(2)] for name in names]
    assert matched == [[True, False], [False, True], [False, True]]
    for other in ("blk.2.ffn_up_exps.weight", "blk.10.ffn_up_exps.weight", "blk.0.ffn_up.weight"):
        assert not any(re.search(overrides[i].pattern.decode(), other) for i in range(2))
    assert model_struct().tensor_buft_overrides is None


def test_tensors_named_by_a_pattern_stay_in_ram_before_experts_do() -> None:
    patterned = settings(override_tensor=("ffn_.*_shexp=CPU", "^output=CPU"))
    params = model_params(patterned, Offload(n_cpu_moe=1), False)
    overrides = ctypes.cast(params.struct.tensor_buft_overrides, ctypes.POINTER(BufferOverride))
    patterns = [overrides[index].pattern for index in range(4)]
    assert patterns == [b"ffn_.*_shexp", b"^output", rb"blk\.0\.ffn_(up|down|gate|gate_up)_(ch|)exps", None]
    assert all(overrides[index].buffer_type for index in range(3))


def test_a_device_nobody_has_is_named_in_the_error() -> None:
    with pytest.raises(ModelLoadError, match="no device named 'CUDA9'"):
        model_struct(Offload(1, ("CUDA9",)))


def test_without_layers_on_a_gpu_no_gpu_is_opened() -> None:
    params = model_params(settings(), Offload(), False)
    assert params.devices is not None
    assert list(params.devices) == [None]
    assert params.struct.devices == ctypes.addressof(params.devices)
    assert model_struct(Offload(n_gpu_layers=1)).devices is None, "all devices are llama.cpp's to choose"
    assert list(model_params(settings(), Offload(devices=("RAM", "CPU")), False).devices or ()) == [None]


def test_a_projector_goes_where_the_output_layer_goes() -> None:
    assert projector_device(settings(), Offload()) == (False, None)
    # Without names llama.cpp takes the GPU it finds, or none.
    assert projector_device(settings(), Offload(n_gpu_layers=7)) == (True, None)
    assert projector_device(settings(mmproj_offload=False), Offload(n_gpu_layers=7)) == (False, None)
    with pytest.raises(ModelLoadError, match="no device named 'CUDA7'"):
        projector_device(settings(), Offload(n_gpu_layers=7, devices=("CUDA7",)))


def test_every_context_key_reaches_the_struct() -> None:
    struct = context_struct(
        n_ctx=4096, n_parallel=3, prefix_slots=2, n_batch=1024, n_ubatch=256, n_threads=5, type_k="q8_0", type_v="bf16"
    )
    assert (struct.n_ctx, struct.n_seq_max, struct.n_batch, struct.n_ubatch) == (4096, 5, 1024, 256)
    assert (struct.n_threads, struct.n_threads_batch) == (5, 5)
    assert (struct.type_k, struct.type_v) == (8, 30)
    assert (struct.kv_unified, struct.embeddings) == (True, False)


@pytest.mark.parametrize("name", get_args(CacheType))
def test_every_cache_type_has_the_number_that_ggml_gives_it(name: str) -> None:
    struct = context_struct(type_k=name, type_v=name)
    assert struct.type_k == struct.type_v == GGMLQuantizationType[name.upper()]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("auto", llama.LLAMA_FLASH_ATTN_TYPE_AUTO),
        (True, llama.LLAMA_FLASH_ATTN_TYPE_ENABLED),
        (False, llama.LLAMA_FLASH_ATTN_TYPE_DISABLED),
    ],
)
def test_flash_attention_is_auto_on_or_off(value: Any, kind: int) -> None:
    assert context_struct(flash_attn=value).flash_attn_type == kind


def test_automatic_threads_are_the_cores_that_were_counted() -> None:
    assert context_struct(n_threads=6).n_threads == 6
    assert context_params(settings(n_threads="auto"), DENSE, 3).n_threads == 3


def test_only_one_row_of_logits_per_sequence_is_reserved() -> None:
    assert context_struct(n_parallel=8, spec_type="none").n_outputs_max == 16
    assert context_struct(n_parallel=1, prefix_slots=0, spec_type="none").n_outputs_max == 1


def test_guessed_tokens_have_rows_of_logits_where_the_cache_can_be_cut() -> None:
    assert context_struct(n_parallel=8).n_outputs_max == 16 + MAX_DRAFT_TOKENS
    assert context_struct(RECURRENT, n_parallel=8).n_outputs_max == 8


def test_every_running_sequence_fits_one_batch() -> None:
    assert context_struct(n_parallel=16, n_batch=4, n_ubatch=4).n_batch == 16


def test_caches_that_grow_per_sequence_get_no_retired_sequences_unasked() -> None:
    for facts in (SLIDING, RECURRENT):
        assert not keeps_prefixes(settings(), facts)
        assert context_struct(facts, n_parallel=3).n_seq_max == 3
        assert context_struct(facts, n_parallel=3).swa_full is False


def test_prefix_slots_that_are_asked_for_give_sliding_windows_a_full_cache() -> None:
    struct = context_struct(SLIDING, n_parallel=3, prefix_slots=2)
    assert (struct.n_seq_max, struct.swa_full) == (5, True)
    assert keeps_prefixes(settings(prefix_slots=2), SLIDING)
    assert not keeps_prefixes(settings(prefix_slots=2), RECURRENT), "a recurrent state cannot be cut"


def test_embeddings_are_batched_by_the_micro_batch_with_an_output_per_token() -> None:
    facts = ModelFacts(embeddings=True, pooling_type=llama.LLAMA_POOLING_TYPE_CLS)
    struct = context_struct(facts, n_ubatch=128)
    assert (struct.embeddings, struct.pooling_type) == (True, llama.LLAMA_POOLING_TYPE_CLS)
    assert (struct.n_batch, struct.n_ubatch, struct.n_outputs_max) == (128, 128, 128)
    small = context_struct(facts, n_ubatch=4, n_batch=4, n_parallel=8)
    assert small.n_seq_max <= small.n_outputs_max
    # 6 does not divide the batch that llama.cpp reserves a graph for; it would abort the process.
    odd = context_struct(facts, n_ctx=1024, n_parallel=6, n_ubatch=512)
    assert (odd.n_seq_max, odd.n_outputs_max) == (4, 512)


def test_pooling_comes_from_the_settings_then_the_file_then_mean() -> None:
    assert pooling_type(settings(pooling="last"), llama.LLAMA_POOLING_TYPE_CLS) == llama.LLAMA_POOLING_TYPE_LAST
    assert pooling_type(settings(), llama.LLAMA_POOLING_TYPE_CLS) == llama.LLAMA_POOLING_TYPE_CLS
    assert pooling_type(settings(), None) == llama.LLAMA_POOLING_TYPE_MEAN
    assert pooling_type(settings(), llama.LLAMA_POOLING_TYPE_NONE) == llama.LLAMA_POOLING_TYPE_MEAN


def test_hardware_threads_of_one_core_count_once() -> None:
    assert usable_cores([0, 1, 2, 3], {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}) == 2
    assert usable_cores([0, 2], {0: "0,2", 2: "0,2"}) == 1
    assert usable_cores([4, 5], {}) == 2
    assert usable_cores([], {}) == 1
