"""Good files and what they become."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import yaml

from swapd.config.load import load, parse
from swapd.config.problems import ConfigError, Problems
from swapd.config.schema import MIB, Budget, Config, Params
from swapd.config.yaml_document import FastLoader, read_document

FILE = Path("/etc/swapd/swapd.yaml")


def test_a_list_without_models_has_every_default(backends):
    assert parse("models: {}", FILE, backends) == Config(path=FILE)
    assert parse("server:\nmemory:\nqueue:\nturns:\ndefaults:\nmodels:\n", FILE, backends) == Config(path=FILE)


def test_the_sections_become_bytes_and_seconds(backends):
    config = parse(
        """
server: {listen: ["127.0.0.1:1", "[::1]:0", unix:/run/s.sock], max_body: 1.5MiB, drain: 500ms, state_dir: s}
memory: {budget: {default: 50%, CUDA0: 22GiB, CUDA1: 0, RAM: auto, Vulkan0: 8GB}, reserve: 1048576}
queue: {max_waiting: 7, timeout: 2h}
turns: {turn: 0s, max_wait: 1.5m}
models: {}
""",
        FILE,
        backends,
    )
    assert config.server.listen == ("127.0.0.1:1", "[::1]:0", "unix:/run/s.sock")
    assert (config.server.max_body_bytes, config.server.drain_s) == (MIB * 3 // 2, 0.5)
    assert config.server.state_dir == Path("/etc/swapd/s")
    assert config.memory.default == Budget(share=0.5)
    assert config.memory.budget == {
        "CUDA0": Budget(size_bytes=22 * 1024 * MIB),
        "CUDA1": Budget(size_bytes=0),
        "RAM": Budget(),
        "Vulkan0": Budget(size_bytes=8_000_000_000),
    }
    assert config.memory.reserve_bytes == MIB
    assert (config.queue.max_waiting, config.queue.timeout_s) == (7, 7200.0)
    assert (config.turns.turn_s, config.turns.max_wait_s) == (0.0, 90.0)


def test_a_model_has_its_common_keys_and_its_backends_settings(backends):
    model = parse(
        """
models:
  org/qwen-3.5:8b:
    path: sub/q.gguf
    aliases: [gpt-4o-mini, "7"]
    idle_unload: 10m
    pin: true
    replicas: 3
    priority: -3
    max_wait: 30s
    load_timeout: 1m
    env: {A: yes, B: "1", C: 1:30, D: ""}
    params: {set: {temperature: 0.7, stop: [a, b], seed: 1, x: true, y: text, z: {a: {b: 1}}}, strip: [top_k]}
    n_ctx: 512
    flash_attn: true
    n_gpu_layers: all
    devices: [CUDA0]
    tensor_split: [3, 1]
""",
        FILE,
        backends,
    ).models["org/qwen-3.5:8b"]
    assert model.id == "org/qwen-3.5:8b"
    assert model.aliases == ("gpt-4o-mini", "7")
    assert (model.idle_unload_s, model.pin, model.priority, model.max_wait_s) == (600.0, True, -3, 30.0)
    assert model.replicas == 3
    assert (model.load_timeout_s, model.stall_timeout_s) == (60.0, 120.0)
    assert model.env == {"A": "yes", "B": "1", "C": "1:30", "D": ""}
    assert model.params == Params(
        set={"temperature": 0.7, "stop": ["a", "b"], "seed": 1, "x": True, "y": "text", "z": {"a": {"b": 1}}},
        strip=("top_k",),
    )
    settings = model.settings
    assert settings.path == Path("/etc/swapd/sub/q.gguf")
    assert (settings.n_ctx, settings.flash_attn, settings.n_gpu_layers) == (512, True, "all")
    assert (settings.devices, settings.tensor_split) == (("CUDA0",), (3.0, 1.0))


def test_aliases_may_have_params_of_their_own(backends):
    model = parse(
        """
models:
  m:
    path: x
    aliases: {plain: , fast: {params: {set: {reasoning_effort: low}, strip: [seed]}}, empty: {params: {}}}
    model_name: org/m
    unlisted: true
    name: The Model
    description: It helps.
    metadata: {family: x, sizes: [s, m], more: {n: 1}}
""",
        FILE,
        backends,
    ).models["m"]
    assert (model.name, model.description) == ("The Model", "It helps.")
    assert model.metadata == {"family": "x", "sizes": ["s", "m"], "more": {"n": 1}}
    assert model.aliases == ("plain", "fast", "empty")
    assert model.alias_params == {"fast": Params(set={"reasoning_effort": "low"}, strip=("seed",))}
    assert (model.model_name, model.unlisted) == ("org/m", True)


def test_defaults_are_inherited_and_a_models_own_key_replaces_them_whole(backends):
    models = parse(
        """
