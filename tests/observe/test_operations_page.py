"""The page about operations names what there is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import yaml
from support.metric_contract import LABELS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()


def rows(title: str) -> dict[str, str]:
    """The first column's names in the section's table, each with the rest of its row."""
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    found = {}
    for line in re.findall(r"^\| (`.*) \|$", section, re.MULTILINE):
        names, _, rest = line.partition(" | ")
        found.update(dict.fromkeys(re.findall(r"`(\w+)`", names), rest))
    return found


def test_the_page_has_every_metric_with_its_labels() -> None:
    found = {name: set(re.findall(r"`(\w+)`", rest.partition(" | ")[0])) for name, rest in rows("Metrics").items()}
    # The one without labels has an empty cell.
    assert found == LABELS


def test_the_page_has_every_alert() -> None:
    groups = yaml.safe_load((ROOT / "docs" / "grafana" / "alerts.yaml").read_text())["groups"]
    assert list(rows("Alerts")) == [rule["alert"] for group in groups for rule in group["rules"]]


def test_the_page_has_every_kind_of_event() -> None:
    kinds = {
        call.args[0].value
        for file in (ROOT / "swapd" / "core").glob("*.py")
        for call in ast.walk(ast.parse(file.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Tell"
        if isinstance(call.args[0], ast.Constant)
    }
    assert len(kinds) > 10
    assert set(rows("Events")) == kinds
