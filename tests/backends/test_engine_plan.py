from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backends.llama_cpp.engine.plan import (
    MIN_CHUNK_TOKENS,
    TILE_TOKENS,
    pack_inputs,
    prompt_budget,
    share_batch,
    smoothed_rate,
)


def shares(pending: list[int], budget: int, *, n_batch: int | None = None, turns: list[int] | None = None) -> list[int]:
    """The plan; without `turns` the oldest has waited longest."""
    order = list(range(len(pending))) if turns is None else turns
    return share_batch(pending, order, budget if n_batch is None else n_batch, budget)


def test_decoding_sequences_come_first_and_prompts_share_the_rest() -> None:
    assert shares([1, 100, 1, 100], 130) == [1, 64, 1, 64]


def test_prompts_are_read_in_whole_tiles_as_far_as_there_are_tokens() -> None:
    assert shares([500, 500, 500], 256) == [128, 64, 64]
    assert shares([98, 98, 98], 255) == [98, 93, 64]


def test_a_short_prompt_leaves_its_share_to_the_long_one() -> None:
    assert shares([500, 10, 500], 138) == [64, 10, 64]
    assert shares([500, 10], 138) == [128, 10]


def test_a_long_prompt_does_not_take_the_whole_batch_from_one_that_came_later() -> None:
    assert shares([10_000, 20], 512) == [492, 20]


def test_who_was_read_longest_ago_comes_first() -> None:
    assert shares([500, 500, 500], 100, turns=[7, 5, 6]) == [0, 64, 36]


def test_the_prompt_budget_bounds_prompts_and_never_decoding_sequences() -> None:
    assert shares([1, 1, 100], 8, n_batch=64) == [1, 1, 8]
    assert shares([1, 1, 100], 0, n_batch=64) == [1, 1, 0]


def test_a_batch_too_small_for_all_decoding_sequences_serves_the_oldest() -> None:
    assert shares([1, 1, 1], 2) == [1, 1, 0]


def test_an_empty_plan_is_empty() -> None:
    assert shares([], 8) == []


@given(
    pending=st.lists(st.integers(1, 5_000), max_size=20),
    n_batch=st.integers(1, 4_096),
    budget=st.integers(1, 4_096),
)
def test_a_plan_keeps_its_bounds_and_wastes_nothing(pending: list[int], n_batch: int, budget: int) -> None:
    counts = shares(pending, budget, n_batch=n_batch)
    decoding = sum(count == 1 for count in pending)
    prompts = sum(count for count in pending if count > 1)
    room = min(budget, n_batch - min(decoding, n_batch))
    assert all(0 <= count <= wanted for count, wanted in zip(counts, pending, strict=True))
    assert sum(counts) == min(decoding, n_batch) + min(prompts, room)
    unfinished = [count for count, wanted in zip(counts, pending, strict=True) if wanted > 1 and count < wanted]
    assert not unfinished or max(unfinished) - min(unfinished) <= TILE_TOKENS


@given(lengths=st.lists(st.integers(2, 3_000), min_size=2, max_size=8), budget=st.integers(2, 300))
def test_prompts_are_read_in_turns(lengths: list[int], budget: int) -> None:
    """Whatever their lengths, none is ever more than a turn of the others ahead."""
    pending, turns, number = list(lengths), list(range(len(lengths))), len(lengths)
    unread_for = [0] * len(lengths)
    while any(count > 1 for count in pending):
        reading = [index for index, count in enumerate(pending) if count > 1]
        for index, count in enumerate(share_batch(pending, turns, budget, budget)):
            pending[index] -= count
            unread_for[index] = 0 if count else unread_for[index] + 1
            if count:
                turns[index], number = number, number + 1
        assert max(unread_for[index] for index in reading) < len(lengths)


def budget(tokens_per_s: float | None, *, decoding: int = 0, stall_s: float = 0.25, n_batch: int = 2048) -> int:
    return prompt_budget(tokens_per_s, stall_s, decoding=decoding, n_batch=n_batch, n_ubatch=min(512, n_batch))


def test_before_any_measurement_one_micro_batch_is_allowed() -> None:
    assert budget(None, decoding=3) == 512 - 3
    assert budget(None) == 512
    assert budget(None, n_batch=256) == 256


def test_a_slow_machine_gives_prompts_little_while_others_decode() -> None:
    assert budget(100.0, decoding=1) == 25 - 1
    assert budget(1.0, decoding=1) == MIN_CHUNK_TOKENS
    assert budget(1.0, decoding=1, n_batch=8) == 8


def test_a_batch_near_a_tile_or_more_fills_whole_tiles() -> None:
    assert budget(200.0, decoding=1) == 64 - 1
    assert budget(600.0, decoding=6) == 128 - 6
    assert budget(1000.0, decoding=20) == 256 - 20
    assert budget(1000.0, decoding=2, n_batch=200) == 192 - 2


def test_streams_that_may_wait_longer_let_prompts_go_faster() -> None:
    assert budget(200.0, decoding=2, stall_s=1.0) == 192 - 2
    assert budget(200.0, decoding=2, stall_s=0.0) == MIN_CHUNK_TOKENS


def test_a_fast_machine_gives_prompts_a_micro_batch_while_others_decode() -> None:
    assert budget(50_000.0, decoding=4) == 512 - 4


def test_prompts_alone_get_whole_micro_batches_up_to_the_batch() -> None:
    assert budget(700.0) == 1024
    assert budget(9_000.0) == 2048
    assert budget(3.0) == 512


def test_the_prompt_speed_follows_slowly_and_ignores_tiny_batches() -> None:
    assert smoothed_rate(None, 100, 0.5) == 200.0
    assert smoothed_rate(200.0, 100, 0.25) == 250.0
    assert smoothed_rate(200.0, 3, 0.25) == 200.0
    assert smoothed_rate(200.0, 100, 0.0) == 200.0


def test_inputs_are_packed_until_tokens_or_sequences_run_out() -> None:
    assert pack_inputs([10, 20, 30, 40], n_tokens_max=60, n_inputs_max=8) == 3
    assert pack_inputs([10, 20, 30, 40], n_tokens_max=1000, n_inputs_max=2) == 2
    assert pack_inputs([100, 1], n_tokens_max=60, n_inputs_max=8) == 1
    assert pack_inputs([], n_tokens_max=60, n_inputs_max=8) == 0
