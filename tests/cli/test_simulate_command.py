"""simulate: a table for people and a document for programs, from a trace or from made-up traffic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.admin_script import Script, model_document, status_document

from swapd.cli import main
from swapd.simulate.trace import Header, ModelFacts, Request, encode

Captured = pytest.CaptureFixture[str]
MIB = 1024 * 1024
POLICIES = ["swapd", "lru", "fifo", "one at a time"]


@pytest.fixture
def config(tmp_path: Path, small_model: Path) -> Path:
    """Three models and room for two."""
    path = tmp_path / "config.yaml"
    models = "".join(f"  {name}: {{path: {small_model}, n_ctx: 512}}\n" for name in "abc")
    path.write_text(f"memory: {{budget: {{RAM: 600MiB}}}}\nserver: {{state_dir: {tmp_path}}}\nmodels:\n{models}")
    return path


def write_trace(path: Path, *requests: Request, facts: dict[str, ModelFacts] | None = None) -> Path:
    path.write_bytes(b"".join(map(encode, (Header(models=facts or {}), *requests))))
    return path


def report(argv: list[str], capsys: Captured) -> dict[str, object]:
    assert main(["simulate", *argv, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert isinstance(document, dict)
    return document


def test_a_trace_is_replayed_by_every_policy(tmp_path: Path, config: Path, capsys: Captured) -> None:
    requests = [Request(at_s=3.0 * number, model="abc"[number % 3], service_s=1.0) for number in range(30)]
    trace = write_trace(tmp_path / "t.jsonl", *requests, facts={"a": ModelFacts(load_s=1.5)})
    found = report([str(trace), "--config", str(config)], capsys)
    assert (found["requests"], found["duration_s"], found["service_s"], found["seed"]) == (30, 87.0, 30.0, None)
    assert found["loads"][0] == {"id": "a", "load_s": 1.5, "source": "trace"}  # type: ignore[index]
    assert found["loads"][1]["source"] == "size"  # type: ignore[index]
    policies = found["policies"]
    assert isinstance(policies, list)
    assert [one["policy"] for one in policies] == POLICIES
    for one in policies:
        assert one["served"] == 30
        assert 0 <= one["wait_p50_s"] <= one["wait_p95_s"] <= one["wait_worst_s"]
        assert one["wait_worst_s"] > 0
        assert 0 < one["devices"][0]["peak_bytes"] <= one["devices"][0]["budget_bytes"] == 600 * MIB


def test_people_get_a_row_per_policy_and_the_load_times(tmp_path: Path, config: Path, capsys: Captured) -> None:
    trace = write_trace(tmp_path / "t.jsonl", Request(at_s=0.0, model="a"), Request(at_s=1.0, model="nowhere"))
    assert main(["simulate", str(trace), "--config", str(config)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2 requests by 1 clients over 1.0 s")
    rows = [line for line in lines if line.startswith(tuple(POLICIES))]
    assert len(rows) == 4
    assert all("1 unknown_model" in row for row in rows)
    assert "a: loads in 0.5 s, guessed from its size" in lines


def test_made_up_traffic_tells_its_seed_and_is_the_same_with_it(config: Path, capsys: Captured) -> None:
    order = ["--synthetic", "zipf:rate=0.1,for=10m", "--config", str(config)]
    first = report(order, capsys)
    again = report([*order, "--seed", str(first["seed"])], capsys)
    assert first == again
    assert first["requests"] > 20  # type: ignore[operator]


def test_a_running_daemons_load_times_are_used(tmp_path: Path, config: Path, daemon: Script, capsys: Captured) -> None:
    daemon.answer("GET /swapd/v1/status", status_document(models=[model_document("a", load_s=7.5)]))
    trace = write_trace(tmp_path / "t.jsonl", Request(at_s=0.0, model="a"), facts={"a": ModelFacts(load_s=1.5)})
    found = report([str(trace), "--config", str(config), "--url", daemon.url], capsys)
    assert found["loads"] == [{"id": "a", "load_s": 7.5, "source": "daemon"}]


def test_a_trace_can_be_replayed_where_the_models_files_are_not(tmp_path: Path, capsys: Captured) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("memory: {budget: {RAM: 8GiB}}\nmodels:\n  a: {path: gone.gguf}\n  b: {path: gone too.gguf}\n")
    facts = {"a": ModelFacts(size_bytes=5000 * MIB, slots=2)}
    requests = [Request(at_s=0.0, model="a", service_s=1.0), Request(at_s=0.0, model="b", service_s=1.0)]
    trace = write_trace(tmp_path / "t.jsonl", *requests, facts=facts)
    found = report([str(trace), "--config", str(config)], capsys)
    for one in found["policies"]:  # type: ignore[attr-defined]
        assert (one["served"], one["refused"]) == (1, {"invalid_model": 1})
        assert 4999 * MIB < one["devices"][0]["peak_bytes"] < 5001 * MIB


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl cannot be read: No such file"),
        (["bad.jsonl"], "bad.jsonl: line 1: "),
        (["bad.jsonl", "--seed", "1"], "--seed is for --synthetic traffic"),
        (["--synthetic", "uniform"], "--synthetic 'uniform' is no kind of traffic; write zipf, or zipf:clients=12"),
    ],
)
def test_what_cannot_be_simulated_is_one_line(
    argv: list[str], said: str, tmp_path: Path, config: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.jsonl").write_text("hello\n")
    assert main(["simulate", *argv, "--config", str(config)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"swapd: {said}")
    assert captured.err.count("\n") == 1


def test_without_a_configuration_it_says_so(tmp_path: Path, capsys: Captured) -> None:
    assert main(["simulate", "--synthetic", "zipf"]) == 1
    assert "name one with --config" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["t.jsonl", "--synthetic", "zipf"], ["--synthetic", "zipf", "--seed", "x"]])
def test_wrong_usage_of_simulate_is_exit_code_two(argv: list[str], capsys: Captured) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["simulate", *argv])
    assert caught.value.code == 2
    assert "usage: swapd simulate" in capsys.readouterr().err
