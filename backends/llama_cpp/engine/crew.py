"""Work of one step that can be done for several sequences at once: by this thread and a few others.

Owns the threads, made when they are first needed. Worth it only for what takes long outside of Python: threads take
turns at everything else, and a thread must be woken, perhaps on a core where another still spins.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Generic, TypeVar

Task = TypeVar("Task")
Done = TypeVar("Done")

MAX_MEMBERS = 8
WORTH_WAKING = 4
"""Long tasks. Waking a thread takes up to half a millisecond, as long as the shortest of them."""


class Crew(Generic[Task, Done]):
    """At most `members` threads that do `work`, the caller's among them."""

    def __init__(self, members: int, work: Callable[[Task], Done]) -> None:
        self._members = max(1, min(members, MAX_MEMBERS))
        self._work = work
        self._others: ThreadPoolExecutor | None = None

    def do(self, tasks: Sequence[Task], long: Sequence[bool]) -> list[Done]:
        """The results in order. `long` says which tasks are worth another thread; the caller does all others.

        Whoever is free takes the next long one, so that a thread that wakes up late holds nobody up. An exception of
        any task is raised, once no thread is at work any more.
        """
        parts = min(self._members, sum(long))
        if parts < 2 or sum(long) < WORTH_WAKING:
            return [self._work(task) for task in tasks]
        done: dict[int, Done] = {}
        waiting = deque(place for place, one in enumerate(long) if one)

        def help_out() -> None:
            while waiting:
                try:
                    place = waiting.popleft()
                except IndexError:
                    return
                done[place] = self._work(tasks[place])

        others = [self._executor().submit(help_out) for _ in range(parts - 1)]
        try:
            help_out()
            done |= {place: self._work(tasks[place]) for place, one in enumerate(long) if not one}
        finally:
            waiting.clear()
            began = [other for other in others if not other.cancel()]
            wait(began)
        for other in began:
            other.result()
        return [done[place] for place in range(len(tasks))]

    def _executor(self) -> ThreadPoolExecutor:
        if self._others is None:
            self._others = ThreadPoolExecutor(self._members - 1, thread_name_prefix="sample")
        return self._others
