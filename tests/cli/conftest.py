"""The command line's tests see no configuration and no daemon of the machine they run on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.admin_script import Script, scripted_admin

from swapd.cli import places


@pytest.fixture(autouse=True)
def _own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "SWAPD_URL",
        "SWAPD_CONFIG",
        "SWAPD_KEY_FILE",
        "SWAPD_API_KEY",
        "XDG_CONFIG_HOME",
        "FORCE_COLOR",
        "COLUMNS",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(places, "SYSTEM_CONFIG", tmp_path / "etc" / "config.yaml")


@pytest.fixture
def daemon() -> Iterator[Script]:
    with scripted_admin() as script:
        yield script


@pytest.fixture(scope="session")
def small_model() -> Path:
    """The real small model's file."""
    from swapd import demo

    return demo.model_path(demo._package_directory())
