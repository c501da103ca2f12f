from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.engine_driver import chat_tokens, load, settings_for

from backends.llama_cpp.engine.candidates import Candidates
from backends.llama_cpp.engine.model import Batch, Model
from backends.llama_cpp.engine.sampler import (
    ChainSampler,
    GreedySampler,
    Sampler,
    SamplingError,
    Stage,
    check_bias,
    choice_seed,
    make_sampler,
    merged_bias,
    stages,
)
from backends.llama_cpp.engine.types import Sampling


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    loaded = load(settings_for(n_ctx=256, n_parallel=1, prefix_slots=0))
    batch = Batch(64)
    batch.add_chunk(chat_tokens(loaded, "Name three animals."), 0, 0, outputs=1)
    assert loaded.decode(batch) == 0
    loaded.last_place = len(batch) - 1  # type: ignore[attr-defined]
    yield loaded
    loaded.close()


def sampler_for(
    model: Model,
    sampling: Sampling,
    *,
    prompt: tuple[int, ...] = (5,),
    seed: int = 7,
    candidates: Candidates | None = None,
) -> Sampler:
    return make_sampler(
        sampling,
        prompt,
        seed,
        eog_tokens=model.eog_tokens,
        suppressed=model.suppressed_tokens,
        candidates=candidates or Candidates(model.n_vocab),
        n_vocab=model.n_vocab,
        n_ctx=model.n_ctx,
    )


def draw(model: Model, sampling: Sampling, count: int = 1, **how: object) -> list[int]:
    sampler = sampler_for(model, sampling, **how)  # type: ignore[arg-type]
    tokens = []
    for _ in range(count):
        tokens.append(pick(model, sampler))
        sampler.accept(tokens[-1])
    sampler.close()
    return tokens


def pick(model: Model, sampler: Sampler) -> int:
    row = model.logits(0)
    before = row.copy()
    token = sampler.pick(row, model.ctx, model.last_place)  # type: ignore[attr-defined]
    assert (row == before).all(), "a pick leaves the logits alone"
    return token


def test_the_stages_are_in_llama_cpps_order() -> None:
    sampling = Sampling(temperature=0.7, repeat_penalty=1.1)
    assert stages(sampling, biased=True) == (
        Stage.LOGIT_BIAS,
        Stage.PENALTIES,
        Stage.TOP_K,
        Stage.TOP_P,
        Stage.MIN_P,
        Stage.TEMPERATURE,
        Stage.DIST,
    )


def test_stages_that_do_nothing_are_left_out() -> None:
    off = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, frequency_penalty=0.5, repeat_last_n=0)
    assert stages(off, biased=False) == (Stage.DIST,)


def test_greedy_keeps_only_what_moves_the_maximum() -> None:
    assert stages(Sampling(temperature=0), biased=False) == (Stage.GREEDY,)
    assert stages(Sampling(temperature=-1, presence_penalty=1.0), biased=True) == (
        Stage.LOGIT_BIAS,
        Stage.PENALTIES,
        Stage.GREEDY,
    )


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
    with pytest.raises(SamplingError, match="not a number"):
        check_bias({1: math.nan}, n_vocab=10)
    with pytest.raises(SamplingError, match="every token"):
        check_bias(dict.fromkeys(range(10), -math.inf), n_vocab=10)


def test_the_seeds_of_the_choices_follow_each_other_and_never_ask_for_chance() -> None:
    assert [choice_seed(41, index) for index in range(3)] == [41, 42, 43]
    assert choice_seed(2**32 - 2, 1) == 0
    assert choice_seed(-1, 0) < 2**32 - 1


def test_plain_greedy_needs_no_chain_and_agrees_with_one(model: Model) -> None:
    plain = sampler_for(model, Sampling(temperature=0))
    assert isinstance(plain, GreedySampler)
    chained = sampler_for(model, Sampling(temperature=0, presence_penalty=0.01), prompt=(5,))
    assert isinstance(chained, ChainSampler)
    assert pick(model, plain) == pick(model, chained)
    chained.close()
    chained.close()


def test_a_ban_moves_greedy_to_the_second_best(model: Model) -> None:
    best = draw(model, Sampling(temperature=0))[0]
    banned = Sampling(temperature=0, logit_bias=((best, -math.inf),))
    assert draw(model, banned)[0] == int(model.logits(0).argsort()[-2])
    assert draw(model, Sampling(temperature=0, logit_bias=((17, 1000.0),))) == [17]


