"""Which tokens are in the cache already: the book of cells, and the finished sequences kept for their prefix.

Owns the accounting that admission and preemption rest on. Pure: must never call llama.cpp; whoever uses it does
the matching `llama_memory_seq_*` calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

_BLOCK_TOKENS = 256


def common_prefix(first: Sequence[int], second: Sequence[int], limit: int) -> int:
    """Length of the longest common prefix, at most `limit`."""
    limit = min(limit, len(first), len(second))
    length = 0
    # Whole blocks are compared at C speed; the loop below then looks at one block at most.
    while length < limit:
        end = min(length + _BLOCK_TOKENS, limit)
        if first[length:end] != second[length:end]:
            break
        length = end
    while length < limit and first[length] == second[length]:
        length += 1
    return length


class Cells:
    """Mirrors which cells of a unified KV cache are held, and by how many sequences.

    Cells are numbered by this book alone; llama.cpp places tokens as it likes, only the counts agree.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._holders: list[int] = []
        self._released: list[int] = []

    @property
    def free(self) -> int:
        return self.total - len(self._holders) + len(self._released)

    def take(self, count: int) -> list[int]:
        """Hold `count` unheld cells. The caller has looked at `free` first."""
        assert 0 <= count <= self.free, f"{count} cells taken, {self.free} free"
        taken = [self._released.pop() for _ in range(min(count, len(self._released)))]
        for cell in taken:
            self._holders[cell] = 1
        known = len(self._holders)
        fresh = count - len(taken)
        self._holders.extend([1] * fresh)
        taken.extend(range(known, known + fresh))
        return taken

    def share(self, cells: Iterable[int]) -> None:
        """One more sequence holds these cells."""
        for cell in cells:
            self._holders[cell] += 1

    def release(self, cells: Iterable[int]) -> None:
        """One sequence fewer holds these cells."""
        holders = self._holders
        for cell in cells:
            holders[cell] -= 1
            if holders[cell] == 0:
                self._released.append(cell)


@dataclass(frozen=True, slots=True, eq=False)
class Retired:
    """A finished sequence whose cache is kept: cell i holds token i."""

    seq_id: int
    tokens: Sequence[int]
    cells: Sequence[int]


class RetiredPrefixes:
    """The kept sequences, least recently used first. What it gives up, the caller must free."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._kept: list[Retired] = []

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Retired]:
        return iter(self._kept)

    def add(self, retired: Retired) -> list[Retired]:
        """Keep one more; returns those given up for it: prefixes of it, and the oldest beyond `slots`.

        One that adds nothing to a kept sequence is itself given up.
        """
        if self.slots == 0 or not retired.tokens:
            return [retired]
        given_up: list[Retired] = []
        for kept in self._kept:
            shared = common_prefix(kept.tokens, retired.tokens, len(retired.tokens))
            if shared == len(retired.tokens):
                self.touch(kept)
                return [retired]
            if shared == len(kept.tokens):
                given_up.append(kept)
        self._kept = [kept for kept in self._kept if kept not in given_up]
        self._kept.append(retired)
        if len(self._kept) > self.slots:
            given_up.append(self._kept.pop(0))
        return given_up

    def touch(self, retired: Retired) -> None:
        """It was of use just now."""
        self._kept.remove(retired)
        self._kept.append(retired)

    def give_up_oldest(self) -> Retired | None:
        """Remove the least recently used one, if there is any."""
        return self._kept.pop(0) if self._kept else None
