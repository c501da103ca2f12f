"""Damage to a configuration file, line by line. The same generator makes the same damage."""

from __future__ import annotations

import random

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