def test_the_same_seed_draws_the_same_tokens_and_another_seed_others(model: Model) -> None:
    hot = Sampling(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0)
    first = draw(model, hot, 20, seed=1)
    assert draw(model, hot, 20, seed=1) == first
    assert draw(model, hot, 20, seed=2) != first


def test_top_k_one_is_greedy_at_any_temperature(model: Model) -> None:
    best = draw(model, Sampling(temperature=0))
    assert draw(model, Sampling(temperature=5.0, top_k=1), 5) == best * 5


def test_top_p_and_min_p_cut_the_tail(model: Model) -> None:
    ranked = model.logits(0).argsort()[::-1]
    hot = Sampling(temperature=1.5, top_k=0, top_p=0.5, min_p=0.0)
    assert set(draw(model, hot, 50)) <= set(ranked[:50].tolist())
    hot = Sampling(temperature=1.5, top_k=0, top_p=1.0, min_p=0.9)
    assert set(draw(model, hot, 50)) <= set(ranked[:3].tolist())


def test_penalties_see_the_prompt_and_what_was_sampled(model: Model) -> None:
    best = draw(model, Sampling(temperature=0))[0]
    penalty = Sampling(temperature=0, presence_penalty=50.0)
    assert draw(model, penalty, prompt=(5,))[0] == best
    assert draw(model, penalty, prompt=(5, best))[0] != best
    tokens = draw(model, penalty, 4, prompt=(5,))
    assert len(set(tokens)) == 4, "a token accepted on sampling is penalised the next time"


@pytest.mark.parametrize("penalty", [0.0, 50.0])
def test_what_is_picked_and_turned_down_leaves_no_trace(model: Model, penalty: float) -> None:
    sampler = sampler_for(model, Sampling(temperature=0, presence_penalty=penalty, logit_bias=((17, 0.5),)))
    best = pick(model, sampler)
    assert [pick(model, sampler) for _ in range(3)] == [best] * 3
    masked = model.logits(0).copy()
    masked[best] = -math.inf
    second = sampler.pick(masked, model.ctx, 0)
    assert second != best
    sampler.accept(second)
    assert pick(model, sampler) == best, "only what was accepted is penalised"
    sampler.close()


def test_every_thread_has_candidates_of_its_own(model: Model) -> None:
    hot = Sampling(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0)
    candidates = Candidates(model.n_vocab)
    alone = [draw(model, hot, 20, seed=seed) for seed in range(4)]
    together = [sampler_for(model, hot, seed=seed, candidates=candidates) for seed in range(4)]
    with ThreadPoolExecutor(4) as threads:
        drawn = list(threads.map(lambda sampler: [pick(model, sampler) for _ in range(20)], together))
    assert drawn == alone
    for sampler in together:
        sampler.close()


def test_penalties_forget_what_lies_beyond_their_window(model: Model) -> None:
    best = draw(model, Sampling(temperature=0))[0]
    prompt = (best, 5, 6, 7)
    assert draw(model, Sampling(temperature=0, presence_penalty=50.0, repeat_last_n=3), prompt=prompt)[0] == best
    assert draw(model, Sampling(temperature=0, presence_penalty=50.0, repeat_last_n=4), prompt=prompt)[0] != best
    assert draw(model, Sampling(temperature=0, presence_penalty=50.0, repeat_last_n=-1), prompt=prompt)[0] != best


def test_numbers_that_would_poison_the_logits_are_an_error_of_the_request(model: Model) -> None:
    with pytest.raises(SamplingError, match="repeat_penalty is 0"):
        sampler_for(model, Sampling(repeat_penalty=0.0))
    with pytest.raises(SamplingError, match="temperature is not a finite number"):
        sampler_for(model, Sampling(temperature=math.nan))
    with pytest.raises(SamplingError, match="presence_penalty"):
        sampler_for(model, Sampling(presence_penalty=math.inf))


def test_a_temperature_too_small_to_divide_by_is_greedy(model: Model) -> None:
    assert stages(Sampling(temperature=1e-30), biased=False) == (Stage.GREEDY,)
    assert draw(model, Sampling(temperature=1e-5)) == draw(model, Sampling(temperature=0))
