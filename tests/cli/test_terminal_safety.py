"""What models and daemons say can neither leave a terminal in another state nor be run by a shell."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.admin_script import Script, model_document, status_document

from swapd.cli import main

Captured = pytest.CaptureFixture[str]


def test_after_an_answer_that_breaks_off_in_a_thought_the_terminal_is_as_it_was(
    daemon: Script, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    thought = json.dumps({"choices": [{"index": 0, "delta": {"reasoning_content": "I think"}}]})
    daemon.answer("POST /v1/chat/completions", f"data: {thought}\n\n")
    assert main(["chat", "tiny", "hello", "--url", daemon.url]) == 1
    assert capsys.readouterr().out == "\x1b[2mI think\x1b[22m\n"


def test_a_refused_prompt_leaves_nothing_in_the_pipe(
    daemon: Script, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello"))
    daemon.refuse("POST /v1/chat/completions", 404, "there is no model tiny")
    assert main(["chat", "tiny", "--url", daemon.url]) == 1
    assert capsys.readouterr() == ("", "swapd: there is no model tiny\n")


def test_bash_completes_a_hostile_name_as_one_quoted_word_and_runs_nothing(
    daemon: Script, capsys: Captured, tmp_path: Path
) -> None:
    mark = tmp_path / "executed"
    name = f"x$(touch {mark}); a `touch {mark}`"
    daemon.answer("GET /swapd/v1/status", status_document(models=[model_document(name), model_document("other")]))
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "swapd").write_text(f'#!/bin/sh\nexec {sys.executable} -m swapd "$@"\n')
    (tmp_path / "swapd").chmod(0o755)
    lines = [
        f"source {tmp_path / 'script'}",
        "COMP_WORDS=(swapd load x); COMP_CWORD=2; COMP_LINE='swapd load x'; COMP_POINT=12",
        "_shtab_swapd",
        'eval "words=(${COMPREPLY[*]})"',
        'printf "%s\\n" "${words[@]}"',
    ]
    environ = {**os.environ, "SWAPD_URL": daemon.url, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)], env=environ, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == f"{name}\n"
    assert not mark.exists()
