"""The candidates in llama.cpp's form, and the search for the largest logits, on made-up rows."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import llama_cpp.llama_cpp as llama
import numpy as np
import numpy.typing as npt
import pytest

from backends.llama_cpp.engine.candidates import Candidates, largest, ranked
from backends.llama_cpp.engine.stages import SamplingError

Row = npt.NDArray[np.float32]


def random_row(n_vocab: int, seed: int = 0) -> Row:
    return np.random.default_rng(seed).standard_normal(n_vocab).astype(np.float32) * 3


@pytest.mark.parametrize("n_vocab", [1, 2, 40, 41, 700, 5000, 49_157])
@pytest.mark.parametrize("count", [1, 3, 40, 900])
def test_the_largest_are_found_whatever_the_size_of_the_row(n_vocab: int, count: int) -> None:
    for seed in range(3):
        row = random_row(n_vocab, seed)
        found = largest(row, count)
        assert set(np.argsort(row)[-count:].tolist()) <= set(found.tolist())
        assert row[ranked(row, count)].tolist() == sorted(row.tolist(), reverse=True)[:count]


def test_equal_logits_are_all_found_and_the_first_of_them_ranked_first() -> None:
    row = np.zeros(5000, np.float32)
    assert len(largest(row, 40)) == 5000
    assert ranked(row, 3).tolist() == [0, 1, 2]


def test_what_is_banned_is_never_among_the_largest() -> None:
    row = np.full(5000, -np.inf, np.float32)
    row[[7, 4999]] = 1.0, 2.0
    assert ranked(row, 40).tolist() == [4999, 7]
    assert ranked(row[:10], 40).tolist() == [7]


def test_a_row_is_taken_whole_or_without_what_is_banned() -> None:
    candidates = Candidates(6)
    row = np.array([1, 5, 3, -2, 4, 0], np.float32)
    candidates.fill(row)
    ids, logits = candidates.view()
    assert (ids.tolist(), logits.tolist()) == ([0, 1, 2, 3, 4, 5], row.tolist())
    row[[0, 4]] = -np.inf
    candidates.fill(row)
    ids, logits = candidates.view()
    assert (ids.tolist(), logits.tolist()) == ([1, 2, 3, 5], [5, 3, -2, 0])
    candidates.fill(row, largest_only=2)
    assert candidates.view()[0].tolist() == [1, 2]
    candidates.fill(row, min_p=math.exp(-2.5))
    assert candidates.view()[0].tolist() == [1, 2]


def test_the_view_follows_a_beginning_that_llama_cpp_moved() -> None:
    candidates = Candidates(4)
    candidates.fill(np.array([9, 8.9, 8.8, -5], np.float32))
    sampler = llama.llama_sampler_init_xtc(1.0, 0.1, 0, 1)
    llama.llama_sampler_apply(sampler, candidates.pointer)
    llama.llama_sampler_free(sampler)
    assert candidates.view()[0].tolist() == [2, 3], "all likely tokens but the last of them are taken away"


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        ([-np.inf] * 4, "all are banned"),
        ([0.0, np.nan, 1.0, 2.0], "not numbers"),
        ([0.0, np.inf, 1.0, 2.0], "not numbers"),
    ],
)
def test_a_row_without_a_choice_is_an_error_and_no_abort(logits: list[float], message: str) -> None:
    with pytest.raises(SamplingError, match=message):
        Candidates(4).fill(np.array(logits, np.float32))


def test_every_thread_has_candidates_of_its_own() -> None:
    candidates = Candidates(1000)
    rows = [random_row(1000, seed) for seed in range(4)]

    def best(row: Row) -> set[int]:
        found = set()
        for _ in range(50):
            candidates.fill(row)
            ids, logits = candidates.view()
            found.add(int(ids[logits.argmax()]))
        return found

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(best, rows)) == [{int(row.argmax())} for row in rows]
