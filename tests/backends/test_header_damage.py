"""Headers of every design, damaged byte by byte: each gets a verdict, quickly and without much memory."""

from __future__ import annotations

import io
import os
import random
import resource
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.damaged_headers import flipped, headers

from backends.base import InvalidModelError
from backends.footprint import dimensions, footprint
from backends.gguf import parse_header
from backends.gguf_model import check_is_model, check_settings, task_of
from backends.gguf_settings import Task
from backends.llama_cpp.backend import context_plan
from backends.llama_cpp.settings import LlamaCppSettings

TRIES = 10_000
MAX_BYTES = 64 * 1024 * 1024
HERE = Path("model.gguf")
SETTINGS = LlamaCppSettings(path=HERE)


def judged(content: bytes, size_bytes: int) -> int:
    """Bytes that the model takes. Raises `InvalidModelError`."""
    header = parse_header(io.BytesIO(content), size_bytes, HERE)
    check_is_model(header)
    dims = dimensions(header)
    task = task_of(header, SETTINGS)
    check_settings(header, dims, SETTINGS)
    plan = context_plan(header, dims, SETTINGS, embeddings=task is not Task.GENERATE)
    return footprint(header, dims, plan).total_bytes


@contextmanager
def no_more_memory_than(more_bytes: int) -> Iterator[None]:
    """Lets this process grow by so much; a larger allocation is a `MemoryError`."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + more_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_ten_thousand_damaged_headers_get_a_verdict_each(tmp_path: Path) -> None:
    seed = int(os.environ.get("SWAPD_TEST_SEED", random.randrange(2**32)))
    print("seed", seed)
    rng = random.Random(seed)
    sound, verdicts = headers(tmp_path), Counter[str]()
    messages: list[str] = []
    with no_more_memory_than(MAX_BYTES):
        for _ in range(TRIES):
            content, size_bytes = rng.choice(sound)
            try:
                verdicts["fits somewhere" if judged(flipped(content, rng), size_bytes) >= 0 else "negative"] += 1
            except InvalidModelError as error:
                verdicts["refused"] += 1
                messages.append(str(error))
    print(dict(verdicts))
    assert [message for message in messages if not message.startswith("model.gguf: ") or len(message) > 600] == []
    assert verdicts.total() == TRIES
    assert verdicts["refused"] > TRIES / 10
    assert verdicts["negative"] == 0
