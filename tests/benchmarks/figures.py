"""Figures of a benchmark: samples of both servers, taken in turns, and how they compare.

Pure arithmetic on samples and their printing. Must never measure.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import msgspec

Compared = Literal["ratio", "difference", "itself"]


class Target(msgspec.Struct, frozen=True):
    """What a comparison must come to."""

    limit: float
    bound: Literal["at least", "at most"]

    def met_by(self, value: float) -> bool:
        return value >= self.limit if self.bound == "at least" else value <= self.limit

    def __str__(self) -> str:
        return f"{self.bound} {self.limit:g}"


def at_least(limit: float) -> Target:
    return Target(limit, "at least")


def at_most(limit: float) -> Target:
    return Target(limit, "at most")


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was measured, a sample per alternation and server, in the same order."""

    scenario: str
    what: str
    unit: str
    swapd: tuple[float, ...]
    llama_server: tuple[float, ...] = ()
    """Empty when there was none beside it."""
    compared_by: Compared = "ratio"
    target: Target | None = None
    """For the median of the comparisons."""

    @property
    def comparisons(self) -> tuple[float, ...]:
        """Sample by sample: swapd's divided by llama-server's, or less it, or swapd's own."""
        if self.compared_by == "itself":
            return self.swapd
        pairs = zip(self.swapd, self.llama_server, strict=bool(self.llama_server))
        if self.compared_by == "difference":
            return tuple(mine - theirs for mine, theirs in pairs)
        return tuple(mine / theirs for mine, theirs in pairs)

    @property
    def compared(self) -> float | None:
        """The median of the comparisons, if there is anything to compare with."""
        return statistics.median(self.comparisons) if self.comparisons else None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is nothing to say."""
        return None if self.target is None or self.compared is None else self.target.met_by(self.compared)

    def __str__(self) -> str:
        text = f"{self.scenario:9} {self.what:42} swapd {_spread(self.swapd)} {self.unit}"
        if self.llama_server:
            text += f"  llama-server {_spread(self.llama_server)}"
        if self.llama_server and self.compared_by != "itself":
            text += f"  {self.compared_by} {_spread(self.comparisons, 3)}"
        if self.met is not None:
            text += f"  ({self.target}: {'met' if self.met else 'NOT MET'})"
        return text


def figures_of(
    scenario: str,
    unit: str,
    samples: Sequence[Sequence[Mapping[str, float]]],
    whats: Mapping[str, str],
    targets: Mapping[str, Target] = MappingProxyType({}),
    compared_by: Compared = "ratio",
) -> list[Figure]:
    """One figure for each key of `whats`. Samples hold them all: swapd's first, then llama-server's, if any."""
    return [
        Figure(
            scenario=scenario,
            what=what,
            unit=unit,
            swapd=tuple(sample[key] for sample in samples[0]),
            llama_server=tuple(sample[key] for other in samples[1:] for sample in other),
            compared_by=compared_by,
            target=targets.get(key),
        )
        for key, what in whats.items()
    ]


def document(figure: Figure) -> dict[str, object]:
    """A figure for a JSON file, with what follows from its samples beside them."""
    fields: dict[str, object] = msgspec.to_builtins(figure)
    return {**fields, "comparisons": figure.comparisons, "compared_median": figure.compared, "met": figure.met}


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def _spread(values: Sequence[float], digits: int | None = None) -> str:
    middle = statistics.median(values)
    if digits is None:
        digits = 1 if abs(middle) >= 10 else 3
    text = f"{middle:.{digits}f}"
    return text if len(values) == 1 else f"{text} [{min(values):.{digits}f}-{max(values):.{digits}f}]"
