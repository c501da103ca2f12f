"""Where the configuration and the daemon are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from swapd.cli import places
from swapd.client import Address, daemon_address
from swapd.config.positions import line_of

HOME = Path("/home/ada")
USERS = HOME / ".config" / "swapd" / "config.yaml"


@pytest.mark.parametrize(
    ("given", "environ", "existing", "chosen"),
    [
        (Path("mine.yaml"), {"SWAPD_CONFIG": "/e.yaml"}, {USERS}, Path("mine.yaml")),
        (None, {"SWAPD_CONFIG": "/e.yaml"}, {USERS}, Path("/e.yaml")),
        (None, {}, {USERS}, USERS),
        (None, {"XDG_CONFIG_HOME": "/x"}, {Path("/x/swapd/config.yaml")}, Path("/x/swapd/config.yaml")),
        (None, {"SWAPD_CONFIG": ""}, set(), None),
    ],
)
def test_the_configuration_is_the_first_that_is_named_or_there(
    given: Path | None, environ: dict[str, str], existing: set[Path], chosen: Path | None
) -> None:
    assert places.config_path(given, environ, HOME, existing.__contains__) == chosen


def test_the_systems_configuration_goes_before_the_users() -> None:
    assert places.config_path(None, {}, HOME, lambda _path: True) == places.SYSTEM_CONFIG


OWN, SYSTEMS = HOME / ".local/state/swapd/learned.sqlite", places.SYSTEM_STATE / "learned.sqlite"


@pytest.mark.parametrize(
    ("setting", "existing", "chosen"),
    [
        (None, {OWN, SYSTEMS}, OWN),
        (None, {SYSTEMS}, SYSTEMS),
        (None, set(), OWN),
        (Path("/s"), {SYSTEMS}, Path("/s/learned.sqlite")),
    ],
)
def test_what_was_learned_is_where_this_users_daemon_keeps_it_or_else_the_service(
    setting: Path | None, existing: set[Path], chosen: Path
) -> None:
    assert places.learned_file(setting, {}, HOME, existing.__contains__) == chosen


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8686", Address("http://127.0.0.1:8686")),
        ("0.0.0.0:8686", Address("http://127.0.0.1:8686")),
        ("[::]:8686", Address("http://[::1]:8686")),
        ("box.local:1", Address("http://box.local:1")),
        ("https://box.local/llm/", Address("https://box.local/llm")),
        ("unix:/run/swapd/http", Address("http://localhost", Path("/run/swapd/http"))),
    ],
)
def test_an_address_may_be_written_in_three_ways(text: str, address: Address) -> None:
    assert daemon_address(text) == address


@pytest.mark.parametrize("text", ["", "box", "ftp://box", "http://", "unix:relative", "box:99999", "http://box/?q=1"])
def test_anything_else_is_no_address(text: str) -> None:
    with pytest.raises(ValueError):
        daemon_address(text)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (("models", "b", "path"), 6),
        (("models", "a", "path"), 2),
        (("models", "c"), 1),
        (("server",), 1),
        ((), 1),
    ],
)
def test_a_key_is_found_at_its_line_or_at_its_deepest_parent(keys: tuple[str, ...], line: int) -> None:
    text = "models:\n  a: {n_ctx: 512}\n  # a comment\n  b:\n    n_ctx: 512\n    path: b.gguf\n"
    assert line_of(text, keys) == line
