"""A daemon whose model files are damaged again and again says so each time, at once, and lives: scorecard 20."""

from __future__ import annotations

import asyncio
import json
import random
import struct
import time
from collections import Counter
from pathlib import Path

import aiohttp
import pytest
from support.checked_streams import clients
from support.damaged_headers import flipped, headers
from support.oracle import check_books
from support.running_daemon import RunningDaemon, running_daemon
from support.scorecard import centiles, figure, percentile, seeded, times

MODELS = 4
VERDICT_S = 0.2
VERDICTS = {(422, "invalid_model_file"), (422, "model_does_not_fit"), (400, "unsupported_endpoint")}
"""No model; one that is too large; one that does not chat."""
CONFIG = """\
server:
  listen: 127.0.0.1:0
  state_dir: {directory}/state
  runtime_dir: {directory}/run
memory:
  budget: {{RAM: 1MiB}}
models:
"""
"""Nothing fits, so that whatever is left of a file is judged and no process started."""


def classes(content: bytes) -> dict[str, bytes]:
    """One file of each kind of damage."""
    n_tensors, n_keys = struct.unpack_from("<QQ", content, 8)
    return {
        "empty": b"",
        "only the magic": content[:4],
        "another magic": b"GGML" + content[4:],
        "version 1": content[:4] + struct.pack("<I", 1) + content[8:],
        "version 2**31": content[:4] + struct.pack("<I", 2**31) + content[8:],
        "big-endian": content[:4] + struct.pack(">I", 3) + content[8:],
        "no tensors": content[:8] + struct.pack("<QQ", 0, n_keys) + content[24:],
        "2**63 tensors": content[:8] + struct.pack("<QQ", 2**63, n_keys) + content[24:],
        "2**63 keys": content[:8] + struct.pack("<QQ", n_tensors, 2**63) + content[24:],
        "one tensor more": content[:8] + struct.pack("<QQ", n_tensors + 1, n_keys) + content[24:],
        "a key of 2**62 bytes": content[:24] + struct.pack("<Q", 2**62) + content[32:],
        "cut in the keys": content[: len(content) // 3],
        "cut in the tensors": content[:-40],
        "text": b"model\n" * 1000,
        "zeros": bytes(len(content)),
        "0xff": b"\xff" * len(content),
    }


def replace(path: Path, content: bytes, size_bytes: int) -> None:
    """Put a file of that size in the model's place, all at once; what follows the header is a hole."""
    beside = path.with_suffix(".new")
    with beside.open("wb") as file:
        file.write(content)
        file.truncate(size_bytes)
    beside.replace(path)


async def verdict(daemon: RunningDaemon, session: aiohttp.ClientSession, model: str) -> tuple[str, float]:
    """The code of the refusal, and how long it took."""
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    began_s = time.monotonic()
    async with session.post(f"{daemon.url}/v1/chat/completions", json=body) as answer:
        said = await answer.read()
        took_s = time.monotonic() - began_s
        code = str(json.loads(said)["error"]["code"])
        assert (answer.status, code) in VERDICTS, (answer.status, said[:500])
        return code, took_s


@pytest.mark.timed
async def test_each_damage_to_a_models_file_gets_its_verdict_at_once_and_the_daemon_goes_on(tmp_path: Path) -> None:
    rng, flips = seeded(), times(10_000)
    sound = headers(tmp_path)
    paths = [tmp_path / f"m{number}.gguf" for number in range(MODELS)]
    for path in paths:
        replace(path, *sound[0])
    yaml = CONFIG.format(directory=tmp_path) + "".join(f"  {path.stem}: {{path: {path}}}\n" for path in paths)
    codes: Counter[str] = Counter()
    took_s: list[float] = []
    async with running_daemon(tmp_path, yaml) as daemon, clients() as session:

        async def judge(path: Path, content: bytes, size_bytes: int) -> str:
            replace(path, content, size_bytes)
            code, after_s = await verdict(daemon, session, path.stem)
            took_s.append(after_s)
            return code

        for name, content in classes(sound[0][0]).items():
            code = await judge(paths[0], content, max(len(content), sound[0][1] if content else 0))
            assert code == "invalid_model_file" or name == "version 2**31", name
        found = len(took_s)
        todo = iter(range(flips))

        async def flip_in_turn(path: Path, seeds: random.Random) -> None:
            for _ in todo:
                content, size_bytes = seeds.choice(sound)
                codes[await judge(path, flipped(content, seeds), size_bytes)] += 1

        async with asyncio.TaskGroup() as tasks:
            for path in paths:
                tasks.create_task(flip_in_turn(path, random.Random(rng.random())))
        # And what is mended is known to be: it is whole again, and still too large.
        replace(paths[0], *sound[0])
        assert (await verdict(daemon, session, "m0"))[0] == "model_does_not_fit"
        await check_books(daemon)
        assert daemon.process.returncode is None
    figure(20, f"{found} kinds of damage and {flips} flips: {dict(codes)}; verdicts after {centiles(took_s)}")
    assert codes["model_does_not_fit"] > flips / 10
    assert codes["invalid_model_file"] > flips / 10
    assert percentile(took_s, 99) <= VERDICT_S
