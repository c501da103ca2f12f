"""Streamed chats of scripted workers, each unlike any other, read to their end and judged byte by byte."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp
from support.scripted_worker import DONE, event, whole_stream

Ending = Literal["whole", "error", "refused", "broken"]
"""`whole`: every byte and the mark of the end. `error`: whole events, then an error and no mark. `refused`: a status
with an error. `broken`: anything else, which a client could mistake or not read."""


def clients(total_s: float = 60.0) -> aiohttp.ClientSession:
    """As many connections as requests, none of them kept."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=total_s))


def is_error(document: object) -> bool:
    """Whether it is OpenAI's envelope with something to read in it."""
    error = document.get("error") if isinstance(document, dict) else None
    return isinstance(error, dict) and bool(error.get("message")) and bool(error.get("type"))


def judge(status: int, body: bytes, tokens: int, seed: int, pad: int = 0) -> Ending:
    """What a client that got this has been told."""
    if status != 200:
        return "refused" if _is_error_text(body) else "broken"
    said = b"".join(part + b"\n\n" for part in body.split(b"\n\n")[:-1] if not part.startswith(b":"))
    if said.endswith(DONE):
        return "whole" if said == whole_stream(tokens, seed, pad) else "broken"
    *events, last = said.split(b"\n\n")[:-1] or [b""]
    expected = [event(number, seed, pad)[:-2] for number in range(len(events))]
    if DONE in said or not body.endswith(b"\n\n") or events != expected:
        return "broken"
    return "error" if _is_error_text(last.removeprefix(b"data: ")) else "broken"


def _is_error_text(text: bytes) -> bool:
    try:
        return is_error(json.loads(text))
    except ValueError:
        return False


@dataclass
class Endings:
    """What became of many streams."""

    counts: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    """The status and the end of each answer that was none."""


@dataclass
class Chat:
    """One stream: what is asked, and what has come of it."""

    model: str
    seed: int
    tokens: int
    pad: int = 0
    words: str = ""
    """Further words for the worker."""
    dawdle_s: float = 0.0
    """For how long the client takes a piece of the answer now and then."""
    status: int = 0
    body: bytearray = field(default_factory=bytearray)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    """Something of the answer has come."""

    def document(self, **fields: object) -> dict[str, Any]:
        words = f"tokens={self.tokens} seed={self.seed} pad={self.pad} {self.words}"
        return {"model": self.model, "messages": [{"role": "user", "content": words}], "stream": True, **fields}

    async def run(self, session: aiohttp.ClientSession, url: str, into: Endings | None = None) -> Ending:
        """Ask, read to the end, judge."""
        hurry_s = time.monotonic() + self.dawdle_s
        try:
            async with session.post(f"{url}/v1/chat/completions", json=self.document()) as answer:
                self.status = answer.status
                async for chunk in answer.content.iter_any():
                    self.body += chunk
                    self.begun.set()
                    if time.monotonic() < hurry_s:
                        await asyncio.sleep(0.1)
        except aiohttp.ClientError as error:
            ending: Ending = "broken"
            said = f"{self.status} {error!r} {bytes(self.body[-200:])!r}"
        else:
            ending = judge(self.status, bytes(self.body), self.tokens, self.seed, self.pad)
            said = f"{self.status} {bytes(self.body[-200:])!r}"
        if into is not None:
            into.counts[ending] += 1
            into.statuses[self.status] += 1
            if ending in ("error", "refused"):
                into.codes[self.error_code()] += 1
            if ending == "broken":
                into.broken.append(said)
        return ending

    def error_code(self) -> str:
        """Of the error that it ended with."""
        text = bytes(self.body)
        last = text if self.status != 200 else text.split(b"\n\n")[-2].removeprefix(b"data: ")
        return str(json.loads(last)["error"].get("code"))
