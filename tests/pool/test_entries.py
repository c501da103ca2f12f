"""When a model's file is looked at again, and what the loop hears of it. Real files, a scripted loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from support.running_pool import config, model_file, scripted
from support.scripted_backend import ScriptedBackend, ScriptedSettings

from swapd.core.events import Event, ModelsChanged
from swapd.core.spec import RAM
from swapd.errors import ShuttingDownError
from swapd.pool.entries import Entries
from swapd.pool.learned import Lesson


class CountingBackend(ScriptedBackend):
    """Counts the looks at a model's files."""

    looks = 0

    def files(self, settings: ScriptedSettings) -> tuple[Path, ...]:
        self.looks += 1
        return super().files(settings)


class Loop:
    """Takes jobs at once, after running what the test wants to come first."""

    def __init__(self) -> None:
        self.heard: list[Event] = []
        self.before: Callable[[], None] = lambda: None
        self.closed = False

    async def do(self, make: Callable[[], Event]) -> None:
        if self.closed:
            raise ShuttingDownError("closed", retry_after_s=1.0)
        self.before()
        self.heard.append(make())


@asynccontextmanager
async def entries_of(tmp_path: Path, *names: str) -> AsyncIterator[tuple[Entries, Loop, CountingBackend]]:
    backend, loop = CountingBackend(), Loop()
    async with asyncio.TaskGroup() as tasks:
        entries = Entries(
            {"scripted": backend},
            [RAM],
            lambda _: Lesson(),
            loop.do,
            lambda work, name: tasks.create_task(work, name=name),
        )
        configuration = config(*(scripted(tmp_path, name) for name in names))
        entries.replace(configuration, await entries.inspect(configuration))
        backend.looks = 0
        yield entries, loop, backend


async def test_a_file_that_is_as_it_was_inspected_changes_nothing(tmp_path: Path) -> None:
    async with entries_of(tmp_path, "a") as (entries, loop, backend):
        seen = entries.by_id["a"]
        await entries.refresh("a")
        assert backend.looks == 1
        assert entries.by_id["a"] is seen
        assert loop.heard == []


async def test_a_spoilt_file_gets_a_verdict_and_the_loop_hears_of_every_model(tmp_path: Path) -> None:
    async with entries_of(tmp_path, "a", "b") as (entries, loop, _):
        other = entries.by_id["b"]
        model_file(tmp_path, "a", "no longer one")
        await entries.refresh("a")
        assert "this is no model file" in str(entries.by_id["a"].spec.verdict)
        assert loop.heard == [ModelsChanged((entries.by_id["a"].spec, other.spec))]


async def test_all_who_ask_at_the_same_time_share_one_look(tmp_path: Path) -> None:
    async with entries_of(tmp_path, "a") as (entries, _, backend):
        await asyncio.gather(*(entries.refresh("a") for _ in range(5)))
        assert backend.looks == 1
        await entries.refresh("a")
        assert backend.looks == 2


async def test_a_look_goes_on_when_the_one_who_asked_leaves(tmp_path: Path) -> None:
    async with entries_of(tmp_path, "a") as (entries, loop, _):
        model_file(tmp_path, "a", "no longer one")
        asking = asyncio.create_task(entries.refresh("a"))
        await asyncio.sleep(0)
        asking.cancel()
        await entries.refresh("a")
        assert asking.cancelled()
        assert len(loop.heard) == 1


async def test_a_reload_during_the_look_is_newer_than_what_the_look_saw(tmp_path: Path) -> None:
    async with entries_of(tmp_path, "a") as (entries, loop, _):
        model_file(tmp_path, "a", "no longer one")
        reloaded = config(scripted(tmp_path, "b"))
        by_id = await entries.inspect(reloaded)
        loop.before = lambda: loop.heard.append(entries.replace(reloaded, by_id))
        await entries.refresh("a")
        assert entries.by_id is by_id
        assert entries.config is reloaded


async def test_a_model_that_is_not_configured_is_not_looked_for(tmp_path: Path) -> None:
    async with entries_of(tmp_path, "a") as (entries, _, backend):
        await entries.refresh("b")
        assert backend.looks == 0


async def test_news_that_come_after_the_end_of_the_loop_are_dropped(tmp_path: Path) -> None:
    async with entries_of(tmp_path, "a") as (entries, loop, _):
        seen = entries.by_id["a"]
        model_file(tmp_path, "a", "no longer one")
        loop.closed = True
        await entries.refresh("a")
        assert entries.by_id["a"] is seen
