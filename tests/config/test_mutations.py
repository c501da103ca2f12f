"""10,000 damaged files: each is refused in order or read, and nothing else ever happens.

`SWAPD_REPEATS=1` tries all of them. What a running daemon makes of them is in tests/system.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from support.config_damage import damage
from support.repeats import first_seed, repeats

from swapd.config.load import ConfigError, parse
from swapd.config.schema import Config

FILES = 10_000
EXAMPLE = Path(__file__).parents[2] / "config.example.yaml"


def outcome(text: str, backends: dict, seed: int) -> Config | ConfigError:
    try:
        return parse(text, EXAMPLE, backends)
    except ConfigError as error:
        return error
    except Exception as error:
        pytest.fail(f"seed {seed}: {error!r}")


def test_a_damaged_configuration_is_read_or_refused_with_its_lines(backends):
    # Comments would soak up most of the damage.
    source = EXAMPLE.read_text().splitlines(keepends=True)
    lines = [line for line in source if not line.lstrip().startswith(("# ", "#-"))]
    read = refused = 0
    for seed in range(first_seed(), first_seed() + repeats(FILES, 0.2)):
        text = damage(lines, random.Random(seed))
        found = outcome(text, backends, seed)
        if isinstance(found, Config):
            read += 1
            continue
        refused += 1
        assert found.problems, f"seed {seed}"
        for problem in found.problems:
            assert 1 <= problem.line <= len(text.splitlines()) + 1, f"seed {seed}: {problem}"
            assert problem.key.isprintable(), f"seed {seed}: {problem}"
            assert problem.message.isprintable(), f"seed {seed}: {problem}"
    print(f"{read + refused} files from seed {first_seed()} on: {read} read, {refused} refused")
    assert read > 0.03 * repeats(FILES, 0.2)
    assert refused > 0.3 * repeats(FILES, 0.2)
