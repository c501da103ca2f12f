"""llama.cpp's log: passed on to stderr, and kept by the line while a call that may fail runs.

Owns the process-wide log callback. Must never raise into llama.cpp.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import llama_cpp.llama_cpp as llama

# enum ggml_log_level of ggml.h; the bindings' own comments are of an older one.
_DEBUG, _INFO, _ERROR, _CONTINUED = 1, 2, 4, 5
_ERRORS_KEPT = 32
_STDERR = 2
_MEMORY_TROUBLE = ("alloc", "out of memory", "outofdevicememory", "mmap failed", "mlock", "device lost", "cuda error")

_collecting: list[deque[str]] = []
_level = _INFO
"""Of the line being logged: a continued one does not name its own."""


def _on_log(level: int, text: bytes | None, _: Any) -> None:
    global _level
    if level != _CONTINUED:
        _level = level
    if _level == _DEBUG or not text:
        return
    if _level == _ERROR:
        for kept in _collecting:
            kept.append(text.decode("utf-8", errors="replace").strip())
    try:
        os.write(_STDERR, text)
    except OSError:
        return


callback = llama.llama_log_callback(_on_log)
"""For llama.cpp and the libraries that come with it."""


def install() -> None:
    """Route llama.cpp's log here, for the life of the process."""
    llama.llama_log_set(callback, None)


@contextmanager
def collect_errors() -> Iterator[Sequence[str]]:
    """The newest error lines logged inside, oldest first."""
    kept: deque[str] = deque(maxlen=_ERRORS_KEPT)
    _collecting.append(kept)
    try:
        yield kept
    finally:
        _collecting.remove(kept)


def reason(errors: Sequence[str]) -> str:
    """The cause: llama.cpp logs it first, after the function's name, and then what each caller made of it."""
    if not errors:
        return "it gave no reason"
    _, _, text = errors[0].partition(": ")
    return (text or errors[0]).removeprefix("error loading model: ")


def is_memory_trouble(errors: Sequence[str]) -> bool:
    """Whether the log speaks of memory or a device rather than of the file: another time may work."""
    return any(word in line.lower() for line in errors for word in _MEMORY_TROUBLE)
