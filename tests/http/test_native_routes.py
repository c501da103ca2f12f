from pathlib import Path

from support.front_door import Call, ScriptedDoor, house, model, worker


async def test_props_and_slots_are_told_from_what_is_known() -> None:
    async with house(ScriptedDoor(known=[model("a"), model("b")])) as home:
        async with home.http.get("/props", params={"model": "a"}) as response:
            props = await response.json()
        assert props["default_generation_settings"]["n_ctx"] == 2048
        assert (props["model_alias"], props["is_sleeping"]) == ("a", False)
        async with home.http.get("/slots", params={"model": "a"}) as response:
            assert await response.json() == []
        for query, status in (({}, 400), ({"model": "nobody"}, 404)):
            async with home.http.get("/props", params=query) as response:
                assert response.status == status
        assert home.door.tickets == []


async def test_a_worker_that_has_them_is_asked_without_loading_it(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await call.whole(b'{"path": "' + call.head.split()[1].encode() + b'"}')

    door = ScriptedDoor([tmp_path / "w"], known=[model("a", backend="llama_server")])
    async with worker(tmp_path / "w", script), house(door) as home:
        for path in ("/props", "/slots"):
            async with home.http.get(path) as response:
                assert await response.json() == {"path": path}
        assert [ticket.may_load for ticket in door.tickets] == [False, False]
