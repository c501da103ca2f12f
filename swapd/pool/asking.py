"""Requests without a client to a worker, for the daemon's own sake: that it sleeps, that it wakes.

Must never follow a redirect, nor keep what is answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import aiohttp

from backends.address import UnixAddress, WorkerAddress
from backends.base import Post

MAX_ANSWER_CHARS = 200
"""Of an answer that is a refusal, what is told."""


class NotDoneError(Exception):
    """The worker did not do it; the message says what it did instead."""


async def ask(address: WorkerAddress, posts: Sequence[Post], timeout_s: float, lost: asyncio.Future[str]) -> None:
    """Returns once the worker has answered 200 to one after another.

    Raises `NotDoneError` at the first that it does not, after `timeout_s` for them all at the latest, or as soon as
    `lost` tells that its process has ended: a container that ran for it may not answer even then.
    """
    asking = asyncio.current_task()
    assert asking is not None
    told = False

    def tell(_: asyncio.Future[str]) -> None:
        nonlocal told
        told = True
        asking.cancel()

    post = posts[0]
    lost.add_done_callback(tell)
    try:
        async with asyncio.timeout(timeout_s), _session(address) as session:
            for post in posts:
                await _post(session, _base_url(address), post)
    except asyncio.CancelledError:
        if not told or asking.uncancel():
            raise
        raise NotDoneError(f"it ended while it was asked to POST {post.path}") from None
    except TimeoutError:
        raise NotDoneError(f"it did not answer POST {post.path} within {timeout_s:g} s") from None
    finally:
        lost.remove_done_callback(tell)


async def _post(session: aiohttp.ClientSession, base_url: str, post: Post) -> None:
    try:
        async with session.post(base_url + post.path, json=post.body, allow_redirects=False) as answer:
            if answer.status != 200:
                said = (await answer.content.read(MAX_ANSWER_CHARS)).decode("utf-8", "replace")
                raise NotDoneError(f"it answered {answer.status} to POST {post.path}: {said}")
    except (OSError, aiohttp.ClientError, asyncio.IncompleteReadError) as error:
        raise NotDoneError(f"POST {post.path} failed: {error or type(error).__name__}") from error


def _session(address: WorkerAddress) -> aiohttp.ClientSession:
    connector: aiohttp.BaseConnector
    connector = aiohttp.UnixConnector(str(address.path)) if isinstance(address, UnixAddress) else aiohttp.TCPConnector()
    # The caller's bound is the only one.
    no_timeout = aiohttp.ClientTimeout()
    return aiohttp.ClientSession(connector=connector, timeout=no_timeout, cookie_jar=aiohttp.DummyCookieJar())


def _base_url(address: WorkerAddress) -> str:
    return "http://localhost" if isinstance(address, UnixAddress) else f"http://{address.authority}"
