"""record against a scripted daemon, and what it makes of each request."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import msgspec
import pytest
from support.admin_script import Script, model_document, status_document
from support.front_door import ScriptedDoor, house

from swapd.cli import main
from swapd.cli.record import _record, as_line
from swapd.client import Client, daemon_address
from swapd.pool.status import RequestEnded
from swapd.simulate.trace import read

Captured = pytest.CaptureFixture[str]

ENDED = RequestEnded(
    id="r1",
    arrived_at=1000.0,
    model="qwen3-8b",
    client="3f9a",
    priority=1,
    outcome="finished",
    waited_s=0.5,
    service_s=2.0,
    prompt_tokens=30,
    cached_tokens=10,
    completion_tokens=7,
)
LATER = msgspec.structs.replace(ENDED, arrived_at=1003.0, client="77b0", service_s=None, waited_s=None)


def feed(*ended: RequestEnded) -> bytes:
    return b": still here\n\n" + b"".join(b"data: " + msgspec.json.encode(one) + b"\n\n" for one in ended)


def test_what_is_recorded_is_a_trace(daemon: Script, tmp_path: Path, capsys: Captured) -> None:
    daemon.answer("GET /swapd/v1/status", status_document())
    daemon.answer("GET /swapd/v1/requests", feed(LATER, ENDED))
    file = tmp_path / "evening.jsonl"
    assert main(["record", str(file), "--url", daemon.url]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"2 requests are in {file}; try: swapd simulate {file}\n"
    assert "the daemon has ended the recording" in captured.err
    with file.open("rb") as lines:
        trace = read(lines)
    assert [(one.at_s, one.client, one.service_s) for one in trace.requests] == [
        (0.0, "3f9a", 2.0),
        (3.0, "77b0", None),
    ]
    assert (trace.requests[0].prompt_tokens, trace.requests[0].output_tokens) == (20, 7)
    assert trace.models["qwen3-8b"].load_s == 1.9
    assert trace.models["qwen3-8b"].size_bytes


def test_a_request_that_broke_is_left_out_because_it_is_asked_once_more() -> None:
    assert as_line(msgspec.structs.replace(ENDED, outcome="failed"), 0.0) is None
    assert as_line(msgspec.structs.replace(LATER, outcome="failed"), 0.0) is not None


def test_a_file_that_is_there_is_not_overwritten(daemon: Script, tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "precious.jsonl"
    file.write_text("mine")
    assert main(["record", str(file), "--url", daemon.url]) == 1
    assert "is there already" in capsys.readouterr().err
    assert file.read_text() == "mine"
    assert daemon.requests == []


def test_a_daemon_without_the_feed_is_named(daemon: Script, tmp_path: Path, capsys: Captured) -> None:
    daemon.answer("GET /swapd/v1/status", status_document(models=[model_document("tiny")]))
    daemon.refuse("GET /swapd/v1/requests", 404, "there is no such path")
    assert main(["record", str(tmp_path / "a.jsonl"), "--url", daemon.url]) == 1
    assert "there is no such path" in capsys.readouterr().err


async def test_a_recording_ends_when_its_time_is_over() -> None:
    file = io.BytesIO()
    async with house(ScriptedDoor()) as home, Client(daemon_address(home.url)) as client:
        assert await _record(client, file, 0.2) == 1
    trace = read(file.getvalue().splitlines())
    assert [one.output_tokens for one in trace.requests] == [4]


async def test_ctrl_c_ends_a_recording_with_all_that_belongs_to_it() -> None:
    class Interrupting(io.BytesIO):
        """Cancels, as Ctrl-C does, when the first request is written."""

        def write(self, line: bytes) -> int:  # type: ignore[override]
            if b'"request"' in line:
                recording.cancel()
            return super().write(line)

    file = Interrupting()
    async with house(ScriptedDoor()) as home, Client(daemon_address(home.url)) as client:
        recording = asyncio.ensure_future(_record(client, file, None))
        assert await recording == 1
    kinds = [line.split(b'"')[3] for line in file.getvalue().splitlines()]
    assert kinds == [b"trace", b"request", b"trace"]


def test_wrong_times_are_wrong_usage(tmp_path: Path, capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        main(["record", str(tmp_path / "a.jsonl"), "--for", "10"])
    assert "write 10s" in capsys.readouterr().err
