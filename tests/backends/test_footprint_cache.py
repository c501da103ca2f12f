"""Keys, values and states per block, by hand. That they are llama.cpp's is test_footprint_matrix.py's part."""

from __future__ import annotations

from dataclasses import replace

from support.context_plans import PLAN

from backends.footprint.cache import kv_layers
from backends.footprint.layers import Dimensions, Layer

LAYERS = (Layer(4, 2, 32, 32), Layer(4, 1, 32, 32))
DENSE = Dimensions(architecture="llama", n_embd=128, n_vocab=1000, n_ctx_train=4096, layers=LAYERS, n_trunk=2)


def test_a_cache_is_padded_to_256_cells_and_counted_per_layer() -> None:
    assert kv_layers(DENSE, PLAN) == (1024 * 2 * (64 + 64), 1024 * 2 * (32 + 32), 0)


def test_quantized_rows_are_counted_in_whole_blocks() -> None:
    plan = replace(PLAN, type_k="q8_0", type_v="q4_0")
    assert kv_layers(DENSE, plan)[0] == 1024 * (2 * 34 + 2 * 18)


def test_without_flash_attention_v_is_as_wide_as_the_widest_layer() -> None:
    plan = replace(PLAN, flash_attn=False)
    assert kv_layers(DENSE, plan)[1] == 1024 * 2 * (32 + 64)


def test_a_model_without_a_cache_has_none() -> None:
    assert kv_layers(DENSE, replace(PLAN, has_cache=False)) == (0, 0, 0)


def test_a_cache_that_is_not_unified_has_a_padded_part_for_each_sequence() -> None:
    plan = replace(PLAN, n_ctx=8 * 300, unified=False)
    assert kv_layers(DENSE, plan)[0] == 8 * 512 * 2 * (64 + 64)


def test_a_windowed_layer_keeps_its_window_and_a_micro_batch() -> None:
    dims = replace(DENSE, layers=(replace(LAYERS[0], windowed=True), LAYERS[1]), window=256, windowed_cache=True)
    plan = replace(PLAN, n_ctx=65536, n_seq_max=2)
    assert kv_layers(dims, plan) == ((2 * 256 + 512) * 256, 65536 * 128, 0)
    assert kv_layers(dims, replace(plan, swa_full=True)) == (65536 * 256, 65536 * 128, 0)


def test_a_layer_that_uses_anothers_cache_costs_nothing() -> None:
    dims = replace(DENSE, layers=(LAYERS[0], replace(LAYERS[1], owns_cache=False)))
    assert kv_layers(dims, PLAN)[1] == 0


def test_a_latent_cache_has_keys_only() -> None:
    dims = replace(DENSE, layers=(Layer(16, 1, 576, 512),) * 2, latent=True)
    assert kv_layers(dims, PLAN) == (1024 * 2 * 576, 1024 * 2 * 576, 0)


def test_an_indexer_keeps_one_more_key_per_token() -> None:
    dims = replace(DENSE, layers=(replace(LAYERS[0], indexed=True), LAYERS[1]), indexer_length=128, latent=True)
    assert kv_layers(dims, PLAN) == (1024 * 2 * (64 + 128), 1024 * 2 * 32, 0)


def test_states_are_kept_for_every_sequence_whatever_the_context() -> None:
    recurrent = replace(LAYERS[0], recurrent=True, attends=False, owns_cache=False)
    dims = replace(DENSE, layers=(recurrent, LAYERS[1]), conv_state=30, recurrent_state=400)
    for n_ctx in (512, 65536):
        assert kv_layers(dims, replace(PLAN, n_ctx=n_ctx))[0] == 8 * 4 * 430
