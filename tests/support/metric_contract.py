"""The metrics that clients may count on, by name and labels."""

from __future__ import annotations

LABELS = {
    "requests_total": {"model", "endpoint", "code"},
    "requests_running": {"model"},
    "requests_waiting": {"model"},
    "request_queue_time_seconds": {"model"},
    "time_to_first_token_seconds": {"model"},
    "inter_token_latency_seconds": {"model"},
    "e2e_request_latency_seconds": {"model"},
    "prompt_tokens_total": {"model"},
    "generation_tokens_total": {"model"},
    "prefix_cache_hit_tokens_total": {"model"},
    "model_loads_total": {"model", "outcome"},
    "model_load_seconds": {"model"},
    "evictions_total": {"model", "reason"},
    "unloads_total": {"model", "reason"},
    "worker_state": {"model", "state"},
    "device_memory_bytes": {"device", "kind"},
    "device_lost": {"device"},
    "footprint_bytes": {"model", "device", "kind"},
    "config_reloads_total": {"outcome"},
    "activity_dropped_rows_total": set(),
}
"""The contract, histograms by the name of their family."""
