from __future__ import annotations

import re
from pathlib import Path

import pytest

from swapd.config.diff import Changes, diff
from swapd.config.load import parse

BASE = "models:\n  a: {path: a}\n  b: {path: b}\n"


def changed(old: str, new: str, backends: dict) -> Changes:
    path = Path("/c.yaml")
    return diff(parse(old, path, backends), parse(new, path, backends))


def test_the_same_configuration_changes_nothing(backends):
    changes = changed(BASE, "# a comment\nmodels:\n  b: {path: b}\n  a: {path: ./a}\n", backends)
    assert not changes
    assert str(changes) == "nothing changed"


def test_models_come_and_go(backends):
    changes = changed(BASE, "models:\n  c: {path: a}\n  b: {path: b}\n", backends)
    assert changes == Changes(added=("c",), removed=("a",))
    assert str(changes) == "added c; removed a"


@pytest.mark.parametrize("key", ["n_ctx: 512", "env: {A: a}", "type_k: q8_0", "path: c"])
def test_what_a_worker_was_started_with_needs_a_new_worker_of_that_model_alone(key, backends):
    own = key if key.startswith("path") else f"path: a, {key}"
    assert changed(BASE, BASE.replace("path: a", own), backends) == Changes(restart=("a",))


def test_another_backend_needs_a_new_worker(backends):
    assert changed(BASE, BASE.replace("path: a", "backend: remote, url: x"), backends).restart == ("a",)


@pytest.mark.parametrize(
    "key",
    [
        "priority: 1",
        "idle_unload: 1m",
        "max_wait: 1s",
        "aliases: [x]",
        "aliases: {x: {params: {strip: [y]}}}",
        "model_name: x",
        "unlisted: true",
        "params: {strip: [x]}",
        "pin: true",
        "replicas: 2",
        "load_timeout: 1s",
        "stall_timeout: 1s",
    ],
)
def test_policy_leaves_the_worker_alone(key, backends):
    assert changed(BASE, BASE.replace("path: a", f"path: a, {key}"), backends) == Changes(retuned=("a",))


def test_a_changed_default_touches_the_models_that_inherit_it(backends):
    new = "defaults: {n_ctx: 512}\n" + BASE.replace("path: b", "path: b, n_ctx: 8192")
    assert changed(BASE, new, backends) == Changes(restart=("a",))


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("server.drain", "server: {drain: 1s}\n"),
        ("server.max_body", "server: {max_body: 1MiB}\n"),
        ("memory.reserve", "memory: {reserve: 1GiB}\n"),
        ("memory.budget", "memory: {budget: {default: 80%, RAM: 1GiB}}\n"),
        ("queue.max_waiting", "queue: {max_waiting: 1}\n"),
        ("queue.timeout", "queue: {timeout: 1s}\n"),
        ("turns.turn", "turns: {turn: 1s}\n"),
        ("turns.max_wait", "turns: {max_wait: 1s}\n"),
    ],
)
def test_keys_outside_of_models_apply_at_once(key, text, backends):
    assert changed(BASE, text + BASE, backends) == Changes(live=(key,))


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("server.listen", "server: {listen: a:1}\n"),
        ("server.keys", "server: {keys: /k}\n"),
        ("server.open_to_network", "server: {open_to_network: true}\n"),
        ("server.state_dir", "server: {state_dir: /s}\n"),
        ("server.runtime_dir", "server: {runtime_dir: /r}\n"),
    ],
)
def test_keys_used_at_the_start_wait_for_a_restart_and_the_line_says_so(key, text, backends):
    changes = changed(BASE, text + BASE, backends)
    assert changes == Changes(daemon_restart=(key,))
    assert str(changes) == f"waiting for a restart of swapd: {key}"


def test_the_reference_page_says_the_same_of_every_key(backends):
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    kinds = dict(re.findall(r"^\| `(\w+)` \|.*\| (live|worker|restart) \|$", page, flags=re.MULTILINE))
    assert {key for key, kind in kinds.items() if kind == "restart"} == {
        "listen",
        "keys",
        "open_to_network",
        "otlp_endpoint",
        "state_dir",
        "runtime_dir",
    }
    assert {kinds[key] for key in ("backend", "env", "n_ctx", "path", "chat_template")} == {"worker"}
    assert {kinds[key] for key in ("aliases", "pin", "priority", "max_wait", "params", "idle_unload")} == {"live"}
