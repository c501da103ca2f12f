"""Who does which part of a step's work, and what comes of a part that fails."""

from __future__ import annotations

import threading
import time

import pytest

from backends.llama_cpp.engine.crew import MAX_MEMBERS, Crew


def where(_task: int) -> str:
    return threading.current_thread().name


def test_results_come_in_order_whoever_made_them() -> None:
    crew: Crew[int, int] = Crew(3, lambda task: task * task)
    long = [place % 4 != 0 for place in range(20)]
    assert crew.do(range(20), long) == [place * place for place in range(20)]


def test_long_tasks_meet_in_several_threads_and_short_ones_stay_here() -> None:
    meeting = threading.Barrier(4)

    def work(long: bool) -> str:
        if long:
            meeting.wait(10)
        return threading.current_thread().name

    crew: Crew[bool, str] = Crew(4, work)
    tasks = [True, False, True, True, False, True]
    names = crew.do(tasks, tasks)
    assert len({names[0], names[2], names[3], names[5]}) == 4
    assert names[1] == names[4] == threading.current_thread().name


@pytest.mark.parametrize(
    ("members", "long"), [(1, [True] * 8), (4, [True, True, True, False, False]), (4, [False] * 8), (4, [])]
)
def test_no_thread_is_made_for_one_member_or_few_long_tasks(members: int, long: list[bool]) -> None:
    before = threading.active_count()
    names = Crew(members, where).do(range(len(long)), long)
    assert set(names) <= {threading.current_thread().name}
    assert threading.active_count() == before


def test_a_crew_has_its_bound() -> None:
    names = Crew(1000, where).do(range(100), [True] * 100)
    assert len(set(names)) <= MAX_MEMBERS


@pytest.mark.parametrize("broken", range(4))
def test_a_failure_anywhere_is_raised_when_nobody_is_at_work_any_more(broken: int) -> None:
    at_work = 0

    def work(task: int) -> None:
        nonlocal at_work
        at_work += 1
        if task == broken:
            at_work -= 1
            raise ZeroDivisionError
        time.sleep(0)
        at_work -= 1

    with pytest.raises(ZeroDivisionError):
        Crew(2, work).do(range(4), [True] * 4)
    assert at_work == 0


def test_a_thread_that_comes_late_holds_nobody_up() -> None:
    """All threads but the caller's are still at another crew's work."""
    crew: Crew[int, str] = Crew(2, where)
    crew.do(range(4), [True] * 4)
    release = threading.Event()
    busy = crew._executor().submit(release.wait, 30)
    assert crew.do(range(4), [True] * 4) == [threading.current_thread().name] * 4
    release.set()
    busy.result()
