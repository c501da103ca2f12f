"""Guessed tokens in the batches: the same answers in fewer batches, and a cache that holds only what was said."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from support.engine_driver import Driver, load, tiny_settings

from backends.llama_cpp.engine.model import Model
from backends.llama_cpp.engine.types import Finish, Generate, Piece, Sampling

FEW_TOKENS = ((40, 50.0), (41, 50.0), (42, 50.0))
"""With nothing else to say the random model repeats itself."""
GREEDY = Sampling(temperature=0.0, logit_bias=FEW_TOKENS, ignore_eos=True)
WARM = Sampling(temperature=0.5, logit_bias=FEW_TOKENS, ignore_eos=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    loaded = load(tiny_settings(tmp_path_factory.mktemp("guessing"), n_ctx=1024, n_parallel=4, n_ubatch=256))
    yield loaded
    loaded.close()


def guessing(model: Model, n_parallel: int = 4) -> Driver:
    """A driver for which every batch takes the same time, so that guesses always look worth a trial."""
    ticks = itertools.count()
    return Driver(model, n_parallel, now_s=lambda: float(next(ticks)))


def plain(model: Model, n_parallel: int = 4) -> Driver:
    """A driver whose clock stands still: nothing is measured, so nothing is guessed."""
    return Driver(model, n_parallel)


def repetitive(request_id: str = "a", *, seed: int = 1, **how: Any) -> Generate:
    """A prompt with an answer that is easy to guess."""
    rng = Random(seed)
    how.setdefault("sampling", GREEDY)
    how.setdefault("max_tokens", 80)
    return Generate(request_id, tuple(rng.randrange(20, 500) for _ in range(96)), **how)


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "sampled"])
def test_the_answer_is_the_same_in_fewer_batches(model: Model, sampling: Sampling) -> None:
    request = repetitive(sampling=sampling)
    without = plain(model)
    expected = without.one(request).text
    assert without.generator.guesses_tried == 0
    driver = guessing(model)
    answer = driver.one(request)
    assert answer.text == expected
    assert answer.tokens == {0: 80}
    assert driver.generator.guesses_right > 20
    assert driver.generator.batches == without.generator.batches - driver.generator.guesses_right


def test_several_streams_guess_at_once_and_answer_as_if_alone(model: Model) -> None:
    requests = [repetitive(f"r{seed}", seed=seed, max_tokens=60) for seed in range(4)]
    alone = [plain(model).one(request).text for request in requests]
    together = guessing(model)
    answers = together.run(*requests)
    assert [answers[request.request_id].text for request in requests] == alone
    assert together.generator.guesses_right > 0


def test_no_token_beyond_max_tokens_is_guessed_at(model: Model) -> None:
    for count in range(1, 12):
        driver = guessing(model)
        answer = driver.one(repetitive(max_tokens=count))
        assert answer.ended is not None
        assert answer.ended.completion_tokens == count
        assert answer.finishes == {0: Finish.LENGTH}


def test_a_stop_string_among_right_guesses_ends_the_choice_and_leaves_a_true_prefix(model: Model) -> None:
    text = plain(model).one(repetitive()).text
    stop = text[len(text) * 2 // 3 :][:4]
    driver = guessing(model)
    answer = driver.one(repetitive(stop=(stop,)))
    assert answer.text == text[: text.index(stop)]
    assert answer.finishes == {0: Finish.STOP}
    assert answer.ended is not None
    (kept,) = driver.generator._cache.retired
    assert kept.place.cached == len(kept.tokens) <= 96 + answer.ended.completion_tokens
    again = driver.one(repetitive("b", stop=(stop,)))
    assert again.text == answer.text


def test_a_seed_is_not_guessed_for_because_longer_batches_round_differently(model: Model) -> None:
    driver = guessing(model)
    driver.one(repetitive(sampling=replace(GREEDY, seed=5)))
    assert driver.generator.guesses_tried == 0


def test_nothing_is_guessed_where_the_settings_say_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    keys = {"n_ctx": 512, "n_parallel": 2, "spec_type": "none"}
    loaded = load(tiny_settings(tmp_path_factory.mktemp("none"), **keys))
    driver = guessing(loaded, 2)
    driver.one(repetitive())
    assert driver.generator.guesses_tried == 0
    loaded.close()


def test_guessing_stops_where_batches_take_longer_than_it_wins(model: Model) -> None:
    clock_s = 0.0

    def now_s() -> float:
        return clock_s

    driver = Driver(model, 1, now_s=now_s)
    decode = model.decode

    def slow(batch: Any) -> int:
        nonlocal clock_s
        clock_s += float(len(batch)) ** 2
        return decode(batch)

    model.decode = slow  # type: ignore[method-assign]
    try:
        driver.one(repetitive(max_tokens=200))
    finally:
        del model.decode
    assert 0 < driver.generator.guesses_tried < 40


@pytest.mark.parametrize("seed", range(6))
def test_whatever_comes_and_goes_the_cache_holds_what_was_said(model: Model, seed: int) -> None:
    """The driver compares the book of cells with llama.cpp's own after every batch."""
    rng = Random(seed)
    driver = guessing(model, rng.randrange(1, 5))
    requests = [
        repetitive(
            f"r{number}",
            seed=rng.randrange(3),
            max_tokens=rng.randrange(1, 120),
            n=rng.randrange(1, 3),
            cache_prompt=rng.random() < 0.8,
        )
        for number in range(8)
    ]
    waiting = list(requests)
    while waiting or driver.generator.busy:
        if waiting and rng.random() < 0.2:
            driver.add(waiting.pop())
        if rng.random() < 0.03:
            driver.cancel(f"r{rng.randrange(8)}")
        if driver.generator.busy:
            driver.step()
    for request in requests:
        answer = driver.answers[request.request_id]
        if len(answer.finishes) == request.n:
            assert answer.text == plain(model).one(request).text, f"seed {seed}, {request.request_id}"


def test_logprobs_are_told_of_guessed_tokens_as_of_all_others(model: Model) -> None:
    def told(driver: Driver) -> list[tuple[int, int, float]]:
        driver.add(repetitive(sampling=WARM, logprobs=2))
        entries = []
        while driver.generator.busy:
            for output in driver.step():
                entries += output.logprobs if isinstance(output, Piece) else ()
        return [(entry.chosen.token, entry.offset, round(entry.chosen.value, 3)) for entry in entries]

    driver = guessing(model)
    assert told(driver) == told(plain(model))
    assert driver.generator.guesses_right > 20
