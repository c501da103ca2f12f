"""`swapd import`: where it writes, what it says, and that `swapd check` reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.registry import installed_backends
from swapd.cli import main
from swapd.config.load import load

Captured = pytest.CaptureFixture[str]
SOURCE = "logLevel: info\nmodels:\n  # mine\n  a: {cmd: 'llama-server --port ${PORT} -m a.gguf -c 4096'}\n"


def test_a_file_is_written_once_and_what_it_lacks_is_said_with_lines(tmp_path: Path, capsys: Captured) -> None:
    source, output = tmp_path / "llama-swap.yaml", tmp_path / "config.yaml"
    source.write_text(SOURCE)
    assert main(["import", str(source), "-o", str(output)]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        f"{source}:1: logLevel: not carried: see server.log_level",
        f"swapd: 1 models, 1 remarks, written to {output}; now `swapd check {output}`",
    ]
    assert list(load(output, installed_backends()).models) == ["a"]
    assert main(["import", str(source), "-o", str(output)]) == 1
    assert "is there already" in capsys.readouterr().err


def test_without_a_file_it_is_printed(tmp_path: Path, capsys: Captured) -> None:
    source = tmp_path / "llama-swap.yaml"
    source.write_text(SOURCE)
    assert main(["import", str(source)]) == 0
    assert "  # mine\n  a:\n    path: a.gguf\n    n_ctx: 4096\n" in capsys.readouterr().out


def test_what_is_no_yaml_is_refused_with_its_line(tmp_path: Path, capsys: Captured) -> None:
    source = tmp_path / "llama-swap.yaml"
    source.write_text("models:\n  a: [\n")
    assert main(["import", str(source)]) == 1
    assert capsys.readouterr().err.startswith(f"{source}:")
    assert main(["import", str(tmp_path / "none")]) == 1
    assert "cannot be read: No such file" in capsys.readouterr().err
