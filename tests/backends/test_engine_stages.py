"""Which stages a request's settings come to. Nothing here needs a model."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from backends.llama_cpp.engine.stages import (
    Last,
    Plan,
    SamplingError,
    check_bias,
    check_settings,
    choice_seed,
    merged_bias,
    plan,
    temperatures,
    window,
)
from backends.llama_cpp.engine.types import DEFAULT_STAGES, Sampling, Stage

EVERYTHING = Sampling(
    temperature=0.7,
    typical_p=0.9,
    top_n_sigma=1.0,
    xtc_probability=0.5,
    repeat_penalty=1.1,
    dry_multiplier=0.8,
)


def test_the_default_settings_take_four_stages() -> None:
    assert plan(Sampling()) == Plan((Stage.TOP_K, Stage.TOP_P, Stage.MIN_P, Stage.TEMPERATURE), Last.DIST)


def test_all_stages_are_in_llama_cpps_order_unless_another_is_asked_for() -> None:
    assert plan(EVERYTHING) == Plan(DEFAULT_STAGES, Last.DIST)
    assert DEFAULT_STAGES == (
        Stage.PENALTIES,
        Stage.DRY,
        Stage.TOP_N_SIGMA,
        Stage.TOP_K,
        Stage.TYPICAL_P,
        Stage.TOP_P,
        Stage.MIN_P,
        Stage.XTC,
        Stage.TEMPERATURE,
    )
    backwards = tuple(reversed(DEFAULT_STAGES))
    assert plan(replace(EVERYTHING, samplers=backwards)) == Plan(backwards, Last.DIST)


def test_a_stage_that_is_not_named_does_nothing_the_temperature_included() -> None:
    assert plan(replace(EVERYTHING, samplers=(Stage.MIN_P,))) == Plan((Stage.MIN_P,), Last.DIST)
    assert plan(Sampling(temperature=0, samplers=(Stage.TOP_K,))) == Plan((Stage.TOP_K,), Last.DIST)
    assert plan(Sampling(samplers=())) == Plan((), Last.DIST)


@pytest.mark.parametrize(
    "off",
    [
        {"temperature": 1.0},
        {"top_k": 0},
        {"top_k": -1},
        {"top_p": 1.0},
        {"min_p": 0.0},
        {"typical_p": 1.0},
        {"top_n_sigma": 0.0},
        {"xtc_probability": 0.0},
        {"xtc_threshold": 0.51},
        {"repeat_penalty": 1.0},
        {"repeat_last_n": 0},
        {"dry_multiplier": 0.0},
        {"dry_penalty_last_n": 0},
    ],
)
def test_a_stage_that_does_nothing_is_left_out(off: dict[str, float]) -> None:
    assert len(plan(replace(EVERYTHING, **off)).stages) == len(DEFAULT_STAGES) - 1  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["repeat_penalty", "frequency_penalty", "presence_penalty"])
def test_each_penalty_alone_switches_them_on(name: str) -> None:
    assert Stage.PENALTIES in plan(Sampling(**{name: 0.5})).stages  # type: ignore[arg-type]


def test_greedy_keeps_only_what_moves_the_maximum() -> None:
    assert plan(Sampling(temperature=0)) == Plan((), Last.GREEDY)
    assert plan(Sampling(temperature=-1, presence_penalty=1.0)) == Plan((Stage.PENALTIES,), Last.GREEDY)
    assert plan(Sampling(temperature=0, dry_multiplier=1.0, top_n_sigma=1.0)) == Plan((Stage.DRY,), Last.GREEDY)
    moved = plan(Sampling(temperature=0, xtc_probability=0.5))
    assert moved == Plan((Stage.TOP_K, Stage.TOP_P, Stage.MIN_P, Stage.XTC), Last.GREEDY)


def test_what_comes_after_a_temperature_of_zero_changes_nothing() -> None:
    order = (Stage.TEMPERATURE, Stage.PENALTIES, Stage.XTC)
    assert plan(replace(EVERYTHING, temperature=0, samplers=order)) == Plan((), Last.GREEDY)


def test_a_temperature_too_small_to_divide_by_is_greedy() -> None:
    assert plan(Sampling(temperature=1e-30)) == Plan((), Last.GREEDY)


def test_a_dynamic_temperature_around_zero_is_not_greedy() -> None:
    assert plan(Sampling(temperature=0, dynatemp_range=0.5)).last is Last.DIST
    assert plan(Sampling(temperature=1, dynatemp_range=0.5)).stages[-1] is Stage.TEMPERATURE


def test_the_coldest_of_a_dynamic_temperature_is_never_nothing() -> None:
    middle, reach = temperatures(Sampling(temperature=0.5, dynatemp_range=0.5))
    assert middle - reach == pytest.approx(1e-5)
    assert middle + reach == pytest.approx(1.0)
    assert temperatures(Sampling(temperature=0.8)) == (0.8, 0.0)


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_replaces_what_cuts_and_keeps_the_penalties(version: int) -> None:
    assert plan(replace(EVERYTHING, mirostat=version)) == Plan(
        (Stage.PENALTIES, Stage.DRY, Stage.TEMPERATURE), Last.MIROSTAT
    )
    assert plan(Sampling(mirostat=version, temperature=1)) == Plan((), Last.MIROSTAT)
    assert plan(Sampling(mirostat=version, temperature=1, dynatemp_range=0.5)).stages == (Stage.TEMPERATURE,)
    assert plan(Sampling(mirostat=version, temperature=0)) == Plan((), Last.GREEDY)


def test_adaptive_p_chooses_where_it_is_named_and_has_a_target() -> None:
    named = (*DEFAULT_STAGES, Stage.ADAPTIVE_P)
    assert plan(Sampling(samplers=named, adaptive_target=0.4)).last is Last.ADAPTIVE_P
    assert plan(Sampling(samplers=named)).last is Last.DIST
    assert plan(Sampling(adaptive_target=0.4)).last is Last.DIST


def test_edits_that_come_first_are_told_from_those_behind_a_cut() -> None:
    order = (Stage.DRY, Stage.TOP_K, Stage.PENALTIES)
    assert plan(replace(EVERYTHING, samplers=order)).first == (Stage.DRY,)
    assert plan(EVERYTHING).first == (Stage.PENALTIES, Stage.DRY)
    assert plan(replace(EVERYTHING, samplers=(Stage.PENALTIES,))).first == (Stage.PENALTIES,)


def test_ignoring_the_end_bans_every_end_token_whatever_its_bias() -> None:
    sampling = Sampling(ignore_eos=True, logit_bias=((2, 50.0), (9, 1.0), (9, 0.5)))
    assert merged_bias(sampling, eog_tokens=(2, 4), suppressed=(8,)) == {
        2: -math.inf,
        4: -math.inf,
        8: -math.inf,
        9: 1.5,
    }
    assert merged_bias(Sampling(), eog_tokens=(2, 4), suppressed=()) == {}


def test_a_bias_outside_the_vocabulary_or_on_everything_is_refused() -> None:
    with pytest.raises(SamplingError, match="token 10; the vocabulary has 10"):
        check_bias({10: 1.0}, n_vocab=10)
    with pytest.raises(SamplingError, match="token 1 is nan"):
        check_bias({1: math.nan}, n_vocab=10)
    with pytest.raises(SamplingError, match="token 1 is inf"):
        check_bias({1: math.inf}, n_vocab=10)
    with pytest.raises(SamplingError, match="every token"):
        check_bias(dict.fromkeys(range(10), -math.inf), n_vocab=10)
    check_bias({1: -math.inf, 2: -1e6, 3: 1e6}, n_vocab=10)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"repeat_penalty": 0.0}, "repeat_penalty is 0.0; it must be from 0.01 to 100"),
        ({"repeat_penalty": 1e-40}, "repeat_penalty is 1e-40"),
        ({"temperature": math.nan}, "temperature is nan; it must be at most 100"),
        ({"presence_penalty": math.inf}, "presence_penalty is inf"),
        ({"dynatemp_exponent": -1.0}, "dynatemp_exponent is -1.0; it must be from 0 to 100"),
        ({"dry_base": 0.5}, "dry_base is 0.5; it must be from 1 to 100"),
        ({"mirostat": 3}, "mirostat is 3; it must be from 0 to 2"),
        ({"mirostat_tau": math.inf}, "mirostat_tau is inf"),
        ({"adaptive_decay": 1.0}, "adaptive_decay is 1.0"),
        ({"min_keep": -1}, "min_keep is -1; it must be at least 0"),
        ({"samplers": (Stage.TOP_K, Stage.TOP_K)}, "samplers names a stage twice"),
    ],
)
def test_what_would_put_nonsense_into_llama_cpp_is_an_error_of_the_request(
    wrong: dict[str, object], message: str
) -> None:
    with pytest.raises(SamplingError, match=message):
        check_settings(Sampling(**wrong))  # type: ignore[arg-type]


def test_the_seeds_of_the_choices_follow_each_other_and_never_ask_for_chance() -> None:
    assert [choice_seed(41, index) for index in range(3)] == [41, 42, 43]
    assert choice_seed(2**32 - 2, 1) == 0
    assert choice_seed(-1, 0) < 2**32 - 1


def test_no_stage_looks_back_further_than_the_context() -> None:
    assert (window(-1, 512), window(64, 512), window(2**31 - 1, 512)) == (512, 64, 512)
