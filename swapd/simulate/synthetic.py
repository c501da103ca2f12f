"""Made-up traces: models by Zipf's law, clients that come in bursts, days and nights. The same seed is the same trace.

Owns the words in which such traffic is ordered.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from swapd.config.quantities import parse_time
from swapd.simulate.trace import MAX_REQUESTS, ModelFacts, Request, Trace, in_order

DAY_S = 86_400.0

BURST_SPACING_S = 0.5
"""Between two requests of a burst, on the average."""

TOKENS_SIGMA = 0.8
"""Spread of the numbers of tokens: of their logarithm, which is normal. Half of them are within a factor of 1.7."""

EXAMPLE = "zipf:clients=12,rate=0.5,for=2h,burst=4"


class TrafficError(ValueError):
    """An order for traffic that cannot be had; the message says what would be right."""


class Traffic(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An order for traffic."""

    clients: Annotated[int, Meta(ge=1, le=100_000)] = 12
    rate: Annotated[float, Meta(gt=0, le=10_000)] = 0.2
    """Requests per second, on the average."""
    duration_s: Annotated[float, Meta(gt=0, le=366 * DAY_S)] = msgspec.field(name="for", default=3_600.0)
    skew: Annotated[float, Meta(ge=0, le=10)] = 1.0
    """Zipf's exponent: the n-th model of the list is asked for in proportion to n to the minus this."""
    burst: Annotated[float, Meta(ge=1, le=1_000)] = 1.0
    """Requests that come together, on the average, from one client to one model; 1 is none."""
    diurnal: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """How far the rate swings around its average over 24 hours, from its lowest on: 1 is down to nothing."""
    prompt_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] = 500
    output_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] = 150
    """Both are medians."""
    tokens_per_s: Annotated[float, Meta(gt=0, le=1_000_000)] = 30.0
    """How fast one request's answer is written."""


def traffic(order: str) -> Traffic:
    """What `zipf` or `zipf:clients=12,rate=0.5,for=2h` means. Raises `TrafficError`."""
    kind, _, rest = order.partition(":")
    if kind != "zipf":
        raise TrafficError(f"{kind!r} is no kind of traffic; write zipf, or {EXAMPLE}")
    settings: dict[str, str | float] = {}
    for part in rest.split(",") if rest else []:
        key, sign, said = part.partition("=")
        if not sign or key in settings:
            raise TrafficError(f"{part!r}: write each KEY=VALUE once, as in {EXAMPLE}")
        settings[key] = said
    try:
        if "for" in settings:
            settings["for"] = parse_time(str(settings["for"]))
        ordered = msgspec.convert(settings, Traffic, strict=False)
    except ValueError as error:
        keys = ", ".join(Traffic.__struct_encode_fields__)
        raise TrafficError(f"{order!r}: {error}; the keys are {keys}, as in {EXAMPLE}") from None
    expected = ordered.rate * ordered.duration_s
    if expected > MAX_REQUESTS / 2:
        raise TrafficError(f"{order!r} would be {expected:,.0f} requests; ask for at most {MAX_REQUESTS // 2:,}")
    return ordered


def synthesize(ordered: Traffic, models: Sequence[str], seed: int) -> Trace:
    """Such traffic for these models, the most popular first."""
    rng = random.Random(seed)  # noqa: S311 - no secret
    weights = [rank**-ordered.skew for rank in range(1, len(models) + 1)]
    requests: list[Request] = []
    for start_s in _bursts(ordered, rng):
        client, model = f"client-{rng.randrange(ordered.clients)}", rng.choices(models, weights)[0]
        at_s = start_s
        for _ in range(_geometric(rng, ordered.burst)):
            requests.append(
                Request(
                    at_s=at_s,
                    model=model,
                    client=client,
                    prompt_tokens=_tokens(rng, ordered.prompt_tokens),
                    output_tokens=_tokens(rng, ordered.output_tokens),
                )
            )
            at_s += rng.expovariate(1 / BURST_SPACING_S)
    return Trace(in_order(requests), dict.fromkeys(models, ModelFacts(tokens_per_s=ordered.tokens_per_s)))


def _bursts(ordered: Traffic, rng: random.Random) -> Iterator[float]:
    """Times at which bursts begin: a Poisson process, thinned where the day's rate is below its highest."""
    highest = 1 + ordered.diurnal
    at_s = 0.0
    while (at_s := at_s + rng.expovariate(highest * ordered.rate / ordered.burst)) < ordered.duration_s:
        level = 1 - ordered.diurnal * math.cos(2 * math.pi * at_s / DAY_S)
        if rng.random() * highest < level:
            yield at_s


def _geometric(rng: random.Random, mean: float) -> int:
    """1, 2, 3 …, each less likely than the one before by the same factor."""
    return 1 if mean <= 1 else 1 + int(math.log(1 - rng.random()) / math.log(1 - 1 / mean))


def _tokens(rng: random.Random, median: int) -> int:
    return max(1, round(rng.lognormvariate(math.log(median), TOKENS_SIGMA)))
