"""Many clients at one model of a real daemon: what each got, and when."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from support.running_daemon import scripted_yaml

SLOTS = 4
SERVICE_S = 0.2
WORDS = "tokens=4 gap_s=0.05"
"""The scripted worker's way to spend SERVICE_S."""


@dataclass
class Answers:
    """What clients got, and when."""

    statuses: Counter[int] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    waited_s: list[float] = field(default_factory=list)
    served_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    retry_after_s: list[int] = field(default_factory=list)


def contended(tmp_path: Path, queue: str) -> str:
    model = f"  a: {{path: a.model, memory_mib: 100, n_parallel: {SLOTS}}}\n"
    return scripted_yaml(tmp_path, model, server="  client_header: X-User\n", top=f"queue: {queue}\n")


async def ask(session: aiohttp.ClientSession, url: str, client: str, into: Answers, padding: str = "") -> None:
    body = {"model": "a", "messages": [{"role": "user", "content": WORDS}], "user": padding}
    began_s = time.monotonic()
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body, headers={"X-User": client}) as answer:
            await answer.read()
    except aiohttp.ClientError as error:
        into.broken.append(repr(error))
        return
    took_s = time.monotonic() - began_s
    into.statuses[answer.status] += 1
    if answer.status == 200:
        waited_s = float(answer.headers["X-Swapd-Queue-Time"])
        into.waited_s.append(waited_s)
        into.served_s.append(took_s - waited_s)
    else:
        into.refused_s.append(took_s)
        into.retry_after_s.append(int(answer.headers["Retry-After"]))
