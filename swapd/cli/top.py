"""`swapd top`: the daemon live in a terminal, until somebody has seen enough.

Owns the screen while it runs and leaves the terminal as it was. What a frame shows is a pure function of a status.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import termios
import tty
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from swapd.cli.output import console, duration, size
from swapd.cli.progress import stage
from swapd.cli.remote import ask, print_status, remarks
from swapd.client import Client, DaemonError
from swapd.observe.logs import escape_controls
from swapd.pool.status import DeviceStatus, ModelStatus, RequestEnded, RequestStatus, Status

AGAIN_S = 2.0
"""Until a daemon that does not answer is asked again."""
FRESH_S = 60.0
"""How long the speed of a model's last answer is shown."""
MAX_REQUESTS = 12
_COLOURS = ("blue", "green", "magenta", "yellow", "red", "cyan")
_STATE_STYLES = {"ready": "green", "unloaded": "dim", "asleep": "dim"}
_QUIT = b"qQ\x03"


class Speeds:
    """Tokens per second of each model's newest answer. `now_s` is a clock's time throughout."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, float]] = {}

    def note(self, ended: RequestEnded, now_s: float) -> None:
        """A request has ended."""
        if ended.completion_tokens and ended.service_s:
            self._known[ended.model] = (ended.completion_tokens / ended.service_s, now_s)

    def fresh(self, now_s: float) -> dict[str, float]:
        """Those that are not older than `FRESH_S`."""
        return {model: speed for model, (speed, at_s) in self._known.items() if now_s - at_s <= FRESH_S}


def top(arguments: argparse.Namespace) -> int:
    """Show the daemon until `q` or Ctrl-C; once, where the output is no terminal."""
    if not sys.stdout.isatty():
        print_status(console(), ask(arguments, Client.status))
        return 0
    with contextlib.suppress(KeyboardInterrupt):
        ask(arguments, lambda client: _run(client, arguments.interval))
    return 0


async def _run(client: Client, interval_s: float) -> None:
    speeds = Speeds()
    clock = asyncio.get_running_loop().time
    with _keys() as pressed, Live(console=Console(), screen=True, auto_refresh=False) as live:
        heard = asyncio.create_task(_hear(client, speeds), name="requests that end")
        try:
            while not pressed.is_set():
                wait_s, asked = interval_s, asyncio.ensure_future(client.status())
                # Whoever presses a key does not wait for a daemon that hangs.
                leaving = asyncio.ensure_future(pressed.wait())
                await asyncio.wait({asked, leaving}, return_when=asyncio.FIRST_COMPLETED)
                leaving.cancel()
                if not asked.done():
                    asked.cancel()
                    return
                try:
                    shown = frame(asked.result(), speeds.fresh(clock()), live.console.width)
                except DaemonError as error:
                    shown, wait_s = Text(escape_controls(f"{error}; it is asked again"), style="red"), AGAIN_S
                live.update(shown, refresh=True)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await pressed.wait()
        finally:
            heard.cancel()
            await asyncio.wait({heard})


async def _hear(client: Client, speeds: Speeds) -> None:
    """Listen for requests that end, also after the daemon was away."""
    clock = asyncio.get_running_loop().time
    while True:
        with contextlib.suppress(DaemonError):
            async with aclosing(client.requests_ended(lambda: None)) as ended:
                async for one in ended:
                    speeds.note(one, clock())
        await asyncio.sleep(AGAIN_S)


@contextlib.contextmanager
def _keys() -> Iterator[asyncio.Event]:
    """Set once somebody presses a key to leave. The terminal tells of single keys meanwhile."""
    pressed = asyncio.Event()
    if not sys.stdin.isatty():
        yield pressed
        return
    fd, loop = sys.stdin.fileno(), asyncio.get_running_loop()
    before = termios.tcgetattr(fd)

    def read() -> None:
        keys = os.read(fd, 64)
        if not keys or any(key in _QUIT for key in keys):
            pressed.set()

    tty.setcbreak(fd)
    loop.add_reader(fd, read)
    try:
        yield pressed
    finally:
        loop.remove_reader(fd)
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


# -- one frame --------------------------------------------------------------------------------------------------------


def frame(status: Status, speeds: Mapping[str, float], width: int) -> RenderableType:
    """All there is to see. `width` is in columns; `speeds` in tokens per second, by model."""
    counts = status.requests
    head = Text.assemble(
        ("swapd ", "bold"),
        f"{status.version}   {counts.running} running, {counts.waiting} waiting, {counts.finished} finished, ",
        f"{counts.failed} failed   ",
        ("q leaves", "dim"),
    )
    colours = {model.id: _COLOURS[index % len(_COLOURS)] for index, model in enumerate(status.models)}
    parts: list[RenderableType] = [head, Text()]
    parts += [_device(device, status.models, colours, width) for device in status.devices]
    parts += [Text(), _models(status.models, speeds, colours, width)]
    if status.in_flight:
        parts += [Text(), _requests(status.in_flight[:MAX_REQUESTS])]
    parts += [Text(escape_controls(said), style="dim") for said in remarks(status)]
    return Group(*parts)


def _device(
    device: DeviceStatus, models: tuple[ModelStatus, ...], colours: Mapping[str, str], width: int
) -> RenderableType:
    """A line of figures and a bar: of the budget each model's share, then what is left."""
    room = max(10, width - 2)
    whole = max(device.budget_bytes, device.reserved_bytes, 1)
    bar, drawn, shared = Text(), 0, 0
    for model in models:
        size_bytes = sum(worker.reserved_bytes.get(device.name, 0) for worker in model.workers)
        shared += size_bytes
        cells = min(room - drawn, round(room * size_bytes / whole))
        label = escape_controls(model.id)[: max(0, cells - 1)]
        bar.append(label.ljust(cells), style=f"white on {colours[model.id]}")
        drawn += cells
    rest = min(room - drawn, round(room * max(0, device.reserved_bytes - shared) / whole))
    bar.append(" " * rest, style="on bright_black")
    bar.append("·" * (room - drawn - rest), style="dim")
    others = f", other programs {size(device.others_bytes)}" if device.others_bytes else ""
    paused = ", handed over" if device.paused else ""
    left = max(0, device.budget_bytes - device.reserved_bytes)
    figures = f"{size(device.reserved_bytes)} of {size(device.budget_bytes)}, {size(left)} left"
    said = f"{device.name}  {figures}{others}{paused}"
    return Group(Text(said, no_wrap=True, overflow="ellipsis"), bar)


