"""Virtual models and profiles as the file has them: what is read, what is refused and where."""

from __future__ import annotations

from pathlib import Path

import pytest

from swapd.config.diff import diff
from swapd.config.load import ConfigError, parse
from swapd.config.profiles import in_profile
from swapd.config.schema import Profile, Virtual

FILE = Path("swapd.yaml")
MODELS = """models:
  a: {path: a.gguf, aliases: [ay]}
  b: {path: b.gguf, idle_unload: 1h}
"""


def read(text: str, backends: dict):
    return parse(MODELS + text, FILE, backends)


def test_a_virtual_model_has_a_strategy_and_targets_by_id_or_alias(backends):
    config = read(
        """virtual:
  assistant: {strategy: fallback, targets: [ay, b], max_wait: 20s, aliases: [gpt-4o], unlisted: true}
  any: {strategy: spillover, targets: [a]}
""",
        backends,
    )
    assert config.virtual == {
        "assistant": Virtual(
            id="assistant",
            strategy="fallback",
            targets=("ay", "b"),
            max_wait_s=20.0,
            aliases=("gpt-4o",),
            unlisted=True,
        ),
        "any": Virtual(id="any", strategy="spillover", targets=("a",)),
    }


def test_a_profile_disables_pins_and_unloads(backends):
    config = read(
        """virtual: {v: {strategy: first_loaded, targets: [a, b]}}
profiles:
  gaming: {description: while the GPU is busy, disable: [a], pins: {v: b, ay: null}, idle_unload: 1m}
  empty:
""",
        backends,
    )
    assert config.profiles == {
        "gaming": Profile(
            description="while the GPU is busy", disable=("a",), pins={"v": "b", "ay": None}, idle_unload_s=60.0
        ),
        "empty": Profile(),
    }


@pytest.mark.parametrize(
    ("text", "line", "key", "message"),
    [
        ("virtual: {v: {targets: [a]}}", 4, "virtual.v.strategy", "is missing"),
        ("virtual: {v: {strategy: fallback}}", 4, "virtual.v.targets", "is missing"),
        ("virtual: {v: {strategy: fallbck, targets: [a]}}", 4, "virtual.v.strategy", "did you mean fallback"),
        ("virtual: {v: {strategy: fallback, targets: []}}", 4, "virtual.v.targets", "at least one"),
        (
            "virtual:\n  v:\n    strategy: fallback\n    targets:\n    - a\n    - aa\n",
            9,
            "virtual.v.targets[1]",
            "no model",
        ),
        ("virtual: {v: {strategy: fallback, targets: [a, ay]}}", 4, "virtual.v.targets[1]", "same model as 'a'"),
        ("virtual: {v: {strategy: fallback, targets: [v]}}", 4, "virtual.v.targets[0]", "in a circle"),
        (
            "virtual:\n  v: {strategy: fallback, targets: [w]}\n  w: {strategy: fallback, targets: [v]}",
            5,
            "virtual.v.targets[0]",
            "in a circle",
        ),
        ("virtual: {v: {strategy: fallback, targets: [a], max_wait: 0s}}", 4, "virtual.v.max_wait", "out of range"),
        (
            "virtual: {ay: {strategy: fallback, targets: [a]}}",
            4,
            "virtual.ay",
            "taken by models.a.aliases[0] on line 2",
        ),
        ("virtual: {v: {strategy: fallback, targets: [a], aliases: [b]}}", 4, "virtual.v.aliases[0]", "on line 3"),
        ("virtual: {v: {strategy: fallback, targets: [a], path: x}}", 4, "virtual.v.path", "not a key"),
        ("virtual: [a]", 4, "virtual", "must be keys"),
        ("profiles: {p: {disable: [c]}}", 4, "profiles.p.disable[0]", "no model has the name 'c'"),
        ("profiles: {p: {disable: [ay]}}", 4, "profiles.p.disable[0]", "alias of 'a'"),
        ("profiles: {p: {pins: {c: a}}}", 4, "profiles.p.pins.c", "no model has the name 'c'"),
        ("profiles: {p: {pins: {a: c}}}", 4, "profiles.p.pins.a", "no model has the name 'c'"),
        ("profiles: {p: {pins: {a: a}}}", 4, "profiles.p.pins.a", "pinned to itself"),
        ("profiles: {p: {pins: {b: ay}, disable: [a]}}", 4, "profiles.p.pins.b", "which the profile disables"),
        ("profiles: {p: {pins: {b: 3}}}", 4, "profiles.p.pins.b", 'in quotes: "3"'),
        ("profiles: {p: {idle_unload: never}}", 4, "profiles.p.idle_unload", "not a time"),
        ("profiles: {' p': {}}", 4, "profiles. p", "space"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(text, line, key, message, backends):
    with pytest.raises(ConfigError) as caught:
        read(text + "\n", backends)
    said = str(caught.value).splitlines()
    assert len(said) >= 1
    assert any(one.startswith(f"swapd.yaml:{line}: {key}: ") and message in one for one in said), said


def test_a_profile_in_force_leaves_models_out_and_is_undone_by_none(backends):
    config = read(
        "virtual: {v: {strategy: fallback, targets: [a, b]}}\n"
        "profiles: {p: {disable: [a], idle_unload: 1m}, q: {disable: [v]}}",
        backends,
    )
    gaming = in_profile(config, "p")
    assert (list(gaming.models), list(gaming.disabled), gaming.profile) == (["b"], ["a"], "p")
    assert gaming.models["b"].idle_unload_s == 60.0
    assert list(in_profile(config, "q").virtual) == []
    assert in_profile(config, None) is config
    assert in_profile(config, "gone") is config


def test_what_changes_of_virtual_models_and_profiles_applies_at_once(backends):
    old = read("virtual: {v: {strategy: fallback, targets: [a]}}\nprofiles: {p: {}}", backends)
    new = read("virtual: {v: {strategy: fallback, targets: [b]}}\nprofiles: {q: {}}", backends)
    assert diff(old, new).live == ("virtual.v", "profiles.p", "profiles.q")
    assert diff(old, old).live == ()
