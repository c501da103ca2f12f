"""Many streams through a daemon at once, each with bytes of its own, and readers that hardly read: real sockets."""

from __future__ import annotations

import asyncio
from pathlib import Path

from benchmarks.relay_streams import Load, dawdle_all, relay_daemon, stream_all
from support.running_daemon import RunningDaemon


async def all_finished(daemon: RunningDaemon, count: int) -> None:
    """Returns once the daemon has booked so many requests as finished, and none as anything else."""
    async with asyncio.timeout(10):
        while (requests := (await daemon.status())["requests"])["running"]:
            pass
    assert (requests["finished"], requests["failed"], requests["cancelled"]) == (count, 0, 0)


async def test_a_hundred_streams_at_once_and_every_byte_of_each_in_its_place(tmp_path: Path) -> None:
    load = Load(streams=100, events=4, gap_s=0.5, pad=40)
    async with relay_daemon(tmp_path, load.streams) as daemon:
        done = await stream_all(daemon, load)
        assert done.events == 400
        await all_finished(daemon, 101)
        assert not [line for line in daemon.lines if line.get("level") in ("warning", "error")]


async def test_readers_at_a_byte_a_second_cost_little_and_lose_nothing(tmp_path: Path) -> None:
    load = Load(streams=8, events=1000, pad=4000)
    async with relay_daemon(tmp_path, load.streams) as daemon:
        done = await dawdle_all(daemon, load, 10, to_the_end=True)
        assert done.bytes > 32e6
        assert done.daemon_mib < 8, "with what its allocator keeps; 64 MiB for 200"
        await all_finished(daemon, 9)
