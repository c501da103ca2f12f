"""How far a model's load is, shown on a terminal while something waits for it. Pure but for `Bar`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from swapd.client import Client, DaemonError
from swapd.observe.logs import escape_controls
from swapd.pool.status import ModelStatus, Status

EVERY_S = 0.25
_COMING = ("launching", "loading", "waking")


def stage(model: ModelStatus) -> tuple[str, float | None]:
    """What it waits for, in a word or a sentence, and how far that is from 0 to 1; None where that is not known."""
    for worker in model.workers:
        if worker.state in _COMING:
            return worker.state, worker.progress
    return model.waits or model.state, None


def find(status: Status, name: str) -> ModelStatus | None:
    """The model of that id or alias."""
    return next((model for model in status.models if name in (model.id, *model.aliases)), None)


@asynccontextmanager
async def showing(client: Client, name: str) -> AsyncIterator[None]:
    """While the scope lasts, a bar on standard error if that is a terminal. It is gone afterwards."""
    if not sys.stderr.isatty():
        yield
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = asyncio.create_task(_follow(client, name, bar), name="progress")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def _follow(client: Client, name: str, bar: Progress) -> None:
    row = bar.add_task(escape_controls(name), total=None)
    while True:
        with suppress(DaemonError):
            model = find(await client.status(), name)
            if model is not None:
                what, part = stage(model)
                text = escape_controls(f"{model.id}: {what}")
                bar.update(row, description=text, total=None if part is None else 1.0, completed=part or 0.0)
        await asyncio.sleep(EVERY_S)
