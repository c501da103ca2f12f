"""How consecutive layers are cut over devices of given capacities. Pure arithmetic on running sums.

A running sum of sizes has one entry more than there are layers: layers a to b - 1 take `sums[b] - sums[a]`.
Devices are filled in their order, as llama.cpp does; one that gets no layer costs nothing.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence


def longest_tail(sums: Sequence[int], capacities: Sequence[int]) -> int:
    """The first layer of the longest tail of the layers that fits; the number of layers if none does."""
    return _earliest(sums, capacities)[0]


def cut(sums: Sequence[int], first: int, capacities: Sequence[int]) -> tuple[int, ...] | None:
    """Layers for each device, from `first` to the last, in proportion to the capacities as nearly as they fit.

    None if they do not fit. Whenever there is a way to fit them in this order of devices, one is found; no device goes
    without a layer that can hold the next one, as long as there are any.
    """
    earliest = _earliest(sums, capacities)
    if earliest[0] > first:
        return None
    demand, capacity = sums[-1] - sums[first], sum(max(0, size) for size in capacities)
    counts = []
    start, reached = first, 0
    for device, size in enumerate(capacities):
        reached += max(0, size)
        ideal = _nearest(sums, sums[first] + (demand * reached // capacity if capacity else 0))
        # The rest must fit behind this cut, and what is before it on this device.
        end = min(max(ideal, earliest[device + 1], start + 1), _reach(sums, start, size))
        counts.append(end - start)
        start = end
    assert start == len(sums) - 1
    return tuple(counts)


def _earliest(sums: Sequence[int], capacities: Sequence[int]) -> list[int]:
    """For each device the first layer from which on it and those after it can hold everything."""
    starts = [len(sums) - 1]
    for size in reversed(capacities):
        end = starts[-1]
        starts.append(bisect_left(sums, sums[end] - size, 0, end) if size > 0 else end)
    return starts[::-1]


def _reach(sums: Sequence[int], start: int, size: int) -> int:
    """One past the last layer that a device can hold when it begins with `start`."""
    return bisect_right(sums, sums[start] + size, start) - 1 if size > 0 else start


def _nearest(sums: Sequence[int], target: int) -> int:
    after = bisect_left(sums, target)
    if after == 0 or after == len(sums):
        return min(after, len(sums) - 1)
    return after if sums[after] - target <= target - sums[after - 1] else after - 1
