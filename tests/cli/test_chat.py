"""chat and completion: answers in a pipe and in a real terminal, and a real shell that completes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.admin_script import Script, model_document, scripted_admin, status_document
from support.terminal import Terminal

from swapd.cli import main

CHAT = "POST /v1/chat/completions"
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def daemon() -> Iterator[Script]:
    with scripted_admin() as script:
        yield script


def stream(*pieces: str, thought: str = "", done: bool = True, error: str = "") -> bytes:
    deltas = [{"reasoning_content": thought}] if thought else []
    deltas += [{"content": piece} for piece in pieces]
    events = [json.dumps({"choices": [{"index": 0, "delta": delta}]}) for delta in deltas]
    events += [json.dumps({"error": {"message": error}})] if error else []
    events += ["[DONE]"] if done else []
    return "".join(f"data: {event}\n\n" for event in events).encode()


def pipe_in(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_a_prompt_gets_one_answer_and_nothing_else_in_a_pipe(
    daemon: Script, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe_in(monkeypatch, "the text\n")
    daemon.answer(CHAT, stream("Pa", "ris\x1b[31m\x07.\n\tEnd", thought="hm"))
    assert main(["chat", "tiny", "What", "is it?", "--system", "Be brief.", "--url", daemon.url]) == 0
    assert capsys.readouterr() == ("Paris[31m.\n\tEnd\n", "")
    (body,) = daemon.bodies
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is it?\n\nthe text\n"},
    ]


def test_what_goes_wrong_is_one_line_and_exit_1(
    daemon: Script, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    for reply, message in (
        (stream("Par", error="the worker died"), "the worker died"),
        (stream("Par", done=False), "the answer of tiny broke off before its end"),
    ):
        pipe_in(monkeypatch, "hello")
        daemon.answer(CHAT, reply)
        assert main(["chat", "tiny", "--url", daemon.url]) == 1
        assert capsys.readouterr().err == f"swapd: {message}\n"
    pipe_in(monkeypatch, "")
    assert main(["chat", "tiny", "--url", daemon.url]) == 1
    assert "there is nothing to say" in capsys.readouterr().err


def test_a_conversation_goes_on_from_what_was_said_and_begins_anew_when_it_is_told_to(daemon: Script) -> None:
    loading = {"pid": 1, "state": "loading", "running": 0, "reserved_bytes": {}, "placement": "", "progress": 0.4}
    daemon.answer("GET /swapd/v1/status", status_document(models=[model_document("tiny", workers=[loading])]))
    daemon.answer(CHAT, stream("Paris.", thought="I think"))
    terminal = Terminal("chat", "tiny", "--url", daemon.url)
    terminal.wait_for("/reset forgets")
    for number, line in enumerate(("capital of France", "and of Spain", "/reset\nhello"), start=1):
        terminal.type(f"{line}\n")
        terminal.wait_for("Paris.", times=number)
    terminal.type("/exit\n")
    assert terminal.end() == 0
    assert "\x1b[2mI think\x1b[22m" in terminal.text
    assert [len(body["messages"]) for body in daemon.bodies] == [1, 3, 1]
    assert daemon.bodies[1]["messages"][1] == {"role": "assistant", "content": "Paris."}


def test_models_are_the_daemons_or_else_the_files(daemon: Script, capsys: Captured, tmp_path: Path) -> None:
    daemon.answer("GET /swapd/v1/status", status_document(models=[model_document("org/a"), model_document("b")]))
    assert main(["models", "--url", daemon.url]) == 0
    assert capsys.readouterr().out == "org/a\nb\n"
    config = tmp_path / "swapd.yaml"
    config.write_text("server: {listen: 127.0.0.1:1}\nmodels: {c: {path: c.gguf}}\n")
    assert main(["models", "--config", str(config)]) == 0
    assert capsys.readouterr().out == "c\n"


def test_bash_completes_commands_and_the_names_of_models(daemon: Script, capsys: Captured, tmp_path: Path) -> None:
    daemon.answer("GET /swapd/v1/status", status_document(models=[model_document("qwen3"), model_document("gemma")]))
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "swapd").write_text(f'#!/bin/sh\nexec {sys.executable} -m swapd "$@"\n')
    (tmp_path / "swapd").chmod(0o755)

    def completed(*words: str) -> list[str]:
        line = " ".join(words)
        lines = [
            f"source {tmp_path / 'script'}",
            f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; COMP_LINE='{line}'; COMP_POINT={len(line)}",
            "$(complete -p swapd | sed 's/.*-F \\([^ ]*\\).*/\\1/')",
            'printf "%s\\n" "${COMPREPLY[@]}"',
        ]
        environ = {**os.environ, "SWAPD_URL": daemon.url, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", "-c", "\n".join(lines)], env=environ, capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout.split()

    assert "load" in completed("swapd", "lo")
    assert completed("swapd", "load", "q") == ["qwen3"]
    assert set(completed("swapd", "chat", "''")) >= {"qwen3", "gemma"}


def test_the_script_for_zsh_names_every_command(capsys: Captured) -> None:
    assert main(["completion", "zsh"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("#compdef swapd")
    for command in ("serve", "chat", "unload", "estimate"):
        assert f"{command}:" in script
    assert "_swapd_models() {" in script
