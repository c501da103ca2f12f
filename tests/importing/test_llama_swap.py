"""llama-swap configurations as people write them, and what becomes of them here."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated

import msgspec
import pytest

from backends.base import Settings
from backends.llama_cpp.settings import LlamaCppSettings
from swapd.config.load import ConfigError, parse
from swapd.config.schema import Config, Params
from swapd.importing.comments import comments_of
from swapd.importing.llama_server_flags import translate
from swapd.importing.llama_swap import Imported, import_llama_swap

CORPUS = sorted((Path(__file__).parent / "llama_swap").glob("*.yaml"))
ENVIRON = {"HOME": "/home/me", "HF_TOKEN": "hf-secret", "OPENROUTER_API_KEY": "or-secret", "MY_API_KEY": "my-secret"}


class _Backend:
    def __init__(self, name: str, settings_type: type[Settings]) -> None:
        self.name = name
        self.settings_type = settings_type


class CommandSettings(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    cmd: Annotated[str, msgspec.Meta(min_length=1)]
    cmd_stop: str = ""
    check_endpoint: str = "/health"
    proxy: str = "http://127.0.0.1:${PORT}"
    vision: bool = False
    rerank: bool = False

    def __post_init__(self) -> None:
        if "${env." in self.cmd or "${nowhere}" in self.cmd:
            raise ValueError("cmd has a macro that stands for nothing")


class RemoteSettings(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    proxy: Annotated[str, msgspec.Meta(pattern="^https?://")]
    api_key_env: str | None = None


ALL = {
    "llama_cpp": _Backend("llama_cpp", LlamaCppSettings),
    "command": _Backend("command", CommandSettings),
    "remote": _Backend("remote", RemoteSettings),
}
ALONE = {"llama_cpp": ALL["llama_cpp"]}


def imported(name: str, backends: dict = ALL) -> tuple[Imported, Config]:
    path = next(one for one in CORPUS if one.stem == name)
    found = import_llama_swap(path.read_text(), path, backends, ENVIRON)
    return found, parse(found.text, Path("/etc/swapd/config.yaml"), backends)


def said(found: Imported, key: str) -> str:
    return " | ".join(remark.message for remark in found.remarks if remark.key == key)


@pytest.mark.parametrize("backends", [ALL, ALONE], ids=["all backends", "llama_cpp alone"])
@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_what_is_written_is_a_valid_configuration_and_every_remark_has_its_line(path, backends):
    text = path.read_text()
    found = import_llama_swap(text, path, backends, ENVIRON)
    config = parse(found.text, path, backends)
    assert len(config.models) == found.models
    for remark in found.remarks:
        assert 1 <= remark.line <= len(text.splitlines()), remark
        assert remark.message in found.text or not remark.key.startswith("models."), remark
    assert "secret" not in "".join(line for line in found.text.splitlines() if not line.lstrip().startswith("#"))


def test_a_llama_server_command_becomes_keys_where_every_flag_has_one():
    found, config = imported("homelab")
    model = config.models["qwen3-8b"]
    settings = model.settings
    assert isinstance(settings, LlamaCppSettings)
    assert settings.path == Path("/home/me/models/Qwen3-8B-Q4_K_M.gguf")
    assert (settings.n_ctx, settings.n_parallel, settings.n_gpu_layers, settings.flash_attn) == (16384, 2, "all", True)
    assert (settings.type_k, settings.type_v, settings.devices) == ("q8_0", "q8_0", ("CUDA0", "CUDA1"))
    assert (model.model_name, model.idle_unload_s, model.env) == ("qwen/qwen3:8b", 300.0, {})
    assert "now set for every request" in said(found, "models.qwen3-8b.cmd")


def test_names_params_and_their_order_are_carried():
    found, config = imported("homelab")
    model = config.models["qwen3-8b"]
    assert model.aliases == ("qwen3-8b:high", "gpt-4o-mini", "gpt-4o")
    # What the file stripped of clients' values is the server's own default, forced now.
    assert model.params == Params(
        set={
            "temperature": 0.6,
            "top_p": 0.95,
            "top_k": 20,
            "min_p": 0.0,
            "presence_penalty": 0.5,
            "chat_template_kwargs": {"reasoning_effort": "medium"},
        }
    )
    assert model.alias_params == {"qwen3-8b:high": Params(set={"chat_template_kwargs": {"reasoning_effort": "high"}})}
    assert "own name" in said(found, "models.qwen3-8b.filters.setParamsByID")


def test_what_people_are_told_of_a_model_is_carried():
    _, config = imported("homelab")
    assert config.models["qwen3-8b"].name == "Qwen 3"
    assert config.models["qwen3-8b"].metadata == {"port": "${PORT}"}


def test_the_files_defaults_become_defaults():
    _, config = imported("homelab")
    embed = config.models["embed"]
    assert (embed.load_timeout_s, embed.idle_unload_s, embed.loading_text, embed.unlisted) == (500.0, 600.0, True, True)
    assert config.models["coder"].idle_unload_s is None
    assert imported("moe")[1].models["gpt-oss-120b"].load_timeout_s == 15.0


def test_what_has_no_key_runs_as_the_command_that_it_is():
    found, config = imported("homelab")
    coder = config.models["coder"]
    assert coder.backend == "command"
    assert coder.settings.proxy == "http://127.0.0.1:8999"
    assert coder.settings.cmd.startswith("/opt/llama.cpp/build/bin/llama-server --host 127.0.0.1 --port ${PORT} ")
    assert "no key for -md, --draft-max" in said(found, "models.coder.cmd")
    docker = config.models["docker-llama"].settings
    assert docker.cmd_stop == "docker stop docker-llama"
    assert "--name docker-llama" in docker.cmd
    assert "-p ${PORT}:8080" in docker.cmd
    assert config.models["docker-llama"].env == {}
    assert "may be secret | LLAMA_ARG_CTX_SIZE" in said(found, "models.docker-llama.env")
    assert "'/models/with space/ggml-large.bin'" in config.models["whisper"].settings.cmd


def test_embedding_and_reranking_servers_are_known_by_their_flags():
    found, config = imported("homelab")
    embed, rerank = config.models["embed"].settings, config.models["rerank/bge:v2"].settings
    assert (embed.embeddings, embed.pooling, embed.n_ubatch, embed.n_ctx) == (True, "mean", 8192, 8192)
    assert "the model's own length" in said(found, "models.embed.cmd")
    assert (rerank.embeddings, rerank.pooling, rerank.use_mmap, rerank.n_threads) == (True, "rank", False, 8)


def test_peers_are_models_of_the_backend_remote_without_their_secrets():
    found, config = imported("homelab")
    rack, cloud = config.models["rack/deepseek-r1"], config.models["cloud/z-ai/glm-4.7"]
    assert (rack.backend, rack.model_name, rack.aliases) == ("remote", "deepseek-r1", ("deepseek-r1",))
    assert rack.params == Params(set={"temperature": 0.6})
    assert config.models["rack/qwen3-8b"].aliases == ()
    assert cloud.settings.api_key_env == "OPENROUTER_API_KEY"
    assert "stays behind" in said(found, "models.literal/m")
    assert "sk-secret" not in found.text
    assert "sk-hunter2" not in found.text


def test_selectors_are_virtual_models_and_profiles_are_profiles():
    found, config = imported("homelab")
    assert config.virtual["assistant"].strategy == "first_loaded"
    assert config.virtual["assistant"].targets == ("qwen3-8b", "coder")
    assert config.virtual["spread"].targets == ("qwen3-8b", "rack/deepseek-r1")
    assert "the target nowhere" in said(found, "selectors.assistant")
    assert config.profiles["gaming"].pins == {"qwen3-8b": "rack/deepseek-r1", "embed": None}
    assert said(found, "profiles.gaming.pins.gone")


def test_what_is_not_needed_is_said_with_its_line():
    found, _ = imported("homelab")
    lines = {remark.key: remark.line for remark in found.remarks}
    source = next(one for one in CORPUS if one.stem == "homelab").read_text().splitlines()
    for key, start in {"groups.forever": "  forever:", "hooks": "hooks:", "apiKeys": "apiKeys:"}.items():
        assert source[lines[key] - 1].startswith(start)
    assert "pin: true" in said(found, "groups.forever")
    assert "pin: true" not in said(found, "groups.big")


def test_comments_stay_with_their_models():
    text = imported("homelab")[0].text
    assert text.index("# My llama-swap on the P40 box") < text.index("models:")
    assert text.index("# the daily driver") < text.index("# unload when idle") < text.index("\n  qwen3-8b:")
    assert (
        text.index("\n  qwen3-8b:") < text.index("# draft models need llama-server itself") < text.index("\n  coder:")
    )
    assert text.index("\n  coder:") < text.index("# for the wiki") < text.index("\n  embed:")
    assert "is a macro that is defined above" not in text


def test_a_model_that_no_installed_backend_runs_is_a_comment_with_the_reason():
    found, config = imported("homelab", ALONE)
    assert list(config.models) == ["qwen3-8b", "embed", "rerank/bge:v2"]
    assert "  #   backend: command\n" in found.text
    assert "needs the backend command" in said(found, "models.coder")
    assert config.virtual["spread"].targets == ("qwen3-8b",)
    assert found.dropped == 7


def test_flags_of_mixtures_of_experts_and_odd_values():
    _, config = imported("moe")
    gpt = config.models["gpt-oss-120b"].settings
    assert (gpt.n_cpu_moe, gpt.n_ctx, gpt.n_ubatch, gpt.tensor_split) == (28, 65536, 2048, (3.0, 1.0))
    assert (gpt.flash_attn, gpt.split_mode, gpt.main_gpu) == (True, "layer", 0)
    assert config.models["gpt-oss-120b"].params.set == {"chat_template_kwargs": {"reasoning_effort": "high"}}
    glm = config.models["glm"]
    assert glm.settings.override_tensor == (r"blk\.[0-9]+\.ffn_.*_exps\.=CPU",)
    assert (glm.settings.use_mlock, glm.params) == (True, Params())
    vision = config.models["vision"].settings
    assert (vision.image_max_tokens, vision.mmproj_offload) == (1024, False)
    commands = {name for name, model in config.models.items() if model.backend == "command"}
    assert commands == {"tensor", "yarn", "hub", "tiny-context", "odd-batch"}


@pytest.mark.parametrize(
    ("line", "keys"),
    [
        ("-m x -fa", {"path": "x", "flash_attn": True}),
        ("-m x -fa off --jinja", {"path": "x", "flash_attn": False}),
        ("-m x -ngl -1", {"path": "x", "n_gpu_layers": "all"}),
        ("-m x -ngl 20", {"path": "x", "n_gpu_layers": 20}),
        ("-m x --cache-ram 0", {"path": "x", "cache_ram": "0"}),
        ("-m x --cache-ram 2048", {"path": "x", "cache_ram": "2048MiB"}),
        ("-m x --lora a.gguf --lora b.gguf", {"path": "x", "lora": [{"path": "a.gguf"}, {"path": "b.gguf"}]}),
        ("-m x -dev CUDA0,CUDA1", {"path": "x", "devices": ["CUDA0", "CUDA1"]}),
    ],
)
def test_single_flags(line, keys):
    found = translate(line.split())
    assert (found.keys, found.foreign) == (keys, [])


@pytest.mark.parametrize(
    "line",
    [
        "",
        "-m",
        "-m x -c many",
        "-m x --chat-template chatml",
        "-m x --grammar-file g",
        "-m x stray",
        "-m x -ot a=CUDA1",
    ],
)
def test_lines_that_only_llama_server_understands(line):
    found = translate(line.split())
    assert found.foreign or found.remarks


def test_comments_are_told_from_text():
    text = 'a: 1 # one\nb: "x # y"\nc: |\n  # text\n  more\n# two\nd: >-\n  # text\n\n  # text\ne: #three\n'
    assert comments_of(text) == {1: "one", 6: "two"}


def test_damaged_files_are_refused_in_order_or_become_valid_configurations():
    lines = next(one for one in CORPUS if one.stem == "homelab").read_text().splitlines(keepends=True)
    read = 0
    for seed in range(150):
        rng = random.Random(seed)
        damaged = list(lines)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(damaged))
            match rng.randrange(4):
                case 0:
                    damaged[at] = damaged[at][: rng.randint(0, len(damaged[at]))] + rng.choice("{[\"':#-\n${}") + "\n"
                case 1:
                    del damaged[at]
                case 2:
                    damaged[at] = " " * rng.randint(0, 8) + damaged[at].lstrip()
                case 3:
                    damaged[at] = (
                        damaged[at].partition(":")[0] + ": " + rng.choice(["~", "3", "[a, 1]", "{a: {}}", "''"]) + "\n"
                    )
        try:
            found = import_llama_swap("".join(damaged), Path("l.yaml"), ALL, ENVIRON)
        except ConfigError:
            continue
        try:
            parse(found.text, Path("c.yaml"), ALL)
        except ConfigError as error:
            pytest.fail(f"seed {seed}: {error}\n{found.text}")
        read += 1
    assert read > 30
