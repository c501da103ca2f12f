"""Prometheus metrics under the prefix `swapd_`, on a registry of their own.

Owns names, labels and buckets (vLLM's, so that its dashboards port). Counters are fed by the pool through
`swapd.pool.listener` and by the front door; gauges are read from the pool's snapshot when they are scraped.
Only configured model ids become labels, so that no client can grow the registry.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from swapd.pool.status import ModelStatus, Status

CONTENT_TYPE = CONTENT_TYPE_LATEST
RELOAD_OUTCOMES = ("applied", "refused")

# vllm/v1/metrics/loggers.py
_FIRST_TOKEN_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
_INTER_TOKEN_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_REQUEST_BUCKETS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class StreamTimers:
    """Where one stream's times go, its labels already resolved: cheap enough for every event."""

    first_token: Callable[[float], None]
    inter_token: Callable[[float], None]


class Metrics:
    """The daemon's counters and histograms. Implements `swapd.pool.listener.Listener`."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, namespace="swapd", registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, ("model",), namespace="swapd", registry=registry, buckets=buckets)

        self._requests = counter(
            "requests", "Requests that ended, by what the client saw.", "model", "endpoint", "code"
        )
        self._queue_time = histogram("request_queue_time_seconds", "Wait for a place at a worker.", _REQUEST_BUCKETS)
        self._first_token = histogram(
            "time_to_first_token_seconds", "From the request to its stream's first event.", _FIRST_TOKEN_BUCKETS
        )
        self._inter_token = histogram(
            "inter_token_latency_seconds", "Between two events of one stream.", _INTER_TOKEN_BUCKETS
        )
        self._latency = histogram("e2e_request_latency_seconds", "Of requests answered whole.", _REQUEST_BUCKETS)
        self._prompt_tokens = counter("prompt_tokens", "Tokens of prompts.", "model")
        self._generation_tokens = counter("generation_tokens", "Tokens generated.", "model")
        self._cached_tokens = counter("prefix_cache_hit_tokens", "Prompt tokens taken from a cached prefix.", "model")
        self._loads = counter("model_loads", "Load attempts that ended.", "model", "outcome")
        self._load_time = histogram("model_load_seconds", "Duration of loads that ended ready.", _REQUEST_BUCKETS)
        self._evictions = counter("evictions", "Workers that left to make room.", "model", "reason")
        self._unloads = counter("unloads", "Workers that left for another reason.", "model", "reason")
        self._reloads = counter("config_reloads", "Configuration reloads.", "outcome")
        for outcome in RELOAD_OUTCOMES:
            # So that the first refusal is an increase.
            self._reloads.labels(outcome)
        self._activity_dropped = counter("activity_dropped_rows", "Ended requests that could not be kept.")

    def watch(self, status: Callable[[], Status]) -> None:
        """Serve the gauges of the pool's snapshot, taken at each scrape. To be called once."""
        self._registry.register(_Snapshot(status))

    def render(self) -> bytes:
        """Everything in the text format, `CONTENT_TYPE`."""
        return generate_latest(self._registry)

    def request_ended(self, model_id: str, endpoint: str, code: int) -> None:
        """`model_id` is empty when the request named no configured model; `endpoint` is a route, never a path."""
        self._requests.labels(model_id, endpoint, str(code)).inc()

    def answered_whole(self, model_id: str, latency_s: float) -> None:
        self._latency.labels(model_id).observe(latency_s)

    def stream_timers(self, model_id: str) -> StreamTimers:
        return StreamTimers(
            first_token=self._first_token.labels(model_id).observe,
            inter_token=self._inter_token.labels(model_id).observe,
        )

    def activity_dropped(self, count: int) -> None:
        """In any thread."""
        self._activity_dropped.inc(count)

    def config_reloaded(self, outcome: str) -> None:
        """`outcome` is one of `RELOAD_OUTCOMES`."""
        self._reloads.labels(outcome).inc()

    def load_ended(self, model_id: str, outcome: str, load_s: float) -> None:
        self._loads.labels(model_id, outcome).inc()
        if outcome == "ready":
            self._load_time.labels(model_id).observe(load_s)

    def worker_left(self, model_id: str, reason: str, *, evicted: bool) -> None:
        (self._evictions if evicted else self._unloads).labels(model_id, reason).inc()

    def tokens_served(self, model_id: str, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> None:
        self._prompt_tokens.labels(model_id).inc(prompt_tokens)
        self._cached_tokens.labels(model_id).inc(cached_tokens)
        self._generation_tokens.labels(model_id).inc(completion_tokens)

    def queue_left(self, model_id: str, waited_s: float) -> None:
        self._queue_time.labels(model_id).observe(waited_s)


class _Snapshot(Collector):
    """Gauges made from one `Status` per scrape."""

    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status

    def describe(self) -> Iterable[Metric]:
        """None: registering must not take a snapshot of a pool that is still being built."""
        return ()

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        yield _gauge("requests_running", "Requests at a worker.", {(m.id,): m.running for m in status.models})
        yield _gauge("requests_waiting", "Requests in a queue.", {(m.id,): m.waiting for m in status.models})
        yield _gauge("worker_state", "Workers in each state.", _worker_states(status.models), "state")
        yield _gauge("footprint_bytes", "Of one worker.", _footprints(status.models), "device", "kind")
        memory = GaugeMetricFamily("swapd_device_memory_bytes", "Memory of a device.", labels=("device", "kind"))
        for device in status.devices:
            memory.add_metric((device.name, "budget"), device.budget_bytes)
            memory.add_metric((device.name, "reserved"), device.reserved_bytes)
            memory.add_metric((device.name, "free"), device.free_bytes)
            memory.add_metric((device.name, "others"), device.others_bytes)
        yield memory
        lost = GaugeMetricFamily("swapd_device_lost", "1 for a device that is not found any more.", labels=("device",))
        for device in status.devices:
            lost.add_metric((device.name,), int(device.lost))
        yield lost


def _gauge(name: str, text: str, values: dict[tuple[str, ...], int], *labels: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"swapd_{name}", text, labels=("model", *labels))
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _worker_states(models: Iterable[ModelStatus]) -> dict[tuple[str, ...], int]:
    states: dict[tuple[str, ...], int] = {}
    for model in models:
        tally = Tally(worker.state for worker in model.workers) or Tally({"unloaded": 1})
        states.update({(model.id, state): count for state, count in tally.items()})
    return states


def _footprints(models: Iterable[ModelStatus]) -> dict[tuple[str, ...], int]:
    sizes: dict[tuple[str, ...], int] = {}
    for model in models:
        for kind, by_device in (
            ("estimated", model.footprint.estimated_bytes),
            ("measured", model.footprint.measured_bytes),
        ):
            sizes.update({(model.id, device, kind): size for device, size in by_device.items()})
    return sizes
