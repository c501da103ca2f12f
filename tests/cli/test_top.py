"""top: what a frame shows, and a real terminal that is left as it was."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import pytest
from rich.console import Console
from support.admin_script import Script, model_document, scripted_admin, status_document
from support.terminal import Terminal

from swapd.cli import main
from swapd.cli.top import FRESH_S, Speeds, frame
from swapd.pool.status import RequestEnded, Status

MIB = 1024 * 1024
LOADING = {"pid": 1, "state": "loading", "running": 0, "placement": "", "progress": 0.4}


@pytest.fixture
def daemon() -> Iterator[Script]:
    with scripted_admin() as script:
        yield script


def status(**changes: Any) -> Status:
    return msgspec.convert(status_document(**changes), Status)


def shown(one: Status, speeds: Mapping[str, float] | None = None, width: int = 100) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(frame(one, speeds or {}, width))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return [line.rstrip() for line in str(text).splitlines()]


def test_a_bar_shows_each_models_share_of_the_budget_and_what_is_left() -> None:
    device = {"name": "RAM", "total_bytes": 900 * MIB, "budget_bytes": 800 * MIB, "reserved_bytes": 600 * MIB}
    half = {**LOADING, "state": "ready", "progress": None, "reserved_bytes": {"RAM": 400 * MIB}}
    quarter = {**half, "reserved_bytes": {"RAM": 200 * MIB}}
    models = [model_document("big", state="ready", workers=[half]), model_document("small", workers=[quarter])]
    lines = shown(status(devices=[{**device, "free_bytes": 0, "others_bytes": 50 * MIB}], models=models), width=82)
    at = next(number for number, line in enumerate(lines) if line.startswith("RAM"))
    assert lines[at] == "RAM  600 MiB of 800 MiB, 200 MiB left, other programs 50 MiB"
    assert lines[at + 1] == "big".ljust(40) + "small".ljust(20) + "·" * 20


def test_a_load_shows_how_far_it_is_and_names_cannot_move_the_cursor() -> None:
    loading = {**LOADING, "reserved_bytes": {"RAM": MIB}}
    models = [
        model_document("tiny", state="loading", workers=[loading]),
        model_document("a\x1b[31mb", pin=True, error="c\x07d"),
        model_document("late", waits="waits for its turn after 'tiny'", waiting=3),
    ]
    text = "\n".join(shown(status(models=models), {"tiny": 12.34}))
    assert "loading 40%" in text
    assert "12.3" in text
    assert "a\\x1b[31mb *" in text
    assert not {"\x1b", "\x07"} & set(text)
    assert "waits for its turn" in text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    models = [model_document("a-name-that-goes-on-and-on-" * 3, state="ready"), model_document("b")]
    request = {"id": "req-1", "model": "b", "client": "ann", "priority": 0, "state": "waiting", "waited_s": 2.0}
    lines = shown(status(models=models, in_flight=[{**request, "position": 1}]), width=width)
    assert max(map(len, lines)) <= width
    assert any("waiting, 1." in line for line in lines) or width < 80


def test_a_speed_is_shown_as_long_as_it_is_fresh() -> None:
    ended = RequestEnded(
        id="r", arrived_at=0.0, model="m", client="c", priority=0, outcome="finished", waited_s=0.0, service_s=2.0,
        prompt_tokens=1, cached_tokens=0, completion_tokens=30,
    )  # fmt: skip
    speeds = Speeds()
    speeds.note(ended, 10.0)
    speeds.note(msgspec.structs.replace(ended, model="none", completion_tokens=None), 10.0)
    assert speeds.fresh(10.0 + FRESH_S) == {"m": 15.0}
    assert speeds.fresh(10.1 + FRESH_S) == {}


def test_it_is_live_in_a_terminal_and_q_leaves_it_as_it_was(daemon: Script) -> None:
    daemon.answer("GET /swapd/v1/status", status_document(models=[model_document("tiny")]))
    terminal = Terminal("top", "--interval", "100ms", "--url", daemon.url)
    terminal.wait_for("tiny")
    daemon.answer("GET /swapd/v1/status", status_document(models=[model_document("other")]))
    terminal.wait_for("other")
    daemon.refuse("GET /swapd/v1/status", 503, "it is starting")
    terminal.wait_for("it is starting; it is asked again")
    terminal.type("q")
    assert terminal.end() == 0
    assert "\x1b[?1049l" in terminal.text, "the screen that was there before is back"


def test_without_a_terminal_it_says_once_what_ps_does(daemon: Script, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.answer("GET /swapd/v1/status", status_document(models=[model_document("tiny")]))
    assert not sys.stdout.isatty()
    assert main(["top", "--url", daemon.url]) == 0
    assert "tiny" in capsys.readouterr().out


def test_an_interval_has_its_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["top", "--interval", "1ms"])
    assert "must be from 100ms to 1m" in capsys.readouterr().err
