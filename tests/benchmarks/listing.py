"""How long GET /v1/models takes with many models configured: the real daemon as a process, with the scripted backend.

    python tests/benchmarks/listing.py [--models 1000] [--waiting 200] [--asks 50]

`--waiting` clients wait for models that have no room, each for another one, while the list is asked for.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.running_daemon import running_daemon, scripted_yaml

TARGET_MS = 20.0


async def timed_ms(session: aiohttp.ClientSession, url: str, asks: int) -> list[float]:
    times_ms = []
    for _ in range(asks):
        begun_s = time.perf_counter()
        async with session.get(url) as answer:
            assert answer.status == 200
            await answer.read()
        times_ms.append((time.perf_counter() - begun_s) * 1000)
        await asyncio.sleep(0.02)
    return sorted(times_ms)


async def wait_for(session: aiohttp.ClientSession, url: str, model_id: str) -> None:
    """A client that waits until it is cancelled."""
    body = {"model": model_id, "messages": [{"role": "user", "content": "tokens=100000 delay=1"}], "stream": True}
    async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
        await answer.read()


async def measure(models: int, waiting: int, asks: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        listed = "".join(f"  m{number}: {{path: a.model, memory_mib: 100}}\n" for number in range(models))
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            running_daemon(path, scripted_yaml(path, listed)) as daemon,
            aiohttp.ClientSession(connector=connector) as session,
        ):
            for clients in (0, waiting):
                asked = [asyncio.create_task(wait_for(session, daemon.url, f"m{n}")) for n in range(clients)]
                await asyncio.sleep(3 if clients else 0)
                for route in ("/v1/models", "/swapd/v1/status"):
                    times_ms = await timed_ms(session, daemon.url + route, asks)
                    median_ms, p99_ms = statistics.median(times_ms), times_ms[int(0.99 * (len(times_ms) - 1))]
                    print(f"{clients:5} waiting  {route:18} median {median_ms:6.1f} ms  p99 {p99_ms:6.1f} ms")
                for task in asked:
                    task.cancel()
                await asyncio.gather(*asked, return_exceptions=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--waiting", type=int, default=200)
    parser.add_argument("--asks", type=int, default=50)
    asked = parser.parse_args()
    print(f"{asked.models} models; the target for /v1/models is {TARGET_MS:.0f} ms")
    asyncio.run(measure(asked.models, asked.waiting, asked.asks))


if __name__ == "__main__":
    main()
