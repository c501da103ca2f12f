"""The footprint's formulas beside llama.cpp's own account, and beside Ollama's published formula.

    python tests/benchmarks/memory.py [--rows]

Prints the table of docs/benchmarks.md: the matrix of `support.memory_matrix`, a line per design, or with `--rows` one
per model and settings. Nothing is allocated and nothing is timed, so it may run beside anything. Half a minute.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.memory_matrix import MIB, Row, rows

LARGE_BYTES = 100 * MIB


def main() -> None:
    parser = argparse.ArgumentParser(description="The footprint's formulas beside llama.cpp's own account.")
    parser.add_argument("--rows", action="store_true", help="every model with every setting")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        matrix = rows(Path(directory))
    print("\n".join(every_row(matrix) if arguments.rows else by_design(matrix)))


def every_row(matrix: Iterable[Row]) -> list[str]:
    """MiB."""
    lines = [
        "| model, layers, keys | weights | cache | compute | total | llama.cpp's | error | Ollama's |",
        "|---" * 8 + "|",
    ]
    for row in matrix:
        ours = (row.ours.weights_bytes, row.ours.kv_bytes, row.ours.compute_bytes, row.our_total, row.their_total)
        shown = " | ".join(f"{size / MIB:.1f}" for size in ours)
        lines.append(f"| {row.name} | {shown} | {row.total_error:+.2%} | {row.ollama_bytes / MIB:.1f} |")
    return lines


def by_design(matrix: list[Row]) -> list[str]:
    """Errors of each design's rows, then of all of them together."""
    lines = [
        "| design | rows | weights, cache | compute, worst | total, median | total, worst | Ollama's, median | worst |",
        "|---" * 8 + "|",
    ]
    models = dict.fromkeys(row.model for row in matrix)
    lines += [_line(model, [row for row in matrix if row.model == model]) for model in models]
    lines.append(_line("all", matrix))
    lines.append(_line("all above 100 MiB", [row for row in matrix if row.their_total > LARGE_BYTES]))
    return lines


def _line(name: str, chosen: list[Row]) -> str:
    is_exact = all(
        (row.ours.weights_bytes, row.ours.kv_bytes) == (row.theirs["model"], row.theirs["context"]) for row in chosen
    )

    def errors(of: Callable[[Row], float]) -> list[float]:
        return [of(row) for row in chosen]

    total, ollama = errors(lambda row: row.total_error), errors(lambda row: row.ollama_bytes / row.their_total - 1)
    compute = max(errors(lambda row: row.compute_error), key=abs)
    cells = [
        name, str(len(chosen)), "exact" if is_exact else "off", f"{compute:+.2%}",
        f"{statistics.median(map(abs, total)):.2%}", f"{max(total, key=abs):+.2%}",
        f"{statistics.median(map(abs, ollama)):.0%}", f"{max(ollama, key=abs):+.0%}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
