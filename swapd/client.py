"""A typed client of the daemon's own HTTP interface, over TCP or a Unix socket.

Owns where the daemon is looked for and how its answers are read. Must never print or decide what to do about
a failure: every one is a `DaemonError` with one sentence.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec

from swapd.activity.shapes import Grouping, Usage
from swapd.config.address import TcpAddress, UnixAddress, parse_address
from swapd.pool.status import DeviceStatus, ModelStatus, Profiles, RequestEnded, Status, Unloaded

CONNECT_TIMEOUT_S = 5.0
REPLY_TIMEOUT_S = 30.0
MAX_REPLY_BYTES = 16 * 1024 * 1024
MAX_LINE_BYTES = 1024 * 1024

_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, never bound


Answer = TypeVar("Answer")


class DaemonError(Exception):
    """The daemon could not be reached, or it refused; the message is one sentence for people."""


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of an answer."""

    text: str
    is_thought: bool = False
    """Reasoning, which is none of the answer itself."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a daemon listens."""

    base_url: str
    """Without a slash at the end."""
    socket_path: Path | None = None
    """Set when the connection goes through a Unix socket; `base_url` then only fills the Host header."""

    def __str__(self) -> str:
        return f"unix:{self.socket_path}" if self.socket_path is not None else self.base_url


