"""Past requests over HTTP, as the front door itself has noted them."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.front_door import CHAT, DONE, Call, ScriptedDoor, chat_body, house, worker

from swapd.activity.book import Counts
from swapd.errors import QueueFullError

SECRET = "the prompt that nobody keeps"


async def answer(call: Call) -> None:
    await call.start()
    await call.chunk(b'data: {"choices": []}\n\n' + DONE)
    await call.end()


async def test_a_request_is_a_row_with_its_tokens_and_without_its_prompt(tmp_path: Path) -> None:
    async with worker(tmp_path / "w", answer) as path, house(ScriptedDoor([path])) as home:
        body = chat_body(stream=True, messages=[{"role": "user", "content": SECRET}])
        headers = {"X-Request-Id": "mine", "Authorization": "Bearer sk-very-secret"}
        async with home.http.post(CHAT, json=body, headers=headers) as response:
            assert response.status == 200
            await response.read()
        home.book.counted("mine", Counts(7, 2, 5))
        async with home.http.get("/swapd/v1/activity") as response:
            text = await response.text()
            (row,) = (await response.json())["rows"]
        assert (row["request_id"], row["model"], row["endpoint"], row["status"]) == ("mine", "org/tiny", CHAT, 200)
        assert (row["prompt_tokens"], row["cached_tokens"], row["completion_tokens"]) == (7, 2, 5)
        assert row["waited_s"] == 0.0
        assert 0 < row["first_token_s"] <= row["total_s"] < 20
        assert row["client"].startswith("key-")
        assert SECRET not in text
        assert "sk-very-secret" not in text
        async with home.http.get("/swapd/v1/usage?by=key&since=1h") as response:
            document = await response.json()
        assert (document["by"], document["rows"][0]["name"], document["rows"][0]["completion_tokens"]) == (
            "key",
            row["client"],
            5,
        )


async def test_a_refused_request_is_a_row_and_one_that_is_wrong_is_none() -> None:
    async with house(ScriptedDoor(refusal=QueueFullError("full", retry_after_s=1.0))) as home:
        for body, status in ((chat_body(), 429), (chat_body(messages=[]), 400), (chat_body(model="nobody"), 404)):
            async with home.http.post(CHAT, json=body) as response:
                assert response.status == status
        async with home.http.get("/swapd/v1/activity") as response:
            (row,) = (await response.json())["rows"]
        assert (row["status"], row["waited_s"], row["prompt_tokens"]) == (429, None, None)
        async with home.http.get("/swapd/v1/usage") as response:
            (usage,) = (await response.json())["rows"]
        assert (usage["name"], usage["requests"], usage["failed"]) == ("org/tiny", 1, 1)


async def test_a_limit_gives_the_newest_rows() -> None:
    async with house(ScriptedDoor(refusal=QueueFullError("full", retry_after_s=1.0))) as home:
        for number in range(3):
            async with home.http.post(CHAT, json=chat_body(), headers={"X-Request-Id": f"r{number}"}) as response:
                assert response.status == 429
        async with home.http.get("/swapd/v1/activity?limit=2") as response:
            assert [row["request_id"] for row in (await response.json())["rows"]] == ["r2", "r1"]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("usage?by=prompt", "by"),
        ("usage?since=yesterday", "since"),
        ("usage?since=7", "since"),
        ("activity?limit=0", "limit"),
        ("activity?limit=1001", "limit"),
        ("activity?limit=-1", "limit"),
        ("activity?limit=", "limit"),
    ],
)
async def test_a_query_that_makes_no_sense_is_refused_by_name(query: str, param: str) -> None:
    async with house(ScriptedDoor()) as home, home.http.get(f"/swapd/v1/{query}") as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == param
