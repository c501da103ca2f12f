"""Mirostat on made-up distributions: what it draws from, and what it learns."""

from __future__ import annotations

import math
from collections import Counter

import llama_cpp.llama_cpp as llama
import numpy as np
import numpy.typing as npt
import pytest
from support.llama_chain import LlamaChain

from backends.llama_cpp.engine.mirostat import Mirostat

ZIPF = -1.1 * np.log(np.arange(1, 2001)).astype(np.float32)
IDS = np.arange(2000, dtype=np.int32)


def sampler(version: int, *, tau: float = 5.0, eta: float = 0.1, seed: int = 1) -> Mirostat:
    return Mirostat(version, tau=tau, eta=eta, seed=seed, n_vocab=2000)


def surprise(token: int, logits: npt.NDArray[np.float32]) -> float:
    probabilities = np.exp(logits.astype(np.float64))
    return -math.log2(probabilities[token] / probabilities.sum())


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("tau", [2.0, 4.0])
def test_the_surprise_of_the_text_comes_to_the_target(version: int, tau: float) -> None:
    mirostat = sampler(version, tau=tau)
    seen = []
    for _ in range(3000):
        token = mirostat.pick(IDS, ZIPF)
        mirostat.accept(token)
        seen.append(mirostat._mu)
    drawn = [mirostat.pick(IDS, ZIPF) for _ in range(2000)]
    kept = np.exp(ZIPF[sorted(set(drawn))].astype(np.float64))
    entropy = -sum(p * math.log2(p) for p in (kept / kept.sum()).tolist())
    assert entropy == pytest.approx(tau, abs=0.5)
    assert np.std(seen[1000:]) < 1


@pytest.mark.parametrize("version", [1, 2])
def test_the_first_draws_are_from_the_candidates_that_llama_cpp_draws_from(version: int) -> None:
    """Before anything is learnt both cut at the same place; the random numbers are others."""
    init = (
        llama.llama_sampler_init_mirostat(2000, 1, 1.5, 0.0, 100)
        if version == 1
        else llama.llama_sampler_init_mirostat_v2(1, 1.5, 0.0)
    )
    chain = LlamaChain(init)
    theirs = Counter(chain.pick(ZIPF) for _ in range(400))
    mirostat = sampler(version, tau=1.5, eta=0.0)
    ours = Counter(mirostat.pick(IDS, ZIPF) for _ in range(4000))
    assert set(ours) == set(theirs)
    assert ours[0] / 4000 == pytest.approx(theirs[0] / 400, abs=0.1)


@pytest.mark.parametrize("version", [1, 2])
def test_only_an_emitted_token_teaches_and_only_if_it_was_drawn(version: int) -> None:
    mirostat = sampler(version)
    start = mirostat._mu
    first = mirostat.pick(IDS, ZIPF)
    mirostat.pick(IDS, ZIPF)
    assert mirostat._mu == start, "a draw that is turned down leaves no trace"
    mirostat.accept(-1)
    assert mirostat._mu == start, "a token from elsewhere says nothing"
    mirostat.accept(first)
    assert mirostat._mu == start, "it is no longer the one that was drawn"
    token = mirostat.pick(IDS, ZIPF)
    mirostat.accept(token)
    assert mirostat._mu != start


@pytest.mark.parametrize("version", [1, 2])
def test_a_seed_gives_the_same_draws_again(version: int) -> None:
    def draws(seed: int) -> list[int]:
        mirostat = sampler(version, seed=seed)
        return [mirostat.pick(IDS, ZIPF) for _ in range(20)]

    assert draws(3) == draws(3)
    assert draws(3) != draws(4)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    "logits",
    [
        [0.0],
        [5.0, -500.0, -600.0],
        [1.0, 1.0, 1.0, 1.0],
        [300.0, 299.0, -1e6],
        [0.0] * 300,
    ],
)
@pytest.mark.parametrize(("tau", "eta"), [(0.0, 0.0), (5.0, 0.1), (100.0, 10.0)])
def test_the_oddest_distributions_and_settings_give_a_token(
    version: int, logits: list[float], tau: float, eta: float
) -> None:
    mirostat = sampler(version, tau=tau, eta=eta)
    row = np.array(logits, np.float32)
    for _ in range(300):
        token = mirostat.pick(np.arange(len(row), dtype=np.int32) + 7, row)
        assert 7 <= token < 7 + len(row)
        mirostat.accept(token)
    assert math.isfinite(mirostat._mu)


def test_the_candidates_may_come_in_any_order() -> None:
    shuffled = np.random.default_rng(1).permutation(2000)
    mirostat = sampler(1, tau=0.5, eta=0.0)
    drawn = {mirostat.pick(IDS[shuffled], ZIPF[shuffled]) for _ in range(50)}
    assert drawn <= {0, 1, 2}