defaults: {n_ctx: 1024, idle_unload: 10m, env: {A: a}, flash_attn: false}
models:
  one: {path: x}
  two: {path: x, n_ctx: 2048, idle_unload: never, env: {B: b}}
""",
        FILE,
        backends,
    ).models
    assert [(m.settings.n_ctx, m.idle_unload_s, m.env) for m in models.values()] == [
        (1024, 600.0, {"A": "a"}),
        (2048, None, {"B": "b"}),
    ]
    assert all(model.settings.flash_attn is False for model in models.values())


def test_models_of_another_backend_have_its_settings(backends):
    model = parse(
        "models: {r: {backend: remote, url: http://x, headers: {a: {b: 1}}, weights: [1]}}", FILE, backends
    ).models["r"]
    assert (model.backend, model.settings.url, model.settings.headers) == ("remote", "http://x", {"a": {"b": 1}})


def test_models_keep_the_files_order(backends):
    text = "models:\n" + "".join(f"  {name}: {{path: x}}\n" for name in "zcab")
    assert list(parse(text, FILE, backends).models) == list("zcab")


def test_a_path_may_begin_at_home_or_be_absolute(backends, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    models = parse("models: {a: {path: ~/m.gguf}, b: {path: /m.gguf}}", FILE, backends).models
    assert [str(m.settings.path) for m in models.values()] == ["/home/someone/m.gguf", "/m.gguf"]


def test_relative_paths_begin_at_the_link_not_at_what_it_points_to(tmp_path, backends):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "c.yaml").write_text("models: {a: {path: m.gguf}}")
    (tmp_path / "c.yaml").symlink_to("real/c.yaml")
    assert load(tmp_path / "c.yaml", backends).models["a"].settings.path == tmp_path / "m.gguf"


def test_a_model_file_that_does_not_exist_is_no_concern_of_the_configuration(tmp_path, backends):
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xef\xbb\xbfmodels:\r\n  a: {path: missing.gguf}\r\n")
    config = load(path, backends)
    assert config.path == path
    assert not config.models["a"].settings.path.exists()


def test_an_alias_of_yaml_repeats_a_whole_value(backends):
    text = "models:\n  a: &a {path: x, env: {A: a}}\n  b: *a\n"
    models = parse(text, FILE, backends).models
    assert models["a"].settings == models["b"].settings


def test_words_that_old_yaml_takes_for_booleans_are_fine_where_text_is_wanted(backends):
    models = parse("models: {on: {path: no, aliases: [yes]}}", FILE, backends).models
    assert models["on"].aliases == ("yes",)
    assert models["on"].settings.path == Path("/etc/swapd/no")


def test_a_configuration_survives_a_round_trip_of_equality(backends):
    text = "memory: {budget: {RAM: 1GiB}}\nmodels: {a: {path: x}}"
    assert parse(text, FILE, backends) == parse(text, FILE, backends)
    assert msgspec.structs.replace(parse(text, FILE, backends), path=None) != parse(text, FILE, backends)


@pytest.mark.parametrize("loader", {FastLoader, yaml.SafeLoader}, ids=lambda loader: loader.__name__)
@pytest.mark.parametrize(
    "text", ["a: 'x'\nb: x\nc: \"x\"\nd: |\n  x\ne:\n- 1\n- {f: [*z]}\n".replace("*z", "z"), "a: &a {b: c}\nd: *a\n"]
)
def test_both_parsers_of_pyyaml_give_the_same_tree(loader, text):
    problems = Problems()
    assert read_document(text, problems, loader) == read_document(text, problems)
    assert not problems


@pytest.mark.parametrize(
    "text", ["a:\n\tb: c\n", "a: [::1]:2\n", "a: b: c\n", "a: !x y\n", "a: {<<: b}\n", "a: 1\na: 2\n", "[" * 500]
)
def test_both_parsers_of_pyyaml_refuse_on_the_same_line(text):
    seen = []
    for loader in (FastLoader, yaml.SafeLoader):
        problems = Problems()
        read_document(text, problems, loader)
        with pytest.raises(ConfigError) as caught:
            problems.raise_if_any(FILE)
        seen.append([(problem.line, problem.key) for problem in caught.value.problems])
    assert seen[0] == seen[1]


def test_paths_within_a_setting_begin_at_the_file_too(backends):
    text = "models: {m: {path: m.gguf, lora: [{path: a.gguf, scale: -0.5}, {path: /b.gguf}]}}"
    lora = parse(text, FILE, backends).models["m"].settings.lora
    assert [(one.path, one.scale) for one in lora] == [(Path("/etc/swapd/a.gguf"), -0.5), (Path("/b.gguf"), 1.0)]
