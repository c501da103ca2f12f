from prometheus_client.parser import text_string_to_metric_families
from support.front_door import ScriptedDoor, model

from swapd.observe.metrics import Metrics
from swapd.pool.listener import Listener


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics)[(f"swapd_{name}", frozenset(labels.items()))]


def test_metrics_are_a_listener_of_the_pool() -> None:
    metrics = Metrics()
    listener: Listener = metrics
    listener.load_ended("m", "ready", 2.0)
    listener.load_ended("m", "failed", 1.0)
    listener.worker_left("m", "room for n", evicted=True)
    listener.worker_left("m", "idle", evicted=False)
    listener.tokens_served("m", 10, 4, 7)
    listener.queue_left("m", 0.5)
    assert value(metrics, "model_loads_total", model="m", outcome="failed") == 1
    assert value(metrics, "model_load_seconds_count", model="m") == 1
    assert value(metrics, "evictions_total", model="m", reason="room for n") == 1
    assert value(metrics, "unloads_total", model="m", reason="idle") == 1
    assert value(metrics, "prompt_tokens_total", model="m") == 10
    assert value(metrics, "prefix_cache_hit_tokens_total", model="m") == 4
    assert value(metrics, "generation_tokens_total", model="m") == 7
    assert value(metrics, "request_queue_time_seconds_sum", model="m") == 0.5


def test_two_registries_share_nothing() -> None:
    one, two = Metrics(), Metrics()
    one.config_reloaded("rejected")
    assert value(one, "config_reloads_total", outcome="rejected") == 1
    assert ("swapd_config_reloads_total", frozenset({("outcome", "rejected")})) not in samples(two)


def test_gauges_follow_the_pools_snapshot() -> None:
    metrics = Metrics()
    door = ScriptedDoor()
    metrics.watch(door.status)
    assert value(metrics, "requests_running", model="org/tiny") == 1
    assert value(metrics, "requests_waiting", model="org/tiny") == 2
    assert value(metrics, "worker_state", model="org/tiny", state="ready") == 1
    assert value(metrics, "device_memory_bytes", device="RAM", kind="budget") == 8
    assert value(metrics, "device_memory_bytes", device="RAM", kind="others") == 0
    assert value(metrics, "footprint_bytes", model="org/tiny", device="RAM", kind="measured") == 4
    door.known = [model("other")]
    assert value(metrics, "requests_running", model="other") == 1
    assert not any(("model", "org/tiny") in labels for _, labels in samples(metrics))


def test_histograms_have_vllms_buckets() -> None:
    metrics = Metrics()
    timers = metrics.stream_timers("m")
    timers.first_token(0.03)
    timers.inter_token(0.03)
    metrics.answered_whole("m", 0.4)
    assert value(metrics, "time_to_first_token_seconds_bucket", model="m", le="0.04") == 1
    assert value(metrics, "inter_token_latency_seconds_bucket", model="m", le="0.05") == 1
    assert value(metrics, "e2e_request_latency_seconds_bucket", model="m", le="0.5") == 1
