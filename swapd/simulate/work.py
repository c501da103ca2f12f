"""What a trace's requests and loads take, with guesses where it does not say.

Owns the guesses. Times are seconds, sizes bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from swapd.core.spec import LayerCosts, ModelSpec
from swapd.core.turns import reload_s
from swapd.simulate.trace import ModelFacts, Request, Trace

PROMPT_WEIGHT = 1 / 20
"""What computing a token of a prompt takes beside writing one: prompts are computed in batches."""

ASSUMED_TOKENS_PER_S = 30.0
"""How fast one request's answer is written where the trace has no request that tells."""

ASSUMED_SERVICE_S = 10.0
"""Of a request of which nothing is known, in a trace that tells nothing of any."""

ASSUMED_LAYERS = 32
"""Of a model whose file is not there: how finely it may be cut."""


@dataclass(frozen=True, slots=True)
class Job:
    """One request with all that its replay needs."""

    id: str
    at_s: float
    model_id: str
    client: str
    priority: int
    service_s: float
    """From its grant to its end."""
    tokens: int
    """Computed for it: charged to its client."""


def jobs(trace: Trace, models: Iterable[ModelSpec]) -> list[Job]:
    """The trace's requests in order. What they do not say is worked out from the others of their model."""
    pace_s, mean_s = _paces(trace), _means(trace.requests)
    usual_s = fmean(mean_s.values()) if mean_s else ASSUMED_SERVICE_S
    priorities = {spec.id: spec.priority for spec in models}
    made = []
    for number, request in enumerate(trace.requests):
        service_s = request.service_s
        if service_s is None and _weight(request):
            service_s = _weight(request) * pace_s.get(request.model, 1 / ASSUMED_TOKENS_PER_S)
        if service_s is None:
            service_s = mean_s.get(request.model, usual_s)
        tokens = (request.prompt_tokens or 0) + (request.output_tokens or 0)
        priority = priorities.get(request.model, 0) if request.priority is None else request.priority
        client = request.client or "somebody"
        made.append(Job(str(number), request.at_s, request.model, client, priority, service_s, tokens))
    return made


def _weight(request: Request) -> float:
    return (request.output_tokens or 0) + PROMPT_WEIGHT * (request.prompt_tokens or 0)


def _paces(trace: Trace) -> dict[str, float]:
    """Seconds for one written token by model, prompts counted by their weight."""
    spent_s: dict[str, float] = defaultdict(float)
    written: dict[str, float] = defaultdict(float)
    for request in trace.requests:
        if request.service_s is not None and _weight(request):
            spent_s[request.model] += request.service_s
            written[request.model] += _weight(request)
    said = {name: 1 / facts.tokens_per_s for name, facts in trace.models.items() if facts.tokens_per_s is not None}
    return {model: spent_s[model] / written[model] for model in spent_s} | said


def _means(requests: Sequence[Request]) -> dict[str, float]:
    times_s: dict[str, list[float]] = defaultdict(list)
    for request in requests:
        if request.service_s is not None:
            times_s[request.model].append(request.service_s)
    return {model: fmean(found) for model, found in times_s.items()}


@dataclass(frozen=True, slots=True)
class LoadTime:
    """Of one model, and how it is known: from a `daemon`, the `trace`, what was `learned` here, or its `size`."""

    load_s: float
    source: Literal["daemon", "trace", "learned", "size"]


def load_times(
    models: Iterable[ModelSpec], facts: Mapping[str, ModelFacts], learned_s: Mapping[str, float]
) -> dict[str, LoadTime]:
    """How long each model's load takes: as a daemon has seen, else as the trace says, as was learned, by its size."""
    found = {}
    for spec in models:
        said_s = facts[spec.id].load_s if spec.id in facts else None
        if spec.id in learned_s:
            found[spec.id] = LoadTime(learned_s[spec.id], "daemon")
        elif said_s is not None:
            found[spec.id] = LoadTime(said_s, "trace")
        else:
            found[spec.id] = LoadTime(reload_s(None, spec), "size" if spec.learned_load_s is None else "learned")
    return found


def with_size(spec: ModelSpec, facts: ModelFacts | None) -> ModelSpec:
    """A model whose file cannot be used, by the size that the trace says it has, in equal layers; else as it is."""
    if spec.costs is not None or facts is None or not facts.size_bytes:
        return spec
    layer_bytes = -(-facts.size_bytes // ASSUMED_LAYERS)
    costs = LayerCosts((layer_bytes,) * ASSUMED_LAYERS, (0,) * ASSUMED_LAYERS, host_bytes=0, compute_bytes=0)
    return replace(spec, costs=costs, verdict=None, slots=facts.slots or spec.slots)
