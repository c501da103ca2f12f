"""How often a model is asked for, as an exponentially weighted rate, and how soon its clients come back. Pure.

Owns what was seen of arrivals. What follows from it is `swapd.core.turns`' to say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import exp

MEMORY_S = 300.0
"""After so long an arrival counts a third (1/e): the habits of the last minutes count, not those of the morning."""

YOUNG_S = 1.0
"""A model that was asked for the first time just now counts as known for so long: one arrival is no rate."""

RETURN_WEIGHT = 0.5
"""Of the newest return in the running mean of how soon a client comes back."""

MAX_CLIENTS = 1024
"""Whose returns are remembered; the one that came back longest ago is forgotten first."""


@dataclass(slots=True)
class Demand:
    """One model's arrivals."""

    first_s: float | None = None
    weight: float = 0.0
    """Of all arrivals, as it was at the last one, at `at_s`; fading since."""
    at_s: float = 0.0
    returning_s: dict[str, float] = field(default_factory=dict)
    """How soon each client comes back, as a running mean; the one that did so last comes last."""

    def note(self, client: str, last_seen_s: float | None, now_s: float) -> None:
        """A client's request arrives, the last of its requests here having ended at `last_seen_s`."""
        if self.first_s is None:
            self.first_s = now_s
        self.weight = 1.0 + self.weight * exp((self.at_s - now_s) / MEMORY_S)
        self.at_s = now_s
        if last_seen_s is None:
            return
        took_s = now_s - last_seen_s
        known_s = self.returning_s.pop(client, took_s)
        self.returning_s[client] = known_s + RETURN_WEIGHT * (took_s - known_s)
        while len(self.returning_s) > MAX_CLIENTS:
            del self.returning_s[next(iter(self.returning_s))]

    def per_s(self, now_s: float) -> float:
        """Arrivals per second to be expected; 0 before the first.

        Of a steady rate the faded weights add up to rate * MEMORY_S * (1 - exp(-age / MEMORY_S)), age being the time
        since the first arrival; dividing by the rest of it makes up for what could not be seen yet.
        """
        if self.first_s is None:
            return 0.0
        faded = self.weight * exp((self.at_s - now_s) / MEMORY_S)
        age_s = max(YOUNG_S, now_s - self.first_s)
        return faded / (MEMORY_S * (1.0 - exp(-age_s / MEMORY_S)))

    def returns_s(self, client: str) -> float:
        """Seconds from the end of a client's request to its next one; 0 if it has not come back yet."""
        return self.returning_s.get(client, 0.0)
