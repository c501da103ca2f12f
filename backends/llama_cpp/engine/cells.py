"""The book of cells: how many of the context's cells are held, and by which sequences together.

Owns the arithmetic that admission and preemption rest on. Pure: must never call llama.cpp; whoever uses it does
the matching `llama_memory_seq_*` calls. llama.cpp places tokens as it likes; only the counts agree.
"""

from __future__ import annotations

from collections.abc import Collection


class _Run:
    """Cells that follow each other in the same holdings."""

    __slots__ = ("holders", "length")

    def __init__(self, length: int, holders: list[Holding]) -> None:
        self.length = length
        self.holders = holders


class Holding:
    """The cells of one sequence, from its first token on."""

    __slots__ = ("length", "runs")

    def __init__(self) -> None:
        self.runs: list[_Run] = []
        self.length = 0


class Cells:
    """Every holding of a unified KV cache of `total` cells. A shared cell counts once."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0

    @property
    def free(self) -> int:
        return self.total - self.used

    def grow(self, holding: Holding, count: int) -> None:
        """Append `count` cells. The caller has looked at `free` first."""
        assert 0 <= count <= self.free, f"{count} cells taken, {self.free} free"
        if not count:
            return
        self.used += count
        holding.length += count
        if holding.runs and len(holding.runs[-1].holders) == 1:
            holding.runs[-1].length += count
        else:
            holding.runs.append(_Run(count, [holding]))

    def share(self, source: Holding, length: int) -> Holding:
        """A new holding of the first `length` cells of `source`."""
        assert 0 <= length <= source.length
        shared = Holding()
        shared.length = length
        shared.runs = source.runs[: _split(source, length)]
        for run in shared.runs:
            run.holders.append(shared)
        return shared

    def cut(self, holding: Holding, length: int) -> None:
        """Let go of everything from cell `length` on."""
        assert 0 <= length <= holding.length
        keep = _split(holding, length)
        self._let_go(holding, keep)
        holding.length = length

    def release(self, holding: Holding) -> None:
        """Let go of everything."""
        self.cut(holding, 0)

    def _let_go(self, holding: Holding, keep: int) -> None:
        for run in holding.runs[keep:]:
            run.holders.remove(holding)
            if not run.holders:
                self.used -= run.length
        del holding.runs[keep:]


def held_by_only(holdings: Collection[Holding]) -> int:
    """Cells that nobody but these holdings hold."""
    runs = {id(run): run for holding in holdings for run in holding.runs}
    return sum(run.length for run in runs.values() if all(holder in holdings for holder in run.holders))


def _split(holding: Holding, length: int) -> int:
    """Make a run of `holding` end at cell `length`. Returns how many runs lie before it."""
    at = 0
    for index, run in enumerate(holding.runs):
        if at >= length:
            return index
        if at + run.length > length:
            rest = _Run(at + run.length - length, list(run.holders))
            run.length = length - at
            for holder in run.holders:
                holder.runs.insert(holder.runs.index(run) + 1, rest)
            return index + 1
        at += run.length
    return len(holding.runs)
