"""Thousands of damaged files: each is refused in order or read, and nothing else ever happens."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from swapd.config.load import ConfigError, parse
from swapd.config.schema import Config

EXAMPLE = Path(__file__).parents[2] / "config.example.yaml"
NASTY = [
    *(
        "\t",
        "\x00",
        "\x85",
        "\u2028",
        "\ud800",
        "\ufeff",
        "\\",
        '"',
        "'",
        "[",
        "{",
        "]",
        "}",
        "\n",
        "\r",
        "  ",
        "#",
        "🦙",
    ),
    *("- ", "? ", ": ", "&a ", "*a", "!!x ", "<<: ", "---\n", "...\n", "%YAML 1.1\n", "|\n", ">\n", "~", "null", "%"),
    *("yes", "1:30", "017", "1e999", ".nan", "-1", "9" * 20, "9" * 5000, "0x1", "GiB"),
]


def damage(lines: list[str], rng: random.Random) -> str:
    lines = list(lines)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(lines))
        line = lines[at]
        column = rng.randint(0, len(line))
        match rng.randrange(8):
            case 0:
                lines[at] = line[:column] + rng.choice(NASTY) + line[column:]
            case 1:
                lines[at] = line[:column] + line[column + rng.randint(1, 4) :]
            case 2:
                lines.insert(rng.randint(0, len(lines)), line)
            case 3:
                lines[at] = " " * rng.randint(0, 9) + line.lstrip()
            case 4:
                key, colon, _ = line.partition(":")
                lines[at] = f"{key}{colon} {rng.choice(NASTY)}\n"
            case 5:
                lines[at] = line.replace("#", "", 1)
            case 6:
                other = rng.randrange(len(lines))
                lines[at], lines[other] = lines[other], line
            case 7:
                lines = lines[: max(1, at)]
    return "".join(lines)


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
    for seed in range(3000):
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
    assert read > 100
    assert refused > 1000
