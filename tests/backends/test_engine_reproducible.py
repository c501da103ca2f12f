"""A seed gives the same answer whatever else the engine has to do: others in the batch, preemption, cached prefixes.

On a model of 32-bit floats, see `engine_driver.tiny_settings`: with other weights llama.cpp itself rounds by the size
of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from support.engine_driver import ENDLESS, Driver, chat_tokens, load, small_settings

from backends.llama_cpp.engine.model import Model
from backends.llama_cpp.engine.types import DEFAULT_STAGES, Generate, Sampling, Stage

HOT = {"temperature": 1.2, "seed": 77, "ignore_eos": True}
KINDS = {
    "default": Sampling(**HOT),  # type: ignore[arg-type]
    "whole vocabulary": Sampling(**HOT, top_k=0, top_p=0.99, min_p=0.0),  # type: ignore[arg-type]
    "penalties and dry": Sampling(**HOT, repeat_penalty=1.2, dry_multiplier=0.8, dry_penalty_last_n=-1),  # type: ignore[arg-type]
    "xtc and typical": Sampling(**HOT, xtc_probability=0.5, xtc_threshold=0.05, typical_p=0.9),  # type: ignore[arg-type]
    "dynamic temperature": Sampling(**HOT, dynatemp_range=0.8, top_n_sigma=2.0),  # type: ignore[arg-type]
    "mirostat 1": Sampling(**HOT, mirostat=1),  # type: ignore[arg-type]
    "mirostat 2": Sampling(**HOT, mirostat=2),  # type: ignore[arg-type]
    "adaptive": Sampling(**HOT, adaptive_target=0.2, samplers=(*DEFAULT_STAGES, Stage.ADAPTIVE_P)),  # type: ignore[arg-type]
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    loaded = load(small_settings(tmp_path_factory.mktemp("small")))
    yield loaded
    loaded.close()


def seeded(model: Model, sampling: Sampling) -> Generate:
    prompt = chat_tokens(model, "Tell me a story about two robots.")
    return Generate("seeded", prompt, sampling, max_tokens=100, n=2, logprobs=1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_answers_alone_and_in_a_crowd_that_does_not_fit(small: Model, kind: str) -> None:
    request = seeded(small, KINDS[kind])
    alone = Driver(small, 6).one(request)
    assert len(set(alone.texts.values())) == 2, "choices have seeds of their own"
    rng = Random(kind)
    driver = Driver(small, 6)
    waited = 0

    def steps(count: int) -> None:
        nonlocal waited
        for _ in range(count):
            driver.step()
            waiting = [sequence for sequence in driver.generator._roster.waiting if sequence.job.request is request]
            waited += any(len(sequence.tokens) > len(request.prompt) for sequence in waiting)

    def prompt() -> tuple[int, ...]:
        return tuple(rng.choices(range(20, 500), k=rng.randrange(5, 60)))

    # The same prompt is in the cache, others run, and more come and go.
    driver.one(Generate("before", request.prompt, ENDLESS, max_tokens=20))
    for number in range(3):
        driver.add(Generate(f"older{number}", prompt(), ENDLESS, max_tokens=rng.randrange(100, 130)))
        steps(rng.randrange(4))
    driver.add(request)
    for number in range(4):
        steps(rng.randrange(8))
        driver.add(Generate(f"newer{number}", prompt(), Sampling(), max_tokens=rng.randrange(5, 60)))
    while driver.generator.busy:
        steps(1)
    assert waited, "it was preempted"
    crowd = driver.answers
    assert crowd["seeded"].texts == alone.texts
    assert crowd["seeded"].tokens == alone.tokens


def test_without_a_seed_every_request_draws_its_own(small: Model) -> None:
    driver = Driver(small, 6)
    seeds = iter((1, 2))
    driver.generator._fresh_seed = lambda: next(seeds)
    plain = Sampling(temperature=1.2, ignore_eos=True)
    first, second = (driver.one(Generate(name, (5, 6, 7), plain, max_tokens=30)).text for name in "ab")
    assert first != second
