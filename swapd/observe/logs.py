"""Log lines on stderr: key-value to a terminal, one JSON object per line otherwise.

Owns the set-up of structlog and of the standard library's logging, which ends in the same lines. A line can
not be forged by what it quotes, and logging never raises and never blocks on a reader that has gone away.
Must never be given prompts or keys.
"""

from __future__ import annotations

import json
import logging
import os
import re
import select
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

MAX_VALUE_CHARS = 8192
"""Of one value in a line; the rest is cut."""

_PIPE_BUF_BYTES = 4096
"""A pipe that polls writable takes this much without blocking (POSIX PIPE_BUF on Linux)."""

# C0 and C1 controls (line breaks, escape sequences), Unicode line breaks, bidirectional overrides, surrogates.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escape_controls(text: str) -> str:
    """The text on one line, with every character that could move a cursor written as an escape."""
    return _CONTROLS.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class LineWriter:
    """structlog's last station. Lines that the descriptor does not take at once are dropped and counted."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._torn = False
        self.dropped = 0

    def msg(self, line: str) -> None:
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        if self._torn:
            data = b"\n" + data
        try:
            written = self._write(data)
        except (OSError, ValueError):
            written = 0
        if written:
            self._torn = written < len(data)
        if written < len(data):
            self.dropped += 1

    log = debug = info = warning = warn = error = critical = fatal = exception = failure = msg

    def _write(self, data: bytes) -> int:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        written = 0
        while written < len(data):
            if not any(flags & select.POLLOUT for _, flags in poll.poll(0)):
                break
            written += os.write(self._fd, data[written : written + _PIPE_BUF_BYTES])
        return written


class _ToStructlog(logging.Handler):
    """Sends the standard library's records (aiohttp, asyncio) the same way as the daemon's own lines."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except Exception:
            text = str(record.msg)
        level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
        structlog.get_logger().bind(logger=record.name).log(level, text, exc_info=record.exc_info or None)


def set_up(*, json_lines: bool | None = None, level: int = logging.INFO, stream: TextIO | None = None) -> LineWriter:
    """Send all logging of this process to `stream` (stderr). `json_lines` None asks whether it is a terminal."""
    stream = stream or sys.stderr
    fd = stream.fileno()
    if json_lines is None:
        json_lines = not os.isatty(fd)
    writer = LineWriter(fd)
    structlog.configure(
        processors=_processors(json_lines=json_lines, colors=not json_lines and os.isatty(fd)),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=False,
    )
    logging.raiseExceptions = False
    logging.basicConfig(handlers=[_ToStructlog()], level=max(level, logging.WARNING), force=True)
    return writer


def set_level(level: str) -> None:
    """From now on, write lines of this level and above: `debug`, `info`, `warning` or `error`."""
    least = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(least))
    logging.getLogger().setLevel(max(least, logging.WARNING))


def _processors(*, json_lines: bool, colors: bool) -> list[Processor]:
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    if json_lines:
        return [*shared, _tame, _render_json]
    plain = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)
    return [*shared, _tame, _indent_exception, plain]


def _tame(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
    """Cut long values and escape controls. Only a traceback keeps its line breaks, and is indented later."""
    for key, value in fields.items():
        if key == "exception" and isinstance(value, str):
            lines = value[-MAX_VALUE_CHARS:].splitlines()
            fields[key] = "\n".join(escape_controls(line) for line in lines)
        else:
            fields[key] = _tame_value(value)
    return fields


def _tame_value(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _tame_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_tame_value(inner) for inner in value]
    try:
        text = str(value)
    except Exception:
        text = f"<{type(value).__name__} without a text>"
    return escape_controls(text[:MAX_VALUE_CHARS])


def _indent_exception(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
    if isinstance(fields.get("exception"), str):
        fields["exception"] = "\n".join(f"    | {line}" for line in fields["exception"].split("\n"))
    return fields


def _render_json(_logger: WrappedLogger, _method: str, fields: MutableMapping[str, Any]) -> str:
    return json.dumps(fields)
