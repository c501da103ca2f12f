"""The responses that a later request may go on from, within a bound.

Owns who may see which: a response is its client's alone. When it is full, the client that holds the most gives up what
it has used least recently. Must never do I/O; in memory only, so a restart forgets. Safe to use from several threads,
as large bodies are read in them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

MAX_BYTES = 64 * 1024 * 1024
MAX_RESPONSES = 4096
_SHARE = 4
"""A response may take one in so many of all bytes."""
_OVERHEAD_BYTES = 512
"""Of a response, beside what it says."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One response, whole."""

    document: bytes
    """As the client got it, in JSON."""
    before: bytes
    """The items that it answers, of earlier responses too, as a JSON array."""

    @property
    def size_bytes(self) -> int:
        return len(self.document) + len(self.before) + _OVERHEAD_BYTES


class _Shelf:
    """One client's, the least recently used first."""

    def __init__(self) -> None:
        self.responses: OrderedDict[str, Stored] = OrderedDict()
        self.size_bytes = 0

    def put(self, response_id: str, stored: Stored) -> None:
        self.responses[response_id] = stored
        self.size_bytes += stored.size_bytes

    def drop(self, response_id: str) -> None:
        self.size_bytes -= self.responses.pop(response_id).size_bytes


class ResponseStore:
    def __init__(self, *, max_bytes: int = MAX_BYTES, max_responses: int = MAX_RESPONSES) -> None:
        self._max_bytes = max_bytes
        self._max_responses = max_responses
        self._shelves: dict[str, _Shelf] = {}
        self._lock = threading.Lock()

    def keep(self, client: str, response_id: str, stored: Stored) -> bool:
        """Take a new response in, if it is not too large. Whether it is there now."""
        if stored.size_bytes > self._max_bytes // _SHARE:
            return False
        with self._lock:
            self._shelves.setdefault(client, _Shelf()).put(response_id, stored)
            while self._is_too_full():
                largest = max(self._shelves, key=lambda name: self._shelves[name].size_bytes)
                self._drop(largest, next(iter(self._shelves[largest].responses)))
            return client in self._shelves and response_id in self._shelves[client].responses

    def find(self, client: str, response_id: str) -> Stored | None:
        """The client's response of this id, which counts as a use of it."""
        with self._lock:
            shelf = self._shelves.get(client)
            if shelf is None or response_id not in shelf.responses:
                return None
            shelf.responses.move_to_end(response_id)
            return shelf.responses[response_id]

    def forget(self, client: str, response_id: str) -> bool:
        """Whether there was one."""
        with self._lock:
            there = client in self._shelves and response_id in self._shelves[client].responses
            if there:
                self._drop(client, response_id)
            return there

    def _is_too_full(self) -> bool:
        shelves = self._shelves.values()
        return (
            sum(shelf.size_bytes for shelf in shelves) > self._max_bytes
            or sum(len(shelf.responses) for shelf in shelves) > self._max_responses
        )

    def _drop(self, client: str, response_id: str) -> None:
        shelf = self._shelves[client]
        shelf.drop(response_id)
        if not shelf.responses:
            del self._shelves[client]
