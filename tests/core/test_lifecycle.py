"""The table of worker states is the law, and its page is printed from it."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from swapd.core.lifecycle import (
    CAUSE_MEANING,
    MEANING,
    SLEEPER_CAUSE_MEANING,
    SLEEPER_MEANING,
    SLEEPER_TRANSITIONS,
    TRANSITIONS,
    Cause,
    ImpossibleTransitionError,
    SleeperCause,
    SleeperState,
    WorkerState,
    after,
    after_sleeping,
    as_markdown,
)

CELLS = list(product(WorkerState, Cause))
PAGE = Path(__file__).parents[2] / "docs" / "states.md"


@pytest.mark.parametrize(("state", "cause"), [cell for cell in CELLS if cell[1] not in TRANSITIONS[cell[0]]])
def test_an_impossible_cell_raises_and_names_both(state: WorkerState, cause: Cause) -> None:
    with pytest.raises(ImpossibleTransitionError, match=f"{state.value} cannot be {cause.value}"):
        after(state, cause)


def test_the_way_of_a_worker_that_serves_and_is_asked_to_leave() -> None:
    state = WorkerState.LAUNCHING
    seen = [state]
    for cause in (Cause.STARTED, Cause.LOADED, Cause.DRAIN_ASKED, Cause.STOP_ASKED, Cause.EXITED):
        state = after(state, cause)
        seen.append(state)
    assert seen == list(WorkerState)


def test_a_process_may_end_in_every_state_but_only_once() -> None:
    for state in WorkerState:
        if state is WorkerState.GONE:
            assert TRANSITIONS[state] == {}
        else:
            assert after(state, Cause.EXITED) is WorkerState.GONE


def test_news_that_was_on_its_way_does_not_revive_a_worker_that_stops() -> None:
    for cause in (Cause.STARTED, Cause.LOADED):
        assert after(WorkerState.STOPPING, cause) is WorkerState.STOPPING


def test_every_state_and_cause_is_explained() -> None:
    assert set(TRANSITIONS) == set(MEANING) == set(WorkerState)
    assert set(CAUSE_MEANING) == set(Cause)


def test_a_sleeper_may_end_in_every_state_and_nothing_wakes_one_that_leaves() -> None:
    for state in SleeperState:
        if state is SleeperState.GONE:
            assert SLEEPER_TRANSITIONS[state] == {}
        else:
            assert after_sleeping(state, SleeperCause.EXITED) is SleeperState.GONE
    for cause in (SleeperCause.WAKE_ASKED, SleeperCause.AWOKE, SleeperCause.END_ASKED):
        with pytest.raises(ImpossibleTransitionError, match="leaving"):
            after_sleeping(SleeperState.LEAVING, cause)
    assert set(SLEEPER_TRANSITIONS) == set(SLEEPER_MEANING) == set(SleeperState)
    assert set(SLEEPER_CAUSE_MEANING) == set(SleeperCause)


def test_the_page_is_what_the_table_prints() -> None:
    assert PAGE.read_text(encoding="utf-8") == as_markdown(), "run scripts/print-states > docs/states.md"
