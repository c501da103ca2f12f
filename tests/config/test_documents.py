"""The example and the reference page know every key, and say its default truly."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
import yaml

from backends.llama_cpp.settings import LlamaCppSettings
from backends.remote import RemoteBackend, RemoteSettings
from swapd.config.load import TOP_KEYS, load, parse
from swapd.config.models import MODEL_KEYS, PARAMS_KEYS
from swapd.config.schema import Activity, Memory, Model, Params, Queue, Server, Turns
from swapd.config.sections import ACTIVITY_KEYS, MEMORY_KEYS, QUEUE_KEYS, TURNS_KEYS, server_keys

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "config.example.yaml"
REFERENCE = ROOT / "docs" / "configuration.md"
SERVER_KEYS = server_keys(Path("/"))
SECTIONS = {
    "server": SERVER_KEYS,
    "memory": MEMORY_KEYS,
    "queue": QUEUE_KEYS,
    "turns": TURNS_KEYS,
    "activity": ACTIVITY_KEYS,
}
SETTINGS = set(LlamaCppSettings.__struct_fields__)


@pytest.fixture
def backends(backends):
    return {**backends, "remote": RemoteBackend()}


def uncommented() -> str:
    return re.sub(r"^(\s*)#(?=[^\s#-])", r"\1", EXAMPLE.read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("struct", "keys", "elsewhere"),
    [
        (Server, SERVER_KEYS, set()),
        (Memory, MEMORY_KEYS, {"default"}),
        (Queue, QUEUE_KEYS, set()),
        (Turns, TURNS_KEYS, set()),
        (Activity, ACTIVITY_KEYS, set()),
        (Params, PARAMS_KEYS, set()),
        (Model, MODEL_KEYS, {"id", "settings", "alias_params"}),
    ],
)
def test_every_field_of_the_schema_has_a_key_in_the_file(struct, keys, elsewhere):
    assert {key.field for key in keys.values()} | elsewhere == set(struct.__struct_fields__)


def test_the_example_is_a_valid_configuration(backends):
    config = load(EXAMPLE, backends)
    assert list(config.models) == ["smollm2", "qwen3-8b"]


def test_the_example_shows_every_key_also_in_its_comments(backends):
    shown = yaml.safe_load(uncommented())
    assert set(shown) == set(TOP_KEYS)
    for section, keys in SECTIONS.items():
        assert set(shown[section]) == set(keys), section
    assert set(shown["models"]["qwen3-8b"]) == set(MODEL_KEYS) | SETTINGS
    assert set(shown["models"]["qwen3-8b"]["params"]) == set(PARAMS_KEYS)
    assert {"default", "CUDA0", "RAM"} == set(shown["memory"]["budget"])


def test_the_examples_comments_are_valid_too_and_show_the_defaults(backends):
    config = parse(uncommented(), EXAMPLE, backends)
    assert (config.server, config.queue, config.turns, config.activity) == (Server(), Queue(), Turns(), Activity())
    assert config.memory.reserve_bytes == Memory().reserve_bytes
    plain = load(EXAMPLE, backends).models["qwen3-8b"]
    full = config.models["qwen3-8b"]
    assert full.settings == plain.settings
    shown_only = {"env": {}, "max_wait_s": None, "name": "", "description": "", "metadata": {}}
    assert msgspec.structs.replace(full, **shown_only) == plain


def reference_rows() -> dict[str, list[tuple[str, str, str]]]:
    """Key, default and kind of change of each row, by the section's title."""
    rows: dict[str, list[tuple[str, str, str]]] = {}
    title = ""
    for line in REFERENCE.read_text().splitlines():
        if line.startswith("## "):
            title = line[3:].replace("`", "")
        match = re.fullmatch(r"\| `(\w+)` \| (.*?) \| .* \| (live|worker|restart) \|", line)
        if match:
            rows.setdefault(title, []).append((match[1], match[2], match[3]))
    return rows


def test_the_reference_has_a_row_for_every_key():
    rows = reference_rows()
    for section, keys in SECTIONS.items():
        assert [row[0] for row in rows[section]] == list(keys), section
    assert [row[0] for row in rows["models and defaults"]] == [*MODEL_KEYS, *LlamaCppSettings.__struct_fields__]


def test_the_page_about_servers_elsewhere_has_a_row_for_every_key():
    page = (ROOT / "docs" / "remote.md").read_text()
    names = [name for line in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for name in re.findall(r"`(\w+)`", line)]
    assert set(names) == {*RemoteSettings.__struct_fields__, "stall_timeout"}


def literal(default: str) -> str | None:
    """A default as the file would spell it; None where the page describes it in words."""
    return default[1:-1] if default.startswith("`") and default.endswith("`") else None


def test_the_reference_states_the_true_defaults(backends):
    rows = reference_rows()
    text = "".join(
        f"{section}:\n" + "".join(f"  {key}: {literal(default)}\n" for key, default, _ in rows[section])
        for section in SECTIONS
    )
    assert parse(text + "models: {}\n", REFERENCE, backends) == parse("models: {}", REFERENCE, backends)
    in_words = {key for key, default, _ in rows["models and defaults"] if literal(default) is None}
    assert in_words == {"path", "max_wait", "name", "description"}
    spelled = "".join(
        f"    {key}: {literal(default)}\n" for key, default, _ in rows["models and defaults"] if key not in in_words
    )
    full = parse(f"models:\n  m:\n    path: x\n{spelled}", REFERENCE, backends)
    assert full == parse("models: {m: {path: x}}", REFERENCE, backends)
