"""The formulas against llama.cpp's own figures: models of many designs, contexts, cache types, depths.

The models' files are headers with real proportions and nothing behind them; llama.cpp lays everything out and
allocates nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable

import pytest
from support.memory_matrix import MIB, Row, rows

COMPUTE_TOLERANCE = 0.10
MEDIAN_TOLERANCE, WORST_TOLERANCE = 0.02, 0.05
LARGE_BYTES = 100 * MIB

pytestmark = pytest.mark.timeout(450)  # a third of a minute alone, minutes on a machine that is busy otherwise


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return rows(tmp_path_factory.mktemp("matrix"))


def worst(errors: Iterable[float]) -> float:
    return max(map(abs, errors))


def test_the_matrix_has_the_designs_it_should(matrix: list[Row]) -> None:
    wanted = {
        "llama", "mistral", "qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "gpt_oss", "deepseek2", "phi3", "mamba",
        "granite_hybrid", "bert", "command_r",
    }  # fmt: skip
    assert wanted <= {row.model for row in matrix}
    assert len(matrix) > 300


def test_weights_are_exact_in_every_row(matrix: list[Row]) -> None:
    assert [row.name for row in matrix if row.ours.weights_bytes != row.theirs["model"]] == []


def test_caches_and_recurrent_states_are_exact_in_every_row(matrix: list[Row]) -> None:
    assert [row.name for row in matrix if row.ours.kv_bytes != row.theirs["context"]] == []


def test_the_compute_buffer_is_within_a_tenth_in_every_row(matrix: list[Row]) -> None:
    errors = {row.name: row.compute_error for row in matrix}
    print(f"compute buffer: {max(errors.values()):+.2%} at most, {min(errors.values()):+.2%} at least")
    assert {name: error for name, error in errors.items() if abs(error) > COMPUTE_TOLERANCE} == {}


def test_totals_of_large_models_are_within_a_few_per_cent(matrix: list[Row]) -> None:
    errors = [row.total_error for row in matrix if row.their_total > LARGE_BYTES]
    print(f"totals of {len(errors)} rows: median {statistics.median(map(abs, errors)):.3%}, worst {worst(errors):.2%}")
    assert len(errors) > 250
    assert statistics.median(map(abs, errors)) <= MEDIAN_TOLERANCE
    assert worst(errors) <= WORST_TOLERANCE


def test_the_published_formula_that_looks_at_heads_alone_is_far_off_for_many_designs(matrix: list[Row]) -> None:
    errors = [row.ollama_bytes / row.their_total - 1 for row in matrix if row.their_total > LARGE_BYTES]
    print(f"Ollama's formula: median {statistics.median(map(abs, errors)):.1%}, worst {worst(errors):.0%}")
    assert worst(errors) > 10 * WORST_TOLERANCE
