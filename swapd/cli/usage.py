"""The command that says what past requests took."""

from __future__ import annotations

import argparse

from swapd.activity.shapes import Usage, UsageRow
from swapd.cli.output import Column, console, duration, print_json, print_line, print_table
from swapd.cli.remote import ask


def usage(arguments: argparse.Namespace) -> int:
    """Sums by model, key or day."""
    found: Usage = ask(arguments, lambda client: client.usage(arguments.by, arguments.since))
    if arguments.json:
        print_json(found)
    elif not found.rows:
        print_line(f"no request has ended in the last {duration(arguments.since)}")
    else:
        columns = [Column(found.by.upper()), *_COLUMNS]
        print_table(console(), columns, [_cells(row) for row in found.rows])
    return 0


_COLUMNS = [
    Column("REQUESTS", "right"),
    Column("FAILED", "right", min_width=50),
    Column("CANCELLED", "right", min_width=90),
    Column("PROMPT", "right"),
    Column("CACHED", "right", min_width=60),
    Column("GENERATED", "right"),
    Column("WAITED", "right", min_width=70),
    Column("FIRST TOKEN", "right", min_width=100),
    Column("TOTAL", "right", min_width=80),
]


def _cells(row: UsageRow) -> list[str]:
    counts = (row.requests, row.failed, row.cancelled, row.prompt_tokens, row.cached_tokens, row.completion_tokens)
    times = (row.waited_s, row.first_token_s, row.total_s)
    return [row.name, *(f"{count:,}" for count in counts), *(duration(time_s) for time_s in times)]
