"""How much of a long test is run: `SWAPD_REPEATS` is the share, 1 the whole.

Where it is not set, a tenth, or what a test says that it can afford.
"""

from __future__ import annotations

import os


def repeats(whole: int, share: float = 0.1) -> int:
    """So many of `whole` repetitions, at least one."""
    return max(1, round(whole * float(os.environ.get("SWAPD_REPEATS", share))))


def first_seed() -> int:
    """Where seeds begin: `SWAPD_SEED`, so that the whole may be run in slices that differ."""
    return int(os.environ.get("SWAPD_SEED", "20261127"))
