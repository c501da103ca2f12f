"""What the pool reports as it happens, for metrics to count. Calls must be quick and must not raise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Listener(Protocol):
    def load_ended(self, model_id: str, outcome: str, load_s: float) -> None:
        """One load attempt ended: `ready`, `failed`, `out_of_memory`, `crashed`, `stuck` or `stopped`."""

    def worker_left(self, model_id: str, reason: str, *, evicted: bool) -> None:
        """A worker is gone. `evicted` is true when it left to make room; else see `reason`."""

    def tokens_served(self, model_id: str, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> None:
        """One request's tokens, as its worker counted them."""

    def queue_left(self, model_id: str, waited_s: float) -> None:
        """A request was granted a place after waiting this long."""


class Listeners:
    """Several of them, each of which hears everything."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._listeners = listeners

    def load_ended(self, model_id: str, outcome: str, load_s: float) -> None:
        for one in self._listeners:
            one.load_ended(model_id, outcome, load_s)

    def worker_left(self, model_id: str, reason: str, *, evicted: bool) -> None:
        for one in self._listeners:
            one.worker_left(model_id, reason, evicted=evicted)

    def tokens_served(self, model_id: str, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> None:
        for one in self._listeners:
            one.tokens_served(model_id, prompt_tokens, cached_tokens, completion_tokens)

    def queue_left(self, model_id: str, waited_s: float) -> None:
        for one in self._listeners:
            one.queue_left(model_id, waited_s)