def daemon_address(text: str) -> Address:
    """An address from `http://HOST:PORT`, `HOST:PORT` or `unix:/path`. Raises `ValueError`.

    A wildcard host, as a server listens on, becomes the loopback one.
    """
    if "://" in text:
        return Address(_checked_url(text))
    match parse_address(text):
        case UnixAddress(path):
            return Address("http://localhost", path)
        case TcpAddress(host, port):
            host = _LOOPBACK.get(host, host)
            return Address(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")


def _checked_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{text!r} is no daemon's address; write http://HOST:PORT, HOST:PORT or unix:/path")
    return text.rstrip("/")


class _Listed(msgspec.Struct):
    capabilities: tuple[str, ...] = ()


class Client:
    """One connection pool to one daemon; use it with `async with`. `key` is sent to a daemon that asks for one."""

    def __init__(self, address: Address, key: str | None = None) -> None:
        self._address = address
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        path = self._address.socket_path
        connector = aiohttp.UnixConnector(str(path)) if path is not None else aiohttp.TCPConnector()
        self._session = aiohttp.ClientSession(
            connector=connector, headers=self._headers, timeout=_timeout(REPLY_TIMEOUT_S)
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def status(self) -> Status:
        return _decode(await self._fetch("GET", "/swapd/v1/status"), Status)

    async def able(self, model: str) -> Sequence[str]:
        """What a model can do, by the names of `capabilities` in /v1/models."""
        body = await self._fetch("GET", f"/v1/models/{quote(model, safe='')}")
        return _decode(body, _Listed).capabilities

    async def load(self, model: str) -> ModelStatus:
        """Load a model and wait until it is ready, however long that takes."""
        body = await self._fetch("POST", f"/swapd/v1/models/{quote(model, safe='')}/load", timeout_s=None)
        return _decode(body, ModelStatus)

    async def unload(self, model: str) -> ModelStatus:
        """Drain a model, stop its workers and wait until they are gone."""
        body = await self._fetch("POST", f"/swapd/v1/models/{quote(model, safe='')}/unload", timeout_s=None)
        return _decode(body, ModelStatus)

    async def pin(self, model: str, *, pinned: bool) -> ModelStatus:
        """Keep a model loaded, or no longer, until the daemon ends."""
        change = "pin" if pinned else "unpin"
        body = await self._fetch("POST", f"/swapd/v1/models/{quote(model, safe='')}/{change}")
        return _decode(body, ModelStatus)

    async def unload_all(self) -> Sequence[ModelStatus]:
        """The same for every model that has workers; returns those."""
        return _decode(await self._fetch("POST", "/swapd/v1/unload", timeout_s=None), Unloaded).models

    async def pause(self, device: str) -> DeviceStatus:
        """Have a device handed over and wait until it is empty, however long the drain takes."""
        return await self._change_device(device, "pause")

    async def resume(self, device: str) -> DeviceStatus:
        """Give a device back to the daemon."""
        return await self._change_device(device, "resume")

    async def _change_device(self, device: str, change: str) -> DeviceStatus:
        body = await self._fetch("POST", f"/swapd/v1/devices/{quote(device, safe='')}/{change}", timeout_s=None)
        return _decode(body, DeviceStatus)

    async def cancel(self, request_id: str) -> None:
        """End one request, waiting or running."""
        await self._fetch("POST", f"/swapd/v1/requests/{quote(request_id, safe='')}/cancel")

    async def profiles(self) -> Profiles:
        return _decode(await self._fetch("GET", "/swapd/v1/profiles"), Profiles)

    async def switch_profile(self, name: str | None) -> Profiles:
        """Put a profile, or none, in force."""
        return _decode(await self._fetch("PUT", "/swapd/v1/profiles/active", body={"profile": name}), Profiles)

    async def usage(self, by: Grouping, since_s: float) -> Usage:
        """What the requests of the last `since_s` seconds took."""
        return _decode(await self._fetch("GET", f"/swapd/v1/usage?by={by}&since={since_s:.3f}s"), Usage)

    async def logs(self, model: str) -> Sequence[str]:
        """The newest output lines of the model's worker, oldest first."""
        body = await self._fetch("GET", f"/swapd/v1/logs/{quote(model, safe='')}")
        return body.decode("utf-8", "replace").splitlines()

    async def follow_logs(self, model: str) -> AsyncGenerator[str, None]:
        """The same lines, then each further one as it comes, until the daemon ends the stream."""
        path = f"/swapd/v1/logs/{quote(model, safe='')}?follow=1"
        async with self._request("GET", path, None, timeout_s=None) as response:
            async for line in _lines(response):
                if line.startswith("data:"):
                    yield line.removeprefix("data:").removeprefix(" ")

    async def requests_ended(self, began: Callable[[], None]) -> AsyncGenerator[RequestEnded, None]:
        """Each request that ends once `began` was called, until the daemon ends the stream."""
        async with self._request("GET", "/swapd/v1/requests", None, timeout_s=None) as response:
            began()
            async for line in _lines(response):
                if line.startswith("data:"):
                    yield _decode(line.removeprefix("data:").encode(), RequestEnded)

    async def converse(self, model: str, messages: Sequence[Mapping[str, str]]) -> AsyncGenerator[Said, None]:
        """Stream one answer, piece by piece. Raises `DaemonError` if it breaks off."""
        body = {"model": model, "messages": list(messages), "stream": True}
        async with self._request("POST", "/v1/chat/completions", body, timeout_s=None) as response:
            async for line in _lines(response):
                if line == "data: [DONE]":
                    return
                if line.startswith("data:"):
                    for piece in _said(line.removeprefix("data:")):
                        yield piece
        raise DaemonError(f"the answer of {model} broke off before its end")

    async def chat(self, model: str, prompt: str, max_tokens: int) -> AsyncGenerator[str, None]:
        """Stream one greedy answer, piece by piece. Raises `DaemonError` if it breaks off."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
        }
        async with self._request("POST", "/v1/chat/completions", body, timeout_s=None) as response:
            async for line in _lines(response):
                if line == "data: [DONE]":
                    return
                if line.startswith("data:"):
                    yield _delta(line.removeprefix("data:"))
        raise DaemonError(f"the answer of {model} broke off before its end")

    async def _fetch(
        self, method: str, path: str, timeout_s: float | None = REPLY_TIMEOUT_S, body: object = None
    ) -> bytes:
        async with self._request(method, path, body, timeout_s) as response:
            reply = bytearray()
            async for chunk in response.content.iter_any():
                reply += chunk
                if len(reply) > MAX_REPLY_BYTES:
                    raise DaemonError(f"the reply to {path} is larger than {MAX_REPLY_BYTES} bytes")
            return bytes(reply)

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, body: object, timeout_s: float | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A successful response. Failures anywhere in the body of the `with` become `DaemonError` too."""
        assert self._session is not None, "use the client with `async with`"
        url = self._address.base_url + path
        try:
            async with self._session.request(method, url, json=body, timeout=_timeout(timeout_s)) as response:
                if response.status != 200:
                    raise DaemonError(_refusal(response.status, await response.content.read(MAX_LINE_BYTES)))
                yield response
        except aiohttp.ClientConnectorError as error:
            raise DaemonError(f"no daemon answers at {self._address}: {_reason(error)}") from error
        except TimeoutError as error:
            raise DaemonError(f"the daemon at {self._address} does not answer in time") from error
        except aiohttp.ClientError as error:
            raise DaemonError(f"the connection to {self._address} failed: {error or type(error).__name__}") from error


def _timeout(total_s: float | None) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=total_s, sock_connect=CONNECT_TIMEOUT_S)


def _reason(error: aiohttp.ClientConnectorError) -> str:
    """The system's own words: asyncio's repeat the address."""
    number = error.os_error.errno
    return os.strerror(number) if number is not None and number > 0 else str(error.os_error.strerror)


def _decode(body: bytes, kind: type[Answer]) -> Answer:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise DaemonError(f"what answers is no swapd of this version: {error}") from error


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[str]:
    """Lines without their ends. The stream's own `readline` refuses long lines; here they are cut."""
    buffer = b""
    async for chunk in response.content.iter_any():
        *whole, buffer = (buffer + chunk).split(b"\n")
        for line in whole:
            yield line.rstrip(b"\r").decode("utf-8", "replace")
        buffer = buffer[:MAX_LINE_BYTES]
    if buffer:
        yield buffer.decode("utf-8", "replace")


def _refusal(status: int, body: bytes) -> str:
    """The message of an OpenAI error envelope, else the status and the beginning of the body."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        text = body.decode("utf-8", "replace").strip()
        return f"status {status}: {text[:200]}" if text else f"status {status}"


def _delta(data: str) -> str:
    """The text of one streamed chunk. Raises `DaemonError` for an error event or anything else."""
    return "".join(piece.text for piece in _said(data) if not piece.is_thought)


def _said(data: str) -> list[Said]:
    """What one streamed chunk says. Raises as above."""
    try:
        chunk = json.loads(data)
        if "error" in chunk:
            raise DaemonError(str(chunk["error"]["message"]))
        found = []
        for choice in chunk["choices"]:
            thought, text = choice["delta"].get("reasoning_content"), choice["delta"].get("content")
            found += [Said(str(thought), is_thought=True)] if thought else []
            found += [Said(str(text))] if text else []
        return found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DaemonError(f"the daemon streamed something that is no chunk: {data[:200]}") from error
