"""The scorecard's counts, seeds and figures.

`SWAPD_REPEATS` is the part of the whole counts that runs: a tenth unless told, 1 for all of it. `SWAPD_FIGURES` names a
file that every figure is added to. `SWAPD_TEST_SEED` repeats a run.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

REPEATS = float(os.environ.get("SWAPD_REPEATS", "0.1"))


def times(whole: int, *, at_least: int = 1) -> int:
    """How often something is done that the whole run does `whole` times."""
    return max(at_least, round(whole * REPEATS))


def seeded() -> random.Random:
    seed = int(os.environ.get("SWAPD_TEST_SEED", random.randrange(2**32)))
    print("seed", seed)
    return random.Random(seed)


def figure(item: int | str, text: str) -> None:
    """Say what was measured for one item of the scorecard."""
    line = f"scorecard {item}: {text}"
    print(line)
    file = os.environ.get("SWAPD_FIGURES")
    if file:
        with Path(file).open("a") as figures:
            figures.write(f"{line}\n")


def percentile(times_s: Sequence[float], percent: int) -> float:
    ordered = sorted(times_s)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def centiles(times_s: Sequence[float]) -> str:
    p50, p99, worst = (percentile(times_s, percent) * 1e3 for percent in (50, 99, 100))
    return f"p50 {p50:.1f}, p99 {p99:.1f}, worst {worst:.1f} ms"
