"""What names stand for in a real pool: pins, profiles in force, virtual models and how their targets stand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from support.running_pool import config, running_pool, scripted, ticket

from swapd.config.schema import Config, Profile, Virtual
from swapd.core.routing import Standing
from swapd.errors import BadRequestError, ModelDisabledError, UnknownModelError, UnknownProfileError
from swapd.pool.pool import Pool


def written(directory: Path, **fields: object) -> Config:
    models = (
        scripted(directory, "a", {"aliases": ("ay",)}),
        scripted(directory, "b", {"idle_unload_s": 3600.0}),
        scripted(directory, "hidden", {"unlisted": True}),
    )
    virtual = Virtual(id="v", strategy="first_loaded", targets=("ay", "b"), aliases=("vee",))
    profiles = {
        "gaming": Profile(disable=("a",), pins={"hidden": "b"}, idle_unload_s=60.0),
        "pinned": Profile(pins={"v": "b", "a": "hidden", "b": None}),
        "bare": Profile(disable=("a", "b")),
        "plain": Profile(disable=("v",)),
    }
    return msgspec.structs.replace(config(*models), virtual={"v": virtual}, profiles=profiles, **fields)


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Pool]:
    async with running_pool(directory, written(directory)) as (pool, _):
        yield pool


async def test_names_lead_to_models_and_virtual_ones_to_their_targets(tmp_path: Path) -> None:
    async with running(tmp_path) as pool:
        assert pool.routes.route("ay").targets == ("ay",)
        assert pool.routes.route("ay").virtual is None
        assert pool.routes.route("vee").targets == ("ay", "b")
        with pytest.raises(UnknownModelError, match="one of its targets: ay, b"):
            pool.resolve("v")
        with pytest.raises(UnknownModelError, match="did you mean 'hidden'"):
            pool.routes.route("hiden")


async def test_listed_are_virtual_models_too_with_what_they_resolve_to_and_never_the_unlisted(tmp_path: Path) -> None:
    async with running(tmp_path) as pool:
        assert [one.id for one in pool.listed()] == ["a", "b", "v"]
        virtual = pool.listed_as("vee").virtual
        assert virtual is not None
        assert (pool.listed_as("v").state, virtual.resolves_to) == ("unloaded", "a")
        assert pool.listed_as("hidden").id == "hidden"
        await pool.load("b")
        virtual = pool.listed_as("v").virtual
        assert virtual is not None
        assert (pool.listed_as("v").state, virtual.resolves_to) == ("ready", "b")


async def test_standings_say_who_is_ready_free_and_refused(tmp_path: Path) -> None:
    async with running(tmp_path) as pool:
        before = pool.routes.standings(("ay", "b"))
        assert [(one.ready, one.free, one.refused, one.wait_s) for one in before] == [(False, False, False, None)] * 2
        async with pool.lease(ticket("b")):
            cold, ready = pool.routes.standings(("ay", "b"))
            assert cold.guess_s > 0.0
            assert ready == Standing("b", ready=True, free=True, wait_s=0.0)
        with pytest.raises(BadRequestError, match="takes text only"):
            pool.routes.standings(("ay", "b"), "chat", (("vision", "messages[0]"),))


async def test_a_model_whose_file_is_gone_stands_as_refused(tmp_path: Path) -> None:
    async with running(tmp_path) as pool:
        again = written(tmp_path)
        (tmp_path / "a.model").unlink()
        await pool.configure(again)
        assert [one.refused for one in pool.routes.standings(("a", "b"))] == [True, False]


async def test_a_profile_disables_drains_and_pins_until_it_is_switched_off(tmp_path: Path) -> None:
    async with running(tmp_path) as pool:
        await pool.load("a")
        await pool.switch_profile("gaming")
        assert pool.status().config.profile == "gaming"
        assert [one.name for one in pool.routes.profiles() if one.active] == ["gaming"]
        for name in ("a", "ay"):
            with pytest.raises(ModelDisabledError, match="profile 'gaming' disables"):
                pool.routes.route(name)
        assert pool.routes.route("hidden").targets == ("b",)
        assert pool.resolve("hidden").id == "hidden"
        assert pool.routes.route("v").targets == ("b",)
        assert [one.id for one in pool.listed()] == ["b", "v"]
        assert pool.config().models["b"].idle_unload_s == 60.0
        await pool.switch_profile(None)
        assert pool.routes.route("ay").targets == ("ay",)
        assert pool.config().models["b"].idle_unload_s == 3600.0


async def test_pins_are_followed_once_and_to_nothing_where_they_say_so(tmp_path: Path) -> None:
    async with running(tmp_path) as pool:
        await pool.switch_profile("pinned")
        assert pool.routes.route("vee").targets == ("b",)
        assert pool.routes.route("ay").targets == ("hidden",)
        with pytest.raises(ModelDisabledError):
            pool.routes.route("b")


async def test_a_virtual_model_without_targets_or_disabled_itself_says_which_profile_it_is(tmp_path: Path) -> None:
    async with running(tmp_path) as pool:
        await pool.switch_profile("bare")
        with pytest.raises(ModelDisabledError, match="every target"):
            pool.routes.route("v")
        virtual = pool.listed_as("v").virtual
        assert virtual is not None
        assert virtual.resolves_to is None
        await pool.switch_profile("plain")
        with pytest.raises(ModelDisabledError, match="disables model 'v'"):
            pool.routes.route("v")


async def test_a_profile_survives_a_reload_that_still_has_it_and_no_other(tmp_path: Path) -> None:
    async with running(tmp_path) as pool:
        await pool.switch_profile("gaming")
        await pool.configure(written(tmp_path))
        assert (pool.config().profile, list(pool.config().models)) == ("gaming", ["b", "hidden"])
        await pool.configure(msgspec.structs.replace(written(tmp_path), profiles={}))
        assert (pool.config().profile, len(pool.config().models)) == (None, 3)
        with pytest.raises(UnknownProfileError, match="has: none"):
            await pool.switch_profile("gaming")
