"""What llama.cpp makes of the figures a context is asked for with."""

from __future__ import annotations

from dataclasses import replace

from support.context_plans import PLAN

from backends.footprint.plan import padded_context, reserved_outputs, reserved_tokens


def test_a_context_is_padded_to_256_cells() -> None:
    assert [padded_context(n_ctx) for n_ctx in (1, 256, 257, 1000)] == [256, 256, 512, 1024]


def test_a_unified_cache_is_one_for_all_and_others_have_a_part_for_each_sequence() -> None:
    assert (PLAN.streams, PLAN.cells) == (1, 1024)
    apart = replace(PLAN, n_ctx=4096, n_seq_max=5, unified=False)
    assert (apart.streams, apart.cells) == (5, 1024)


def test_a_windows_cache_holds_a_window_for_each_sequence_and_one_micro_batch() -> None:
    plan = replace(PLAN, n_ctx=32768)
    assert plan.window_cells(512) == 8 * 512 + 512
    assert replace(plan, unified=False).window_cells(512) == 512 + 512
    assert plan.window_cells(1 << 40) == 32768
    assert replace(plan, swa_full=True).window_cells(512) == 32768


def test_the_micro_batch_is_rounded_up_to_a_multiple_of_the_sequences() -> None:
    assert reserved_tokens(replace(PLAN, n_seq_max=200)) == 600
    assert reserved_tokens(replace(PLAN, n_ctx=200, n_seq_max=1)) == 200


def test_an_encoder_computes_its_batch_at_once_whatever_the_context() -> None:
    short = replace(PLAN, n_ctx=256, n_batch=2048)
    assert short.micro_batch == 256
    assert replace(short, causal=False).micro_batch == 512


def test_no_more_rows_come_out_than_are_asked_for() -> None:
    assert reserved_outputs(PLAN) == 8
    assert reserved_outputs(replace(PLAN, n_outputs_max=4096)) == 512
