"""How the command line prints: tables for people, JSON for programs, one line for what went wrong."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from swapd.observe.logs import escape_controls

PIPE_WIDTH = 200
"""Columns when the output is no terminal: tools that read it should see whole lines."""
MIB = 1024 * 1024
GIB = 1024 * MIB


class CommandError(Exception):
    """The command failed; the message is one line for the person at the terminal, exit code 1."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table. Those with a `min_width` are left out of a terminal narrower than that."""

    title: str
    justify: Literal["left", "right"] = "left"
    min_width: int = 0


def console() -> Console:
    """Standard output. rich leaves colour out by itself when it is no terminal."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(file=sys.stdout, width=width, highlight=False, soft_wrap=False)


def complain(message: str, prefix: str = "swapd: ") -> None:
    """Say on standard error what went wrong. Lines stay lines; other controls are shown, not obeyed."""
    for line in message.split("\n"):
        sys.stderr.write(f"{prefix}{escape_controls(line)}\n")


def print_json(document: object) -> None:
    """One indented JSON document."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n")


def print_line(text: str) -> None:
    """One line as it is, never wrapped, with control characters shown."""
    sys.stdout.write(escape_controls(text) + "\n")
    sys.stdout.flush()


def print_table(to: Console, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """A table without vertical lines, its less important columns left out of a narrow terminal."""
    kept = [index for index, column in enumerate(columns) if to.width >= column.min_width]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for index in kept:
        column = columns[index]
        table.add_column(column.title, justify=column.justify, no_wrap=column.justify == "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(escape_controls(row[index])) for index in kept))
    to.print(table)


def size(size_bytes: int) -> str:
    """'512 MiB' below 10 GiB, '23.5 GiB' from there on."""
    return f"{size_bytes / GIB:.1f} GiB" if size_bytes >= 10 * GIB else f"{size_bytes / MIB:,.0f} MiB"


def sizes(device_bytes: dict[str, int]) -> str:
    """'CUDA0 5,120 MiB, RAM 310 MiB', or nothing."""
    return ", ".join(f"{name} {size(size_bytes)}" for name, size_bytes in device_bytes.items() if size_bytes)


def duration(seconds: float | None) -> str:
    """'1.9 s', '12 min', '3.5 h', or '-' for None."""
    if seconds is None:
        return "-"
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
