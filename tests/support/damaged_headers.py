"""GGUF headers of every design, whole and damaged."""

from __future__ import annotations

import random
from pathlib import Path

from support.model_zoo import ZOO

from backends.gguf import read_header


def headers(directory: Path) -> list[tuple[bytes, int]]:
    """Of every design the header's bytes, and how long the file is."""
    found = []
    for name, make in ZOO.items():
        model = make(2)
        model.n_vocab = 512
        path = model.write(directory / f"{name}.gguf")
        with path.open("rb") as file:
            found.append((file.read(read_header(path).data_offset), path.stat().st_size))
        path.unlink()
    return found


def flipped(content: bytes, rng: random.Random) -> bytes:
    """The same with one to three bytes changed."""
    damaged = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(damaged))
        damaged[at] = rng.choice((rng.randrange(256), damaged[at] ^ (1 << rng.randrange(8)), 0, 255))
    return bytes(damaged)
