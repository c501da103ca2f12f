"""Whole samplers on made-up logits and on a real model's: what each stage does, and that llama.cpp does the same."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import llama_cpp.llama_cpp as llama
import numpy as np
import numpy.typing as npt
import pytest
from support.engine_driver import chat_tokens, load, settings_for
from support.llama_chain import LlamaChain

from backends.llama_cpp.engine.batch import Batch
from backends.llama_cpp.engine.candidates import Candidates
from backends.llama_cpp.engine.model import Model
from backends.llama_cpp.engine.sampler import ChainSampler, GreedySampler, Sampler, make_sampler
from backends.llama_cpp.engine.stages import SamplingError
from backends.llama_cpp.engine.types import DEFAULT_STAGES, Sampling, Stage

Row = npt.NDArray[np.float32]
ANYTHING = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
"""Nothing is cut unless a test says so."""
LADDER = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.04, 0.01], np.float32))
"""Six tokens, the likeliest first."""


def sampler_for(
    sampling: Sampling,
    n_vocab: int = len(LADDER),
    *,
    prompt: Sequence[int] = (5,),
    seed: int = 7,
    suppressed: Sequence[int] = (),
    candidates: Candidates | None = None,
) -> Sampler:
    return make_sampler(
        sampling,
        prompt,
        seed,
        eog_tokens=(n_vocab - 1,),
        suppressed=suppressed,
        piece=lambda token: b"<%d>" % token,
        candidates=candidates or Candidates(n_vocab),
        n_vocab=n_vocab,
        n_ctx=256,
    )


def picks(sampler: Sampler, row: Row, count: int, *, accept: bool = False) -> list[int]:
    before = row.copy()
    tokens = []
    for _ in range(count):
        tokens.append(sampler.pick(row))
        if accept:
            sampler.accept(tokens[-1])
    assert (row == before).all(), "a pick leaves the logits alone"
    sampler.close()
    return tokens


def support(sampling: Sampling, row: Row = LADDER, **how: Any) -> set[int]:
    """Which tokens can come."""
    return set(picks(sampler_for(sampling, len(row), **how), row, 600))


def shares(sampling: Sampling, row: Row = LADDER, count: int = 4000) -> list[float]:
    seen = Counter(picks(sampler_for(sampling, len(row)), row, count))
    return [seen[token] / count for token in range(len(row))]


def test_without_any_stage_tokens_come_as_often_as_they_are_likely() -> None:
    drawn = shares(Sampling(temperature=1.0, **ANYTHING))
    assert drawn == pytest.approx(np.exp(LADDER).tolist(), abs=0.03)


def test_the_temperature_flattens_and_sharpens() -> None:
    hot, cold = shares(Sampling(temperature=3.0, **ANYTHING)), shares(Sampling(temperature=0.3, **ANYTHING))
    assert hot[0] < 0.3 < 0.6 < cold[0]
    expected = np.exp(LADDER / 3.0)
    assert hot == pytest.approx((expected / expected.sum()).tolist(), abs=0.03)


CUTS = [
    ({"top_k": 3}, {0, 1, 2}),
    ({"top_k": 1}, {0}),
    ({"top_p": 0.69}, {0, 1}),
    ({"top_p": 0.0}, {0}),
    ({"top_p": 0.0, "min_keep": 2}, {0, 1}),
    ({"min_p": 0.2}, {0, 1, 2, 3}),
    ({"min_p": 1.0}, {0}),
    ({"min_p": 1.0, "min_keep": 3}, {0, 1, 2}),
    # The entropy is 1.4 nats, as much as the surprise of a token of 0.24.
    ({"typical_p": 0.2}, {1}),
    ({"typical_p": 0.4}, {1, 2}),
    ({"top_n_sigma": 0.1}, {0}),
    ({"xtc_probability": 1.0, "xtc_threshold": 0.12}, {2, 3, 4, 5}),
    ({"xtc_probability": 1.0, "xtc_threshold": 0.5}, {0, 1, 2, 3, 4, 5}),
    ({"xtc_probability": 0.5, "xtc_threshold": 0.12}, {0, 1, 2, 3, 4, 5}),
    ({"xtc_probability": 1.0, "xtc_threshold": 0.12, "min_keep": 5}, {0, 1, 2, 3, 4, 5}),
    ({"logit_bias": ((0, -math.inf), (3, -math.inf))}, {1, 2, 4, 5}),
    ({"logit_bias": ((4, 100.0),)}, {4}),
    ({"ignore_eos": True}, {0, 1, 2, 3, 4}),
    ({"ignore_eos": True, "top_k": 2, "logit_bias": ((5, 100.0),)}, {0, 1}),
    ({"mirostat": 2, "mirostat_tau": 0.7, "mirostat_eta": 0.0}, {0}),
    ({"mirostat": 2, "mirostat_tau": 1.0, "mirostat_eta": 0.0}, {0, 1}),
    ({"mirostat": 1, "mirostat_tau": 0.0, "mirostat_eta": 0.0}, {0}),
]


@pytest.mark.parametrize(("settings", "expected"), CUTS)
def test_each_stage_leaves_the_tokens_it_is_meant_to(settings: dict[str, Any], expected: set[int]) -> None:
    assert support(Sampling(**{**ANYTHING, "temperature": 1.0, **settings})) == expected


def test_suppressed_tokens_never_come_whatever_their_bias() -> None:
    forced = Sampling(temperature=1.0, logit_bias=((0, 100.0),), **ANYTHING)
    assert support(forced, suppressed=(0, 1)) == {2, 3, 4, 5}
    assert support(Sampling(temperature=0), suppressed=(0, 1)) == {2}


def test_xtc_takes_the_likely_away_as_often_as_asked() -> None:
    drawn = shares(Sampling(temperature=1.0, xtc_probability=0.25, xtc_threshold=0.12, **ANYTHING))
    assert drawn[0] == pytest.approx(0.75 * 0.4, abs=0.03)


def test_the_dynamic_temperature_is_hot_where_the_model_is_unsure() -> None:
    dynamic = Sampling(temperature=1.0, dynatemp_range=0.9, **ANYTHING)
    sure = np.array([6.0, 0.0, 0.0, 0.0], np.float32)
    unsure = np.array([0.4, 0.0, 0.0, 0.0], np.float32)
    fixed = Sampling(temperature=1.0, **ANYTHING)
    assert shares(dynamic, sure)[0] > shares(fixed, sure)[0]
    assert shares(dynamic, unsure)[0] < shares(fixed, unsure)[0]


@pytest.mark.parametrize("exponent", [0.0, 1.0, 100.0])
def test_a_dynamic_temperature_next_to_zero_picks_the_likeliest(exponent: float) -> None:
    certain = np.array([120.0, 20.0, 0.0, -5.0], np.float32)
    dynamic = Sampling(temperature=0.5, dynatemp_range=0.5, dynatemp_exponent=exponent, **ANYTHING)
    assert support(dynamic, certain) == {0}


def test_adaptive_p_prefers_tokens_of_the_probability_it_aims_at() -> None:
    order = (*DEFAULT_STAGES, Stage.ADAPTIVE_P)
    aimed = Sampling(temperature=1.0, adaptive_target=0.15, adaptive_decay=0.0, samplers=order, **ANYTHING)
    drawn = shares(aimed)
    assert drawn[2] > 0.25 > drawn[0], "0.15 and 0.4 by themselves"


def test_the_order_of_the_stages_matters() -> None:
    first_hot = (Stage.TEMPERATURE, Stage.MIN_P)
    first_cut = (Stage.MIN_P, Stage.TEMPERATURE)
    settings = {"temperature": 5.0, "min_p": 0.5}
    assert support(Sampling(samplers=first_cut, **settings)) == {0, 1}  # type: ignore[arg-type]
    assert len(support(Sampling(samplers=first_hot, **settings))) > 3  # type: ignore[arg-type]


def test_penalties_behind_a_cut_see_only_what_is_left() -> None:
    behind = Sampling(temperature=1.0, top_k=2, presence_penalty=50.0, samplers=(Stage.TOP_K, Stage.PENALTIES))
    assert support(behind, prompt=(0,)) == {1}
    assert support(behind, prompt=(0, 1)) == {0, 1}
    before = Sampling(temperature=1.0, top_k=2, presence_penalty=50.0, samplers=(Stage.PENALTIES, Stage.TOP_K))
    assert support(before, prompt=(0, 1)) == {2, 3}


def test_penalties_see_the_prompt_and_what_was_accepted() -> None:
    penalty = Sampling(temperature=0, presence_penalty=50.0)
    assert picks(sampler_for(penalty), LADDER, 1) == [0]
    assert picks(sampler_for(penalty, prompt=(5, 0)), LADDER, 1) == [1]
    assert picks(sampler_for(penalty), LADDER, 4, accept=True) == [0, 1, 2, 3]


def test_penalties_forget_what_lies_beyond_their_window() -> None:
    prompt = (0, 5, 4, 3)
    for last_n, expected in ((3, 0), (4, 1), (-1, 1)):
        sampling = Sampling(temperature=0, presence_penalty=50.0, repeat_last_n=last_n)
        assert picks(sampler_for(sampling, prompt=prompt), LADDER, 1) == [expected]


def test_dry_keeps_a_text_from_repeating_itself() -> None:
    loop = (1, 2, 3, 0, 1, 2, 3)
    assert picks(sampler_for(Sampling(temperature=0), prompt=loop), LADDER, 1) == [0]
    dry = Sampling(temperature=0, dry_multiplier=5.0)
    assert picks(sampler_for(dry, prompt=loop), LADDER, 1) == [1]
    across = Sampling(temperature=0, dry_multiplier=5.0, dry_sequence_breakers=("<3>",))
    assert picks(sampler_for(across, prompt=loop), LADDER, 1) == [0], "nothing repeats since the breaker"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_banned_as_a_whole_is_an_error_and_is_left_as_it_was(temperature: float) -> None:
    row = np.full(6, -np.inf, np.float32)
    row[2] = 1.0
    sampler = sampler_for(Sampling(temperature=temperature, logit_bias=((2, -math.inf),)))
    with pytest.raises(SamplingError, match="all are banned"):
        sampler.pick(row)
    assert row[2] == 1.0


def test_greedy_needs_no_candidates_and_takes_the_first_of_equals() -> None:
    assert isinstance(sampler_for(Sampling(temperature=0)), GreedySampler)
    assert isinstance(sampler_for(Sampling(temperature=0, presence_penalty=1.0)), GreedySampler)
    assert isinstance(sampler_for(Sampling(temperature=0, xtc_probability=0.1)), ChainSampler)
    assert picks(sampler_for(Sampling(temperature=0)), np.zeros(6, np.float32), 1) == [0]


@pytest.mark.parametrize("settings", [{}, {"presence_penalty": 50.0}, {"xtc_probability": 1e-9}, {"mirostat": 2}])
def test_what_is_picked_and_turned_down_leaves_no_trace(settings: dict[str, Any]) -> None:
    sampler = sampler_for(Sampling(temperature=0, logit_bias=((0, 0.5),), **settings))
    assert [sampler.pick(LADDER) for _ in range(3)] == [0] * 3
    masked = LADDER.copy()
    masked[0] = -math.inf
    assert sampler.pick(masked) == 1
    sampler.accept(1)
    assert sampler.pick(LADDER) == 0, "only what was accepted counts"
    sampler.close()
    sampler.close()


def test_a_masked_row_is_sampled_as_it_is() -> None:
    masked = LADDER.copy()
    masked[[0, 2, 4]] = -math.inf
    for settings in ({}, ANYTHING, {"mirostat": 1}, {"mirostat": 2}, {"xtc_probability": 1.0, "xtc_threshold": 0.0}):
        sampling = Sampling(**{"temperature": 1.0, **settings})  # type: ignore[arg-type]
        assert support(sampling, masked) <= {1, 3, 5}


def test_xtc_without_a_threshold_keeps_the_least_likely_but_nothing_that_was_cut() -> None:
    settings = {"xtc_probability": 1.0, "xtc_threshold": 0.0, "top_n_sigma": 1.0}
    assert support(Sampling(temperature=1.0, **{**ANYTHING, **settings})) == {2}


def test_typical_p_is_not_thrown_off_by_what_was_cut_or_is_next_to_impossible() -> None:
    row = np.concatenate([LADDER, np.full(3, -200.0, np.float32)])
    settings = {**ANYTHING, "typical_p": 0.2, "temperature": 1.0}
    assert support(Sampling(**settings), row) == {1}
    assert support(Sampling(**settings, top_n_sigma=3.0), row) == {1}


def random_sampling(rng: random.Random, n_vocab: int) -> Sampling:
    """Settings from all over their ranges, the ends and what is next to nothing included."""
    tiny = 1e-45
    order = rng.sample(list(Stage), rng.randrange(len(Stage) + 1))
    banned = rng.sample(range(n_vocab), rng.randrange(n_vocab // 2))
    biased = [(rng.randrange(n_vocab), rng.choice((-99.0, 1.0, 100.0, 1e5))) for _ in range(rng.randrange(3))]
    return Sampling(
        temperature=rng.choice((0, 1e-30, 1.1e-5, 0.8, 1, 100)),
        dynatemp_range=rng.choice((0, 0, tiny, 0.8, 100)),
        dynatemp_exponent=rng.choice((0, 1, 100)),
        top_k=rng.choice((-1, 0, 1, 40, 200, 2**31 - 1)),
        top_p=rng.choice((0, tiny, 0.5, 0.95, 1)),
        min_p=rng.choice((0, tiny, 0.05, 1)),
        typical_p=rng.choice((0, tiny, 0.5, 1, 1)),
        top_n_sigma=rng.choice((-1, -1, tiny, 1, 100)),
        xtc_probability=rng.choice((0, 0, tiny, 0.5, 1)),
        xtc_threshold=rng.choice((0, 0.1, 0.5)),
        min_keep=rng.choice((0, 1, 30, 2**31 - 1)),
        repeat_penalty=rng.choice((0.01, 1, 1.1, 100)),
        repeat_last_n=rng.choice((-1, 0, 1, 64, 2**31 - 1)),
        frequency_penalty=rng.choice((-2, 0, 0, 2)),
        presence_penalty=rng.choice((-2, 0, 0, 2)),
        dry_multiplier=rng.choice((0, 0, tiny, 0.8, 100)),
        dry_base=rng.choice((1, 1.0000001, 1.75, 100)),
        dry_allowed_length=rng.choice((0, 1, 2, 2**31 - 1)),
        dry_penalty_last_n=rng.choice((-1, 0, 1, 64, 2**31 - 1)),
        mirostat=rng.choice((0, 0, 0, 1, 2)),
        mirostat_tau=rng.choice((0, tiny, 5, 100)),
        mirostat_eta=rng.choice((0, 0.1, 10)),
        adaptive_target=rng.choice((-1, 0, tiny, 0.3, 1)),
        adaptive_decay=rng.choice((0, 0.9, 0.99)),
        samplers=DEFAULT_STAGES if rng.random() < 0.5 else tuple(order),
        logit_bias=(*((token, -math.inf) for token in banned), *biased),
    )


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("n_vocab", [3, 300, 2000])
def test_any_settings_give_a_token_that_is_not_banned_on_any_logits(n_vocab: int, seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    noise = np.random.default_rng(seed)
    for _ in range(40):
        sampling = random_sampling(rng, n_vocab)
        banned = {token for token, value in sampling.logit_bias if value == -math.inf}
        row = (noise.standard_normal(n_vocab) * rng.choice((0, 1e-30, 3, 300, 1e6))).astype(np.float32)
        prompt = rng.choices(range(min(n_vocab, 5)), k=rng.randrange(1, 40))
        sampler = sampler_for(sampling, n_vocab, prompt=prompt)
        for _ in range(6):
            masked = row.copy()
            masked[noise.random(n_vocab) < 0.2] = -np.inf
            masked[next(token for token in range(n_vocab) if token not in banned)] = 0.0
            token = sampler.pick(masked)
            assert math.isfinite(masked[token]), sampling
            assert token not in banned, sampling
            sampler.accept(token)
        sampler.close()


# -- against llama.cpp, on the logits of a real model ------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    loaded = load(settings_for(n_ctx=256, n_parallel=1, prefix_slots=0))
    batch = Batch(64)
    batch.add_chunk(chat_tokens(loaded, "Name three animals."), 0, 0, outputs=1)
    assert loaded.decode(batch) == 0
    yield loaded
    loaded.close()


def theirs(sampling: Sampling, seed: int) -> LlamaChain:
    """The chain that llama-server would make of these settings."""
    keep = sampling.min_keep
    made = {
        Stage.TOP_N_SIGMA: lambda: llama.llama_sampler_init_top_n_sigma(sampling.top_n_sigma),
        Stage.TOP_K: lambda: llama.llama_sampler_init_top_k(sampling.top_k),
        Stage.TYPICAL_P: lambda: llama.llama_sampler_init_typical(sampling.typical_p, keep),
        Stage.TOP_P: lambda: llama.llama_sampler_init_top_p(sampling.top_p, keep),
        Stage.MIN_P: lambda: llama.llama_sampler_init_min_p(sampling.min_p, keep),
        Stage.XTC: lambda: llama.llama_sampler_init_xtc(sampling.xtc_probability, sampling.xtc_threshold, keep, seed),
        Stage.TEMPERATURE: lambda: llama.llama_sampler_init_temp_ext(
            sampling.temperature, sampling.dynatemp_range, sampling.dynatemp_exponent
        ),
    }
    samplers = [made[stage]() for stage in sampling.samplers if stage in made]
    return LlamaChain(*samplers, llama.llama_sampler_init_dist(seed))


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=1.5, top_k=200, top_p=0.99, min_p=0.0),
        Sampling(temperature=1.5, top_k=0, top_p=1.0, min_p=0.02),
        Sampling(temperature=1.5, top_k=0, top_p=1.0, min_p=0.5, min_keep=20),
        Sampling(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0),
        Sampling(temperature=0.9, top_k=0, top_p=0.9, min_p=0.0),
        Sampling(temperature=1.2, top_k=100, typical_p=0.6),
        Sampling(temperature=3.0, top_n_sigma=1.5, top_k=0, top_p=1.0, min_p=0.0),
        Sampling(temperature=1.3, xtc_probability=0.7, xtc_threshold=0.05),
        Sampling(temperature=1.0, dynatemp_range=0.7, dynatemp_exponent=1.2),
        Sampling(temperature=4.0, samplers=(Stage.TEMPERATURE, Stage.TOP_K, Stage.MIN_P)),
    ],
)
def test_a_seed_draws_the_tokens_that_llama_cpp_draws(model: Model, sampling: Sampling) -> None:
    row = model.logits(0)
    chain = theirs(sampling, 11)
    expected = [chain.pick(row) for _ in range(60)]
    ours = sampler_for(sampling, model.n_vocab, seed=11)
    assert picks(ours, row, 60) == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("settings", [{"top_k": 1}, {"min_p": 1.0}, {"top_p": 0.0}, {"top_n_sigma": 0.001}])
def test_what_keeps_one_token_is_greedy_at_any_temperature(model: Model, settings: dict[str, Any]) -> None:
    row = model.logits(0)
    best = int(row.argmax())
    assert picks(sampler_for(Sampling(temperature=5.0, **settings), model.n_vocab), row, 5) == [best] * 5


def test_another_seed_draws_other_tokens(model: Model) -> None:
    hot = Sampling(temperature=2.0, **ANYTHING)
    drawn = [picks(sampler_for(hot, model.n_vocab, seed=seed), model.logits(0), 20) for seed in (1, 2)]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize(
    ("sampling", "slow"),
    [
        (Sampling(), False),
        (Sampling(temperature=0), False),
        (Sampling(top_k=0, top_p=1.0), False),
        (Sampling(repeat_penalty=1.1, dry_multiplier=0.5), False),
        (Sampling(top_k=0), True),
        (Sampling(top_n_sigma=1.0), True),
        (Sampling(mirostat=2), True),
    ],
)
def test_a_sampler_is_slow_if_it_looks_at_a_whole_large_vocabulary(
    model: Model, sampling: Sampling, slow: bool
) -> None:
    assert sampler_for(sampling, model.n_vocab).is_slow is slow
    assert not sampler_for(sampling, 1000).is_slow


def test_samplers_in_several_threads_do_not_meet(model: Model) -> None:
    hot = Sampling(temperature=2.0, **ANYTHING)
    candidates = Candidates(model.n_vocab)
    rows = [model.logits(0).copy() for _ in range(4)]
    alone = [picks(sampler_for(hot, model.n_vocab, seed=seed), rows[seed], 20) for seed in range(4)]

    def draw(seed: int) -> list[int]:
        return picks(sampler_for(hot, model.n_vocab, seed=seed, candidates=candidates), rows[seed], 20)

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(draw, range(4))) == alone
