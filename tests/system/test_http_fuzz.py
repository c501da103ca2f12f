"""10^5 requests drawn from the published document and damaged, at a whole daemon with scripted workers.

Each is answered in a documented way, or not at all if its client broke off; the daemon lives, and its counts add up.
`SWAPD_REPEATS=1` sends all of them, `SWAPD_SEED` draws others.
"""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import aiohttp
import pytest
from support.http_fuzzer import Fuzzer, Tally, knowing
from support.openapi_document import published
from support.repeats import first_seed, repeats
from support.running_daemon import RunningDaemon, running_daemon, scripted_yaml

REQUESTS, CI_SHARE = 100_000, 0.03
COUNT = repeats(REQUESTS, CI_SHARE)
PART = 8_000
"""Requests of one daemon's life; the next part has other seeds."""
DAMAGED = 24
"""Requests made of each that is drawn."""
HEAVY = 6
"""How many more are drawn where there is a body than where there is none."""
MODELS = """\
  a:
    path: a.model
    aliases: [alias/of-a]
    abilities: [embeddings, rerank, insert, vision, audio, transcriptions, speech, images]
  b: {path: b.model, memory_mib: 90}
  broken: {path: c.model, failure: exit}
  huge: {path: c.model, memory_mib: 9000}
  damaged: {path: damaged.model}
"""
NAMES = ["a", "b", "alias/of-a", "broken", "huge", "damaged"]


def fuzz(url: str, seed: int) -> Tally:
    fuzzer = Fuzzer(url, knowing(published(), NAMES, ["RAM"]), first_seed=seed, damaged=DAMAGED)
    operations = list(fuzzer.operations())
    weights = {(method, path): HEAVY if "requestBody" in said else 1 for method, path, said in operations}
    tally = Tally()
    for method, path in weights:
        tally.add(fuzzer.run_examples(method, path, NAMES))
    unit = (min(PART, COUNT) - tally.sent) / sum(weights.values()) / (1 + DAMAGED)
    for (method, path), weight in weights.items():
        if (drawn := round(unit * weight)) > 0:
            tally.add(fuzzer.run(method, path, drawn))
    return tally


async def settled(daemon: RunningDaemon) -> dict[str, int]:
    """The counts of requests, once none is in flight."""
    async with asyncio.timeout(30), aiohttp.ClientSession(daemon.url) as http:
        async with http.post("/swapd/v1/devices/RAM/resume") as response:
            assert response.status == 200
        while True:
            counts = (await daemon.status())["requests"]
            if counts["waiting"] == counts["running"] == 0:
                return counts  # type: ignore[no-any-return]
            await asyncio.sleep(0.1)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(math.ceil(COUNT / PART)))
async def test_whatever_is_sent_is_answered_as_documented(tmp_path: Path, part: int) -> None:
    (tmp_path / "damaged.model").write_text("no model")
    yaml = scripted_yaml(tmp_path, MODELS, top="queue: {timeout: 1s}\n")
    async with running_daemon(tmp_path, yaml) as daemon:
        tally = await asyncio.to_thread(fuzz, daemon.url, first_seed() + part)
        print(f"seed {first_seed() + part}: {tally}")
        assert not tally.wrong, "\n".join(tally.wrong[:10])
        counts = await settled(daemon)
        assert counts["accepted"] == counts["finished"] + counts["failed"] + counts["cancelled"]
        assert daemon.process.returncode is None
        loud = [line for line in daemon.lines if line.get("level") in ("error", "critical") or "exception" in line]
        assert not loud, loud[:3]
        assert tally.answers["200"] > 0.02 * tally.sent
