"""One request without a body to a worker, for the daemon's own sake: that it sleeps, that it wakes.

Must never follow a redirect, nor keep what is answered.
"""

from __future__ import annotations

import asyncio

import aiohttp

from backends.address import UnixAddress, WorkerAddress

MAX_ANSWER_CHARS = 200
"""Of an answer that is a refusal, what is told."""


class NotDoneError(Exception):
    """The worker did not do it; the message says what it did instead."""


async def post(address: WorkerAddress, path: str, timeout_s: float) -> None:
    """Returns once the worker has answered 200. Raises `NotDoneError`, after `timeout_s` at the latest."""
    connector: aiohttp.BaseConnector
    if isinstance(address, UnixAddress):
        connector, base_url = aiohttp.UnixConnector(str(address.path)), "http://localhost"
    else:
        connector, base_url = aiohttp.TCPConnector(), f"http://{address.authority}"
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session,
            session.post(base_url + path, allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                said = (await answer.content.read(MAX_ANSWER_CHARS)).decode("utf-8", "replace")
                raise NotDoneError(f"it answered {answer.status} to POST {path}: {said}")
    except TimeoutError:
        raise NotDoneError(f"it did not answer POST {path} within {timeout_s:g} s") from None
    except (OSError, aiohttp.ClientError, asyncio.IncompleteReadError) as error:
        raise NotDoneError(f"POST {path} failed: {error or type(error).__name__}") from error
