"""What docs/comparison.md says of swapd stands on tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "comparison.md"
README = TESTS.parent / "README.md"


def existing_tests() -> set[str]:
    return {
        name
        for path in TESTS.rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)\(", path.read_text(), re.MULTILINE)
    }


def rows() -> list[list[str]]:
    """The cells of each row of each table, heads and rules left out."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if row[0] not in ("llama-swap", "---")]


def test_every_test_that_the_comparison_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text()))
    assert len(named) > 80
    assert named - existing_tests() == set()


def test_a_feature_has_a_test_or_says_that_it_is_not_there() -> None:
    assert len(rows()) > 100
    bare = [row for row in rows() if not row[2].startswith("`test_") and not re.match(r"(no|not yet)\b", row[1])]
    assert bare == []
    assert {len(row) for row in rows()} == {3}
