"""doctor: before there is a daemon, and with one that serves the small model."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from support.gguf_files import smollm2_path
from support.running_daemon import running_daemon

from swapd.cli import main

Captured = pytest.CaptureFixture[str]
CONFIG = """\
server:
  listen: 127.0.0.1:0
  state_dir: {directory}/state
  runtime_dir: {directory}/run
memory: {{budget: {{RAM: 1GiB}}}}
models:
  tiny: {{path: {path}, n_ctx: 512, n_parallel: 1, n_threads: 1, use_extra_bufts: false}}
"""


def found(text: str) -> dict[str, list[dict[str, Any]]]:
    by_check: dict[str, list[dict[str, Any]]] = {}
    for one in json.loads(text)["findings"]:
        by_check.setdefault(one["check"], []).append(one)
    return by_check


def test_what_is_wrong_is_a_line_with_its_remedy_and_exit_1(tmp_path: Path, capsys: Captured) -> None:
    config = tmp_path / "swapd.yaml"
    config.write_text(CONFIG.format(directory=tmp_path, path="nowhere.gguf"))
    (tmp_path / "state").mkdir(mode=0o755)
    assert main(["doctor", "--config", str(config)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("ok    llama-cpp-python: ") for line in lines)
    assert any(line.startswith(f"FAIL  model: {config}:7: ") for line in lines)
    assert f"FAIL  state_dir: {tmp_path}/state is open to others (mode 0755); chmod 700 {tmp_path}/state" in lines
    assert "ok    address: 127.0.0.1:0 is free" in lines


def test_a_configuration_that_cannot_be_read_is_told_line_by_line(tmp_path: Path, capsys: Captured) -> None:
    config = tmp_path / "swapd.yaml"
    config.write_text("models:\n  a: {pth: x}\n")
    assert main(["doctor", "--config", str(config), "--json"]) == 1
    said = [one["said"] for one in found(capsys.readouterr().out)["configuration"]]
    assert any(f"{config}:2: models.a.pth: " in one for one in said)


async def test_each_model_of_a_daemon_is_asked_for_a_token_unless_that_is_not_wanted(
    tmp_path: Path, capsys: Captured
) -> None:
    yaml = CONFIG.format(directory=tmp_path, path=smollm2_path())
    async with running_daemon(tmp_path, yaml) as daemon:
        argv = ["doctor", "--config", str(daemon.config), "--url", daemon.url, "--json"]
        assert await asyncio.to_thread(main, [*argv, "--no-tokens"]) == 0
        assert "token" not in found(capsys.readouterr().out)
        assert (await daemon.model("tiny"))["state"] == "unloaded"
        assert await asyncio.to_thread(main, argv) == 0
        checks = found(capsys.readouterr().out)
        assert checks["daemon"][0]["said"] == "it answers, 1 models"
        assert checks["token"][0]["said"].startswith("tiny: after ")
        assert (await daemon.model("tiny"))["state"] == "ready"


def test_a_daemon_that_does_not_answer_is_told_of_also_without_a_configuration(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SWAPD_CONFIG", raising=False)
    assert main(["doctor", "--url", "127.0.0.1:1", "--json"]) == 1
    checks = found(capsys.readouterr().out)
    assert checks["daemon"][0]["said"].startswith("no daemon answers at http://127.0.0.1:1")
