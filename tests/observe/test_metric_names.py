"""Every metric by its name and labels, and nothing in the dashboard or the alert rules that is not one of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from support.front_door import ScriptedDoor
from support.metric_contract import LABELS

from swapd.observe.metrics import Metrics

GRAFANA = Path(__file__).parents[2] / "docs" / "grafana"

# vllm/v1/metrics/loggers.py
REQUEST_BUCKETS = "0.3 0.5 0.8 1 1.5 2 2.5 5 10 15 20 30 40 50 60 120 240 480 960 1920 7680"
BUCKETS = {
    "time_to_first_token_seconds": "0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1 2.5 5 7.5 10 20 40 80 160"
    " 640 2560",
    "inter_token_latency_seconds": "0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1 2.5 5 7.5 10 20 40 80",
    "e2e_request_latency_seconds": REQUEST_BUCKETS,
    "request_queue_time_seconds": REQUEST_BUCKETS,
    "model_load_seconds": REQUEST_BUCKETS,
}
OF_PROMETHEUS = {"up": {"job", "instance"}}
"""What the rules may use of the scraper's own."""
ADDED_BY_PROMETHEUS = {"instance", "job"}


def used() -> Metrics:
    """Metrics that have seen one of everything."""
    metrics = Metrics()
    metrics.watch(ScriptedDoor().status)
    metrics.request_ended("m", "/v1/chat/completions", 200)
    metrics.answered_whole("m", 1.0)
    timers = metrics.stream_timers("m")
    timers.first_token(0.1)
    timers.inter_token(0.1)
    metrics.load_ended("m", "ready", 1.0)
    metrics.worker_left("m", "turn_over", evicted=True)
    metrics.worker_left("m", "idle", evicted=False)
    metrics.tokens_served("m", 3, 2, 1)
    metrics.queue_left("m", 0.1)
    metrics.config_reloaded("applied")
    metrics.activity_dropped(1)
    return metrics


def families() -> list[Metric]:
    return list(text_string_to_metric_families(used().render().decode()))


def exported() -> dict[str, set[str]]:
    """The labels of every series by its full name, as Prometheus stores them."""
    return {
        sample.name: set(sample.labels)
        for family in families()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_every_metric_of_the_contract_is_exported_with_its_labels() -> None:
    found: dict[str, set[str]] = {}
    for name, labels in exported().items():
        family = re.sub(r"_(bucket|count|sum)$", "", name) if re.search(r"_seconds_", name) else name
        found[family.removeprefix("swapd_")] = labels - {"le"}
        assert family.startswith("swapd_")
    assert found == LABELS


@pytest.mark.parametrize("name", BUCKETS)
def test_histograms_have_exactly_vllms_buckets(name: str) -> None:
    (family,) = (one for one in families() if one.name == f"swapd_{name}")
    assert family.type == "histogram"
    bounds = [one.labels["le"] for one in family.samples if one.name.endswith("_bucket")]
    assert [float(bound) for bound in bounds] == [*map(float, BUCKETS[name].split()), float("inf")]


def test_the_first_refused_reload_is_an_increase() -> None:
    assert 'swapd_config_reloads_total{outcome="refused"} 0.0' in Metrics().render().decode()


def dashboard() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((GRAFANA / "swapd.json").read_text())
    return document


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((GRAFANA / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> Iterator[tuple[str, str, str]]:
    """Where each expression stands, it, and the legend that shows its result."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield f"panel {panel['title']}", target["expr"], target["legendFormat"]
    for rule in rules():
        yield rule["alert"], rule["expr"], rule["annotations"]["summary"]
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"])
            assert asked is not None, variable
            yield f"variable {variable['name']}", f"sum by ({asked[2]}) ({asked[1]})", ""


def names_in(expression: str) -> set[str]:
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\"[^\"]*\"|\b(by|on|without|ignoring)\s*\([^)]*\)", " ", expression)
    return set(re.findall(r"\b(?:swapd_\w+|up)\b", bare))


def labels_in(expression: str, legend: str) -> set[str]:
    """Labels that an expression selects or groups by, and those that its legend shows."""
    inside = re.findall(r"\{([^}]*)\}", expression)
    chosen = {name for part in inside for name in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", part)}
    grouped = {
        name.strip()
        for part in re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", expression)
        for name in part.split(",")
    }
    shown = set(re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", legend))
    return chosen | grouped | shown


@pytest.mark.parametrize(("place", "expression", "legend"), list(expressions()))
def test_the_dashboard_and_the_rules_name_only_what_is_exported(place: str, expression: str, legend: str) -> None:
    known = {**exported(), **OF_PROMETHEUS}
    names = names_in(expression)
    assert names, place
    assert names <= set(known), place
    allowed = set.union(*(known[name] for name in names)) | ADDED_BY_PROMETHEUS
    assert labels_in(expression, legend) <= allowed, place


def test_the_check_of_names_sees_what_is_wrong() -> None:
    assert names_in('sum by (model) (rate(swapd_nothing_total{a="swapd_x"}[5m])) / up') == {"swapd_nothing_total", "up"}
    assert labels_in(
        'sum by (model, le) (x{code=~"5..", kind!=""}) > on (job) y', "{{ reason }} {{$labels.state}}"
    ) == {
        *("model", "le", "code", "kind", "job", "reason"),
    } | {"state"}


def test_the_dashboard_shows_every_metric() -> None:
    shown = set.union(*(names_in(expression) for place, expression, _ in expressions() if place.startswith("panel")))
    assert {re.sub(r"_bucket$", "", name).removeprefix("swapd_") for name in shown} == set(LABELS)


def test_the_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_rule_says_how_grave_it_is_and_what_it_means() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names) > 5
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning", "info"), rule
        assert rule["annotations"]["summary"], rule
        assert rule["annotations"]["description"], rule
