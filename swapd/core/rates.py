"""How much of something may be taken per minute: a token bucket. Pure; time is an argument.

What something costs may only be known later (the tokens of an answer). So it is taken by an estimate, the difference
is taken or given back once it is counted, and the level may be below zero meanwhile: then nothing is to be had until
it has filled up again.
"""

from __future__ import annotations

from dataclasses import dataclass

MINUTE_S = 60.0


@dataclass(slots=True)
class Bucket:
    """Fills evenly, and holds what a minute brings: after a quiet minute that much is to be had at once."""

    per_minute: float
    level: float
    at_s: float
    """When the level was that."""

    @classmethod
    def full(cls, per_minute: float, now_s: float) -> Bucket:
        return cls(per_minute, per_minute, now_s)

    def wait_s(self, amount: float, now_s: float) -> float:
        """Seconds until so much may be taken, 0 if it may be now. A full one gives even more than it holds."""
        missing = min(amount, self.per_minute) - self._filled(now_s)
        return max(0.0, missing * MINUTE_S / self.per_minute)

    def take(self, amount: float, now_s: float) -> None:
        """Take so much, whether it is there or not; a negative amount is given back."""
        self.level = min(self.per_minute, self._filled(now_s) - amount)
        self.at_s = now_s

    def resize(self, per_minute: float, now_s: float) -> None:
        """Another rate from now on. What was taken before stays taken."""
        missing = self.per_minute - self._filled(now_s)
        self.per_minute, self.level, self.at_s = per_minute, per_minute - missing, now_s

    def _filled(self, now_s: float) -> float:
        return min(self.per_minute, self.level + (now_s - self.at_s) * self.per_minute / MINUTE_S)
