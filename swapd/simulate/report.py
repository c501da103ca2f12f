"""What a policy made of a trace, in figures. Owns the sums; must never print."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from swapd.core.spec import DeviceSpec


class DeviceUse(msgspec.Struct, frozen=True, kw_only=True):
    """How much of one device's budget workers held."""

    name: str
    budget_bytes: int
    mean_bytes: int
    """Over the time from the first arrival to the last end."""
    peak_bytes: int


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One policy's. A wait is from a request's arrival until it is granted a place, or is given up (queue.timeout)."""

    policy: str
    requests: int
    served: int
    refused: dict[str, int]
    """By kind; those that waited in vain for `queue.timeout` among them."""
    wait_p50_s: float
    wait_p95_s: float
    wait_worst_s: float
    loads: int
    evictions: int
    loading_s: float
    """Summed over all loads."""
    tokens: int
    """Of the requests that were served."""
    ended_s: float
    """When the last request had ended, from the first one's arrival on."""
    devices: tuple[DeviceUse, ...]


class Tally:
    """Takes notes while a trace is replayed."""

    def __init__(self, devices: Iterable[DeviceSpec]) -> None:
        self.waits_s: list[float] = []
        self.refused: Counter[str] = Counter()
        self.served = 0
        self.loads = 0
        self.evictions = 0
        self.loading_s = 0.0
        self.tokens = 0
        self._budgets = {spec.name: spec.budget_bytes for spec in devices}
        self._held: Counter[str] = Counter()
        self._peak: Counter[str] = Counter()
        self._byte_seconds: Counter[str] = Counter()
        self._seen_s = 0.0

    def hold(self, device_bytes: Mapping[str, int], now_s: float) -> None:
        """A worker takes this memory; negative sizes give it back."""
        self._pass_time(now_s)
        for name, size_bytes in device_bytes.items():
            self._held[name] += size_bytes
            self._peak[name] = max(self._peak[name], self._held[name])

    def _pass_time(self, now_s: float) -> None:
        for name, size_bytes in self._held.items():
            self._byte_seconds[name] += int(size_bytes * (now_s - self._seen_s))
        self._seen_s = now_s

    def figures(self, policy: str, requests: int, now_s: float) -> Figures:
        self._pass_time(now_s)
        waits_s = sorted(self.waits_s)
        return Figures(
            policy=policy,
            requests=requests,
            served=self.served,
            refused=dict(sorted(self.refused.items())),
            wait_p50_s=percentile(waits_s, 0.50),
            wait_p95_s=percentile(waits_s, 0.95),
            wait_worst_s=percentile(waits_s, 1.0),
            loads=self.loads,
            evictions=self.evictions,
            loading_s=self.loading_s,
            tokens=self.tokens,
            ended_s=now_s,
            devices=tuple(
                DeviceUse(
                    name=name,
                    budget_bytes=budget_bytes,
                    mean_bytes=int(self._byte_seconds[name] / now_s) if now_s else self._held[name],
                    peak_bytes=self._peak[name],
                )
                for name, budget_bytes in self._budgets.items()
            ),
        )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of them does not exceed; 0 of nothing."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0
