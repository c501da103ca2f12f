"""Guesses from what was read and said before: where they come from, and when they are worth trying."""

from __future__ import annotations

import random

import pytest

from backends.llama_cpp.engine.drafts import (
    FIRST_CHANCE,
    MATCH_TOKENS,
    MAX_SLOWDOWN,
    Lookup,
    Pace,
    draft_lengths,
    expected_tokens,
)


def test_what_followed_the_same_tokens_before_is_guessed() -> None:
    assert Lookup().guess([1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4], 3) == [5, 6, 7]


def test_nothing_is_guessed_where_too_few_tokens_agree() -> None:
    assert Lookup().guess([9, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4], 3) == []
    assert Lookup().guess([1] * (MATCH_TOKENS - 1), 3) == []
    assert Lookup().guess([], 3) == []


def test_a_medium_is_never_guessed() -> None:
    """Its tokens are negative: no sampler chooses them, and llama.cpp refuses a batch with one."""
    assert Lookup().guess([1, 2, 3, 4, 5, -7, -8, 6, 1, 2, 3, 4], 4) == [5]
    assert Lookup().guess([1, 2, 3, 4, -7, -8, 6, 1, 2, 3, 4], 4) == []


def test_the_last_place_counts() -> None:
    assert Lookup().guess([1, 2, 3, 4, 5, 1, 2, 3, 4, 6, 1, 2, 3, 4], 1) == [6]


def test_a_text_that_repeats_itself_is_guessed_up_to_its_end() -> None:
    assert Lookup().guess([7] * 9, 5) == [7]
    assert Lookup().guess([1, 2, 3, 4, 1, 2, 3, 4], 9) == [1, 2, 3, 4]


def test_looking_again_as_the_text_grows_finds_what_looking_once_does() -> None:
    rng = random.Random(3)
    tokens = [rng.randrange(3) for _ in range(400)]
    growing = Lookup()
    for length in range(len(tokens)):
        assert growing.guess(tokens[:length], 4) == Lookup().guess(tokens[:length], 4), length


def test_the_chance_follows_the_trials() -> None:
    lookup = Lookup()
    assert lookup.chance == FIRST_CHANCE
    for _ in range(20):
        lookup.note_trial(8, 8)
    assert lookup.chance > 0.99
    for _ in range(20):
        lookup.note_trial(8, 0)
    assert lookup.chance < 0.01


def test_the_chance_is_that_of_one_token_after_right_ones() -> None:
    lookup = Lookup()
    for _ in range(40):
        lookup.note_trial(8, 3)
    assert lookup.chance == pytest.approx(3 / 4, abs=0.01), "three of the four that were looked at were right"


def test_a_guess_that_was_not_tried_teaches_as_much_when_its_token_has_come() -> None:
    lookup = Lookup()
    lookup.note_untried(4, 7)
    lookup.guess([1, 2, 3, 4, 7], 3)
    assert lookup.chance > FIRST_CHANCE
    once = lookup.chance
    lookup.guess([1, 2, 3, 4, 7, 8], 3)
    assert lookup.chance == once
    lookup.note_untried(6, 1)
    lookup.guess([1, 2, 3, 4, 7, 8, 9], 3)
    assert lookup.chance < once


def paced(**seconds: float) -> Pace:
    pace = Pace()
    for name, value in seconds.items():
        pace.note(int(name[1:]), value)
    return pace


def test_the_pace_between_two_measured_lengths_is_on_the_line() -> None:
    assert Pace().expected_s(4) is None
    assert paced(n2=0.2, n4=0.4).expected_s(3) == pytest.approx(0.3)
    assert paced(n2=0.2).expected_s(1) == pytest.approx(0.2)
    assert paced(n2=0.2, n4=0.4).expected_s(4) == pytest.approx(0.4)
    assert paced(n4=0.4).expected_s(5) > 0.4


def test_the_pace_follows_the_machine() -> None:
    pace = paced(n1=0.1)
    for _ in range(30):
        pace.note(1, 0.2)
    assert pace.expected_s(1) == pytest.approx(0.2, rel=0.01)


def test_expected_tokens_add_up_over_all_outcomes() -> None:
    assert expected_tokens(0.0, 8) == 1
    assert expected_tokens(1.0, 8) == 9
    assert expected_tokens(0.5, 2) == 1.75


def test_good_guesses_are_tried_where_a_longer_batch_is_cheap() -> None:
    cheap = paced(n1=0.016, n9=0.020, n16=0.024)
    assert draft_lengths([(0.95, 15)], 1, cheap, 15) == [15]
    assert draft_lengths([(0.95, 3)], 1, cheap, 15) == [3]
    assert draft_lengths([(0.95, 15)], 1, cheap, 2) == [2]


def test_nothing_is_tried_that_costs_more_than_it_brings() -> None:
    dear = paced(n1=0.016, n2=0.032, n4=0.064, n8=0.128, n16=0.256)
    assert draft_lengths([(0.9, 15)], 1, dear, 15) == [0]
    cheap = paced(n1=0.016, n2=0.017, n16=0.030)
    assert draft_lengths([(0.01, 15)], 1, cheap, 15) == [0]


def test_nothing_is_tried_before_a_batch_was_measured() -> None:
    assert draft_lengths([(1.0, 15)], 1, Pace(), 15) == [0]


def test_a_batch_of_several_lasts_no_longer_than_the_others_can_bear() -> None:
    pace = paced(n4=0.040, n8=0.048, n12=0.056, n19=0.070)
    lengths = draft_lengths([(1.0, 15)], 4, pace, 15)
    expected_s = pace.expected_s(4 + lengths[0])
    assert lengths[0] > 0
    assert expected_s is not None
    assert expected_s <= 0.040 * MAX_SLOWDOWN
    assert draft_lengths([(1.0, 15)], 4, paced(n4=0.040, n5=0.060), 15) == [0]


def test_the_room_is_shared_by_all_sequences() -> None:
    free = paced(n1=0.016, n40=0.016)
    assert draft_lengths([(1.0, 10), (1.0, 10), (1.0, 10)], 3, free, 15) == [10, 5, 0]
