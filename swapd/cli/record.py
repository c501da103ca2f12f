"""The command that writes down which requests a running daemon gets, as a trace for `swapd simulate`."""

from __future__ import annotations

import argparse
import asyncio
from contextlib import aclosing
from typing import BinaryIO

from swapd.cli.output import CommandError, complain, print_line
from swapd.cli.remote import ask
from swapd.client import Client, DaemonError
from swapd.pool.status import ModelStatus, RequestEnded, Status
from swapd.simulate.trace import Header, ModelFacts, Request, encode


def record(arguments: argparse.Namespace) -> int:
    """Record until the time is over, the daemon stops, or the person does."""
    try:
        file = arguments.file.open("xb", buffering=0)
    except FileExistsError:
        raise CommandError(f"{arguments.file} is there already; name a new file") from None
    except OSError as error:
        raise CommandError(f"{arguments.file} cannot be written: {error.strerror}") from None
    with file:
        count = ask(
            arguments, lambda client: _record(client, file, arguments.for_s, f"recording into {arguments.file}")
        )
    print_line(f"{count:,} requests are in {arguments.file}; try: swapd simulate {arguments.file}")
    return 0


async def _record(client: Client, file: BinaryIO, for_s: float | None, doing: str = "recording") -> int:
    """How many requests were recorded. That it has begun is told as `doing`."""
    file.write(encode(_header(await client.status())))
    count = 0

    def began() -> None:
        complain(doing + ("; Ctrl-C ends it" if for_s is None else ""))

    try:
        async with asyncio.timeout(for_s), aclosing(client.requests_ended(began)) as ended:
            start = None
            async for one in ended:
                start = one.arrived_at if start is None else start
                line = as_line(one, start)
                if line is not None:
                    file.write(encode(line))
                    count += 1
        complain("the daemon has ended the recording")
    except TimeoutError:
        pass
    except asyncio.CancelledError:
        # Ctrl-C is how a recording without an end is ended. What is left is one more question to the daemon.
        _forget_cancel()
    try:
        # Once more, because loads were timed meanwhile.
        file.write(encode(_header(await client.status())))
    except DaemonError as error:
        complain(f"what is recorded has no load times of its end: {error}")
    return count


def _forget_cancel() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()


def _header(status: Status) -> Header:
    return Header(models={model.id: _facts(model) for model in status.models})


def _facts(model: ModelStatus) -> ModelFacts:
    # A device that shares another's memory counts there, too: what is on both is counted twice at the most.
    size_bytes = sum(model.footprint.estimated_bytes.values())
    return ModelFacts(size_bytes=size_bytes or None, load_s=model.load_s, slots=model.slots or None)


def as_line(ended: RequestEnded, start: float) -> Request | None:
    """The request in a trace that begins at the Unix time `start`; None for one that is told of again.

    A request whose worker died is asked once more under the same name, so only its last try counts.
    """
    if ended.outcome == "failed" and ended.service_s is not None:
        return None
    prompt_tokens = ended.prompt_tokens
    if prompt_tokens is not None and ended.cached_tokens is not None:
        prompt_tokens -= ended.cached_tokens
    return Request(
        at_s=ended.arrived_at - start,
        model=ended.model,
        client=ended.client,
        priority=ended.priority,
        prompt_tokens=prompt_tokens,
        output_tokens=ended.completion_tokens,
        service_s=ended.service_s,
    )
