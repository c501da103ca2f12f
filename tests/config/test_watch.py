"""The watch, on real files. Each test waits for the watch itself; the timeout only ends a broken one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from swapd.config.identity import FileIdentity, identify
from swapd.config.watch import MAX_LOOKS, at_rest, changes, settled, watched_directories

FAR_S = 3600.0
"""No look without an event: what a test sees, an event brought."""


def identity(size_bytes: int) -> FileIdentity:
    return FileIdentity(1, 2, size_bytes, 3, 4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "etc" / "swapd.yaml"
    path.parent.mkdir()
    path.write_text("models: {}\n")
    return path


@asynccontextmanager
async def watching(path: Path, **options: float) -> AsyncIterator:
    """A watch that reports by events alone, and what stops it."""
    stop = asyncio.Event()
    options = {"settle_s": 0.05, "look_every_s": FAR_S} | options
    async with aclosing(changes(path, stop, known=identify(path), **options)) as reports, asyncio.timeout(20):
        yield reports, stop


def test_two_equal_looks_are_rest():
    assert settled(identity(1), identity(1))
    assert settled(None, None)
    assert not settled(identity(1), identity(2))
    assert not settled(None, identity(1))


async def test_a_file_that_still_grows_is_looked_at_again():
    looks = [identity(1), None, identity(2), identity(3), identity(3), identity(4)]
    pauses = []

    async def pause() -> None:
        pauses.append(len(looks))

    assert await at_rest(lambda: looks.pop(0), pause) == identity(3)
    assert len(pauses) == 4
    assert looks == [identity(4)]


async def test_a_file_that_never_rests_is_taken_in_the_end():
    sizes = iter(range(10 * MAX_LOOKS))

    async def pause() -> None:
        return

    found = await at_rest(lambda: identity(next(sizes)), pause)
    assert found is not None
    assert next(sizes) == MAX_LOOKS + 1


def test_watched_are_the_directories_of_every_link_and_of_the_file(tmp_path):
    # A ConfigMap: swapd.yaml -> ..data/swapd.yaml, ..data -> ..one/
    mount = tmp_path / "mount"
    (mount / "..one").mkdir(parents=True)
    (mount / "..one" / "swapd.yaml").write_text("")
    (mount / "..data").symlink_to("..one")
    (mount / "swapd.yaml").symlink_to("..data/swapd.yaml")
    outside = tmp_path / "swapd.yaml"
    outside.symlink_to(mount / "swapd.yaml")
    assert set(watched_directories(outside)) == {tmp_path, mount, mount / "..one"}
    assert watched_directories(mount / "..one" / "swapd.yaml") == (mount / "..one",)


def test_a_missing_directory_is_watched_for_at_its_nearest_ancestor(tmp_path):
    assert watched_directories(tmp_path / "a" / "b" / "c.yaml") == (tmp_path,)


def test_a_ring_of_links_has_an_end(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert watched_directories(tmp_path / "a") == (tmp_path,)
    assert identify(tmp_path / "a") is None


async def next_report(reports, act) -> None:
    """Wait for a report and act meanwhile, again and again: a watch that has just begun takes a moment to stand."""
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(anext(reports))
        while not waiting.done():
            act()
            await asyncio.wait([waiting], timeout=0.3)


async def test_a_file_written_in_place_is_reported(path):
    async with watching(path) as (reports, _):
        await next_report(reports, lambda: path.write_text("models: {a: {path: x}}\n"))


async def test_a_file_renamed_over_the_old_one_is_reported(path):
    def replace() -> None:
        new = path.with_suffix(".tmp")
        new.write_text("models: {}\n")
        new.rename(path)

    async with watching(path) as (reports, _):
        await next_report(reports, replace)
        await next_report(reports, replace)


async def test_a_removed_file_and_its_return_are_both_reported(path):
    def remove() -> None:
        path.unlink(missing_ok=True)
        path.with_name("noise.log").write_text("an event though the file is gone already")

    async with watching(path) as (reports, _):
        await next_report(reports, lambda: path.write_text("models: {} # it stands\n"))
        await next_report(reports, remove)
        await next_report(reports, lambda: path.write_text("models: {}\n"))


async def test_a_config_map_that_swaps_its_directory_is_reported_again_and_again(tmp_path):
    count = 0

    def publish() -> None:
        nonlocal count
        count += 1
        version = tmp_path / f"..{count}"
        version.mkdir()
        (version / "swapd.yaml").write_text(f"# {count}\nmodels: {{}}\n")
        (tmp_path / "..tmp").symlink_to(version.name)
        (tmp_path / "..tmp").rename(tmp_path / "..data")

    publish()
    path = tmp_path / "swapd.yaml"
    path.symlink_to("..data/swapd.yaml")
    async with watching(path) as (reports, _):
        for _ in range(3):
            await next_report(reports, publish)


async def test_a_change_since_the_last_reading_is_reported_though_no_event_tells_of_it(path):
    known = identify(path)
    path.write_text("models: {a: {path: x}}\n")
    stop = asyncio.Event()
    async with aclosing(changes(path, stop, known=known, settle_s=0.01, look_every_s=FAR_S)) as reports:
        async with asyncio.timeout(20):
            await anext(reports)


async def test_noise_in_the_same_directory_is_not_reported(path):
    noise = path.with_name("noise.log")
    lines = 0

    def act() -> None:
        nonlocal lines
        lines += 1
        noise.write_text(str(lines))
        if lines == 3:
            path.write_text("models: {a: {path: x}}\n")

    async with watching(path) as (reports, _):
        await next_report(reports, act)
    assert lines >= 3


async def test_the_watch_ends_when_it_is_told_to(path):
    async with watching(path) as (reports, stop):
        async with asyncio.TaskGroup() as group:
            ended = group.create_task(anext(reports, "ended"))
            await asyncio.sleep(0)
            stop.set()
        assert ended.result() == "ended"


async def test_a_cancelled_watch_leaves_the_callers_event_alone(path):
    async with watching(path) as (reports, stop):
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(anext(reports))
            await asyncio.sleep(0)
            waiting.cancel()
        assert waiting.cancelled()
        assert not stop.is_set()
