"""check, devices and usage, on real files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from swapd import __version__
from swapd.cli import main

Captured = pytest.CaptureFixture[str]


def write_config(directory: Path, text: str) -> Path:
    path = directory / "config.yaml"
    path.write_text(text)
    return path


def test_a_sound_configuration_is_fine(tmp_path: Path, small_model: Path, capsys: Captured) -> None:
    config = write_config(tmp_path, f"models:\n  tiny:\n    path: {small_model}\n    n_ctx: 512\n")
    assert main(["check", str(config)]) == 0
    assert capsys.readouterr().out == f"{config}: fine, 1 model\n"


def test_a_configuration_error_is_its_line_alone(tmp_path: Path, capsys: Captured) -> None:
    config = write_config(tmp_path, "models: {}\nserver:\n  drain: soon\n")
    assert main(["check", str(config)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"{config}:3: server.drain: ")
    assert captured.err.count("\n") == 1


def test_a_missing_configuration_is_one_line(tmp_path: Path, capsys: Captured) -> None:
    assert main(["check", str(tmp_path / "none.yaml")]) == 1
    assert capsys.readouterr().err.startswith(f"{tmp_path}/none.yaml:1: file: cannot be read")


def test_each_unusable_file_is_named_at_its_own_line(tmp_path: Path, small_model: Path, capsys: Captured) -> None:
    (tmp_path / "noise.gguf").write_bytes(b"not a model at all, really not")
    (tmp_path / "short.gguf").write_bytes(small_model.read_bytes()[:1000])
    config = write_config(
        tmp_path,
        f"models:\n  good:\n    path: {small_model}\n    n_ctx: 512\n  noise:\n    pin: false\n    path: noise.gguf\n"
        "  short:\n    path: short.gguf\n  gone:\n    path: gone.gguf\n",
    )
    assert main(["check", str(config)]) == 1
    lines = capsys.readouterr().err.splitlines()
    starts = [
        f"{config}:7: models.noise.path: ",
        f"{config}:9: models.short.path: ",
        f"{config}:11: models.gone.path: ",
    ]
    assert [line[: len(start)] for line, start in zip(lines, starts, strict=True)] == starts


def test_a_model_over_its_budget_is_told_the_sum(tmp_path: Path, small_model: Path, capsys: Captured) -> None:
    config = write_config(tmp_path, f"memory: {{budget: {{RAM: 100MiB}}}}\nmodels:\n  big:\n    path: {small_model}\n")
    assert main(["check", str(config)]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"{config}:3: models.big: ")
    assert "100 MiB" in err


def test_devices_lists_host_memory_in_bytes(capsys: Captured) -> None:
    assert main(["devices", "--json"]) == 0
    ram = json.loads(capsys.readouterr().out)["devices"][0]
    assert ram["name"] == "RAM"
    assert 0 < ram["free_bytes"] <= ram["total_bytes"]
    assert main(["devices"]) == 0
    assert capsys.readouterr().out.splitlines()[2].startswith("RAM")


def test_serve_without_a_configuration_says_how_to_get_one(capsys: Captured) -> None:
    assert main(["serve"]) == 1
    err = capsys.readouterr().err
    assert "swapd serve --demo" in err
    assert err.count("\n") == 1


def test_serve_refuses_a_broken_configuration_with_its_line(tmp_path: Path, capsys: Captured) -> None:
    config = write_config(tmp_path, "models: {}\nturn: 1\n")
    assert main(["serve", "--config", str(config)]) == 1
    assert capsys.readouterr().err.startswith(f"{config}:2: turn: ")


def test_the_version_is_printed(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"swapd {__version__}\n"


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["dance"],
        ["load"],
        ["check"],
        ["estimate"],
        ["ps", "--url", "ftp://x"],
        ["ps", "--url", "nonsense"],
        ["serve", "--listen", "8686"],
        ["serve", "--demo", "--config", "x.yaml"],
        ["devices", "--yaml"],
    ],
)
def test_wrong_usage_is_exit_code_two(argv: list[str], capsys: Captured) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "usage: swapd" in capsys.readouterr().err


def run(*argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "swapd", *argv]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environ}, timeout=60)


def test_the_process_exits_with_what_the_command_returned(tmp_path: Path) -> None:
    assert run("devices").returncode == 0
    failed = run("ps", "--url", f"unix:{tmp_path}/none")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert run("ps", SWAPD_URL="nonsense").returncode == 2


def test_a_reader_that_goes_away_is_no_error() -> None:
    script = f"{sys.executable} -m swapd devices --json | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["/bin/bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