def _models(
    models: tuple[ModelStatus, ...], speeds: Mapping[str, float], colours: Mapping[str, str], width: int
) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, expand=True)
    table.add_column("MODEL", ratio=3, overflow="ellipsis", no_wrap=True)
    table.add_column("STATE", ratio=2, overflow="ellipsis", no_wrap=True)
    for title in ("RUN", "WAIT", "TOK/S"):
        table.add_column(title, justify="right", no_wrap=True)
    if width >= 70:
        table.add_column("USED", justify="right", no_wrap=True)
    for model in models:
        name = Text(escape_controls(model.id) + (" *" if model.pin else ""), style=colours[model.id])
        row: list[Text] = [
            name,
            _state(model),
            Text(str(model.running)),
            Text(str(model.waiting)),
            Text(f"{speeds[model.id]:.1f}" if model.id in speeds else "-"),
        ]
        if width >= 70:
            row.append(Text("never" if model.last_used_s is None else duration(model.last_used_s)))
        table.add_row(*row)
    return table


def _state(model: ModelStatus) -> Text:
    """The state, and of a load how far it is."""
    what, part = stage(model)
    said = model.state if part is None and model.waits is None else what
    percent = "" if part is None else f" {part:.0%}"
    return Text(escape_controls(said) + percent, style=_STATE_STYLES.get(model.state, "yellow"))


def _requests(requests: Sequence[RequestStatus]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for title in ("REQUEST", "MODEL", "CLIENT", "STATE"):
        table.add_column(title, overflow="ellipsis", no_wrap=True)
    table.add_column("SINCE", justify="right", no_wrap=True)
    for one in requests:
        since_s = one.waited_s if one.running_s is None else one.running_s
        state = one.state if one.position is None else f"waiting, {one.position}."
        table.add_row(
            *(Text(escape_controls(cell)) for cell in (one.id, one.model, one.client, state, duration(since_s)))
        )
    return table
