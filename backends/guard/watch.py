"""Asks a program that serves whether it works: one question at a time, and none while nothing runs.

Owns when to ask. A question has no deadline: while a long batch is computed there is no answer, and if there never is
one, the daemon sees no work done and decides.
"""

from __future__ import annotations

import re
import selectors
import time
from collections.abc import Callable

from backends.address import WorkerAddress
from backends.guard.probe import MAX_STATUS_BYTES, Probe

EVERY_S = 0.5
"""Well within the shortest `stall_timeout`, a second."""
MAX_ANSWER_BYTES = 4 * 1024 * 1024
NEVER_S = float("inf")


class Watch:
    """Tells of each answer by `note`, from within the selector's turn."""

    def __init__(
        self,
        address: WorkerAddress,
        path: str | None,
        again: str,
        selector: selectors.BaseSelector,
        note: Callable[[], None],
    ) -> None:
        self._address = address
        self._path = path
        self._again = re.compile(again.encode())
        self._selector = selector
        self._note = note
        self._question: Question | None = None
        self._roused = False
        self._asked_s = 0.0

    def rouse(self) -> None:
        """Something runs, by the program's own word."""
        self._roused = self._path is not None

    @property
    def next_s(self) -> float:
        """When the next question is due, if no answer is waited for."""
        return self._asked_s + EVERY_S if self._roused and self._question is None else NEVER_S

    def ask(self, now_s: float) -> None:
        """Ask if it is due."""
        if now_s < self.next_s or self._path is None or self._question is not None:
            return
        self._asked_s = now_s
        try:
            self._question = Question(self._address, self._path, now_s)
        except OSError:
            return
        self._roused = False
        self._selector.register(self._question.socket, self._question.waits_for, self._step)

    def close(self) -> None:
        if self._question is not None:
            self._selector.unregister(self._question.socket)
            self._question.close()
            self._question = None

    def _step(self) -> None:
        question = self._question
        assert question is not None
        answered = question.step()
        if answered is None:
            self._selector.modify(question.socket, question.waits_for, self._step)
            return
        self.close()
        self._asked_s = time.monotonic()
        if answered:
            self._note()
        # Without an answer it is not known that nothing runs.
        self._roused |= not answered or self._again.search(question.text) is not None


class Question(Probe):
    """A question whose answer is read to its end."""

    @property
    def text(self) -> bytes:
        return bytes(self._answer)

    def _read(self) -> bool | None:
        data = self.socket.recv(16 * MAX_STATUS_BYTES)
        self._answer += data
        if len(self._answer) > MAX_ANSWER_BYTES:
            return False
        return None if data else self._is_ok()
