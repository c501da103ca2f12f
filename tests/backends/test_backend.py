"""The description of the embedded worker: verdicts on files and settings, and the process it asks for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.gguf_files import (
    Shape,
    packed_header,
    packed_key,
    packed_string,
    smollm2_path,
    write_model,
    write_truncated,
    write_unknown_architecture,
)
from support.llama_cpp_figures import ask_llama_cpp
from support.model_zoo import ZOO

from backends.architectures import ARCHITECTURES, NOT_SERVED, RECURRENT, WITHOUT_CACHE
from backends.base import Capabilities, InvalidModelError, LaunchOrder, Offload, decode_path
from backends.environment import worker_environment
from backends.footprint import dimensions
from backends.gguf import read_header
from backends.llama_cpp.backend import LlamaCppBackend, context_plan
from backends.llama_cpp.settings import LlamaCppSettings
from backends.registry import installed_backends

BACKEND = LlamaCppBackend()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("backend") / "tiny.gguf")


def settings_for(path: Path, **keys: Any) -> LlamaCppSettings:
    return LlamaCppSettings(path=path, **keys)


def order(**changes: Any) -> LaunchOrder:
    plain: dict[str, Any] = {
        "model_id": "tiny",
        "socket_path": Path("/run/swapd/tiny.sock"),
        "control_fd": 7,
        "offload": Offload(n_gpu_layers=3, devices=("CUDA0",), tensor_split=(0.5, 0.5)),
    }
    return LaunchOrder(**(plain | changes))


def test_the_real_model_is_described_in_one_line() -> None:
    inspection = BACKEND.inspect(settings_for(smollm2_path(), n_ctx=4096, n_parallel=6))
    assert inspection.description == "llama 135M Q4_1, 30 layers, trained for 8,192 tokens"
    assert inspection.architecture == "llama"
    assert inspection.capabilities == Capabilities(chat=True, completions=True, tools=True)
    assert (inspection.slots, inspection.n_ctx, inspection.n_gpu_layers) == (6, 4096, None)
    assert inspection.footprint.weights_bytes == 96_576_768
    assert inspection.footprint.kv_bytes == 30 * 4096 * 2 * 2 * 192


def test_the_usable_context_is_what_the_model_was_trained_for_at_most(tmp_path: Path, tiny: Path) -> None:
    assert BACKEND.inspect(settings_for(tiny, n_ctx=65536)).n_ctx == 2048
    assert BACKEND.inspect(settings_for(tiny, n_ctx=1024)).n_ctx == 1024
    assert BACKEND.inspect(settings_for(tiny, n_ctx=65536)).footprint.kv_bytes == 65536 * 2 * 2 * 2 * 32


def test_rope_scaling_of_the_file_stretches_the_usable_context(tmp_path: Path) -> None:
    scaling: dict[str, Any] = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 2048,
    }
    path = write_model(tmp_path / "yarn.gguf", metadata=scaling)
    assert BACKEND.inspect(settings_for(path, n_ctx=65536)).n_ctx == 8192


@pytest.mark.parametrize(("asked", "layers"), [("auto", None), ("all", 3), (0, 0), (2, 2), (99, 3)])
def test_gpu_layers_are_counted_as_llama_cpp_counts_them(tiny: Path, asked: Any, layers: int | None) -> None:
    assert BACKEND.inspect(settings_for(tiny, n_gpu_layers=asked)).n_gpu_layers == layers


def test_a_file_with_pooling_serves_embeddings_unless_told_otherwise(tmp_path: Path, tiny: Path) -> None:
    only_embeddings = Capabilities(chat=False, completions=False, embeddings=True)
    pooled = write_model(tmp_path / "pooled.gguf", metadata={"llama.pooling_type": 1})
    assert BACKEND.inspect(settings_for(pooled)).capabilities == only_embeddings
    assert BACKEND.inspect(settings_for(pooled, embeddings=False)).capabilities == Capabilities(tools=True)
    assert BACKEND.inspect(settings_for(tiny, embeddings=True)).capabilities == only_embeddings
    encoder = write_model(tmp_path / "encoder.gguf", metadata={"llama.attention.causal": False})
    assert BACKEND.inspect(settings_for(encoder)).capabilities == only_embeddings


def test_an_encoder_is_not_asked_to_generate(tmp_path: Path) -> None:
    path = write_model(tmp_path / "bert.gguf", Shape(architecture="bert"))
    with pytest.raises(InvalidModelError, match="a bert model cannot generate text; `embeddings: true`"):
        BACKEND.inspect(settings_for(path, embeddings=False))
    assert BACKEND.inspect(settings_for(path, embeddings=True)).footprint.kv_bytes == 0


def test_a_reranking_model_needs_its_classifier(tmp_path: Path) -> None:
    path = write_model(tmp_path / "rank.gguf", metadata={"llama.pooling_type": 4})
    for settings in (settings_for(path), settings_for(path, pooling="rank")):
        with pytest.raises(InvalidModelError, match="cannot rerank: it has no classifier"):
            BACKEND.inspect(settings)
    assert BACKEND.inspect(settings_for(path, pooling="mean")).capabilities.embeddings
    assert BACKEND.inspect(settings_for(path, embeddings=False)).capabilities == Capabilities(tools=True)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general.architecture": "clip"}, "is the projector of a multimodal model; name the model's own file"),
        ({"general.architecture": "llama", "general.type": "mmproj"}, "projector of a multimodal model"),
        ({"general.architecture": "llama", "general.type": "adapter"}, "is not a model but an adapter"),
        ({"general.type": "imatrix"}, "is not a model but an imatrix"),
        ({}, "names no architecture"),
        ({"general.architecture": "t5"}, "is an encoder-decoder model"),
        ({"general.architecture": "llama"}, "holds no tensors, only metadata"),
        ({"general.architecture": "swan9"}, "architecture 'swan9' is unknown to this llama.cpp"),
    ],
)
def test_a_file_that_is_no_servable_model_says_what_it_is(
    tmp_path: Path, metadata: dict[str, str], message: str
) -> None:
    entries = [packed_key(key, 8, packed_string(value)) for key, value in metadata.items()]
    path = tmp_path / "file.gguf"
    path.write_bytes(packed_header(entries, []))
    with pytest.raises(InvalidModelError, match=message):
        BACKEND.inspect(settings_for(path))


def test_llama_cpp_agrees_on_an_unknown_and_a_known_architecture(tmp_path: Path, tiny: Path) -> None:
    unknown = write_unknown_architecture(tmp_path / "unknown.gguf")
    with pytest.raises(InvalidModelError, match="'swan9' is unknown"):
        BACKEND.inspect(settings_for(unknown))
    refused, loaded = ask_llama_cpp([{"path": str(unknown), "real": True}, {"path": str(tiny), "real": True}])
    assert "unknown model architecture: 'swan9'" in refused["error"]
    assert loaded["error"] is None


def test_the_special_architectures_are_known_ones() -> None:
    assert RECURRENT | WITHOUT_CACHE | set(NOT_SERVED) <= ARCHITECTURES
    assert "clip" not in ARCHITECTURES


def test_a_truncated_model_is_refused_before_any_process(tmp_path: Path, tiny: Path) -> None:
    cut = write_truncated(tmp_path / "cut.gguf", tiny, tiny.stat().st_size // 2)
    with pytest.raises(InvalidModelError, match=r"cut\.gguf: truncated.*download it again"):
        BACKEND.inspect(settings_for(cut))


def test_a_cache_type_the_heads_do_not_suit_is_refused_as_llama_cpp_does(tiny: Path) -> None:
    assert Shape().head_k == 16
    with pytest.raises(InvalidModelError, match="type_k q8_0 needs heads in multiples of 32 elements"):
        BACKEND.inspect(settings_for(tiny, type_k="q8_0"))
    (theirs,) = ask_llama_cpp([{"path": str(tiny), "settings": {"type_k": "q8_0"}}])
    assert "does not divide n_embd_head_k=16" in theirs["error"]


def test_models_whose_cache_grows_per_sequence_keep_no_prefixes_unless_asked(tmp_path: Path) -> None:
    def sequences(name: str, **keys: Any) -> tuple[int, bool]:
        header = read_header(ZOO[name](2).write(tmp_path / "model.gguf"))
        settings = settings_for(tmp_path / "model.gguf", n_parallel=6, **keys)
        plan = context_plan(header, dimensions(header), settings, embeddings=False)
        return plan.n_seq_max, plan.swa_full

    assert sequences("gemma2") == (6, False)
    assert sequences("gemma2", prefix_slots=2) == (8, True)
    assert sequences("mamba", prefix_slots=2) == (6, False)
    assert sequences("llama", prefix_slots=2) == (8, False)


def test_one_cache_for_keys_and_values_has_one_type(tmp_path: Path) -> None:
    path = ZOO["deepseek2"](2).write(tmp_path / "mla.gguf")
    with pytest.raises(InvalidModelError, match=r"type_k q8_0 and type_v f16 differ.*give both the same type"):
        BACKEND.inspect(settings_for(path, type_k="q8_0"))
    (theirs,) = ask_llama_cpp([{"path": str(path), "settings": {"type_k": "q8_0"}}])
    assert theirs["error"]
    assert BACKEND.inspect(settings_for(path, type_k="q8_0", type_v="q8_0")).footprint.kv_bytes > 0


def test_the_files_of_a_split_model_are_all_its_shards_even_while_one_is_missing(tmp_path: Path) -> None:
    first = write_model(tmp_path / "parts", shards=2)
    second = tmp_path / "parts-00002-of-00002.gguf"
    assert BACKEND.files(settings_for(first)) == (first, second)
    assert BACKEND.inspect(settings_for(first)).footprint.weights_bytes > 0
    second.unlink()
    assert BACKEND.files(settings_for(first)) == (first, second)
    assert BACKEND.files(settings_for(tmp_path / "absent.gguf")) == (tmp_path / "absent.gguf",)


def test_the_command_line_carries_the_whole_settings_and_offload(tiny: Path) -> None:
    settings = settings_for(tiny, n_ctx=4096, tensor_split=(3.0, 1.0), flash_attn=True, chat_template="{{ x }}")
    spec = BACKEND.launch(settings, order())
    assert spec.argv[:4] == (sys.executable, "-P", "-m", "backends.llama_cpp")
    words = [word for word in spec.argv[4:] if not word.startswith("--model-id=")]
    options = dict(zip(words[::2], words[1::2], strict=True))
    assert options["--socket"] == "/run/swapd/tiny.sock"
    assert options["--control-fd"] == "7"
    assert "--model-id=tiny" in spec.argv
    assert msgspec.json.decode(options["--settings"], type=LlamaCppSettings, dec_hook=decode_path) == settings
    assert msgspec.json.decode(options["--offload"], type=Offload) == order().offload


def test_a_portable_worker_is_ordered_by_a_flag(tiny: Path) -> None:
    assert BACKEND.has_portable_mode
    assert BACKEND.launch(settings_for(tiny), order(portable=True)).argv[-1] == "--portable"
    assert "--portable" not in BACKEND.launch(settings_for(tiny), order()).argv


def test_the_worker_inherits_paths_and_gpu_settings_but_no_secrets() -> None:
    daemon = {
        "PATH": "/bin",
        "LC_ALL": "C.UTF-8",
        "CUDA_VISIBLE_DEVICES": "1",
        "HSA_OVERRIDE_GFX_VERSION": "10.3.0",
        "XDG_RUNTIME_DIR": "/run/user/1000",
        "LLAMA_ARG_CTX_SIZE": "1",
        "OPENAI_API_KEY": "sk",
        "CUDA_LICENSE_TOKEN": "t",
        "NOTIFY_SOCKET": "/run/systemd/notify",
        "LISTEN_FDS": "1",
    }
    passed = worker_environment(daemon, {"CUDA_VISIBLE_DEVICES": "0", "MY_OWN": "x"})
    assert passed == {
        "PATH": "/bin",
        "LC_ALL": "C.UTF-8",
        "CUDA_VISIBLE_DEVICES": "0",
        "HSA_OVERRIDE_GFX_VERSION": "10.3.0",
        "XDG_RUNTIME_DIR": "/run/user/1000",
        "GGML_NO_BACKTRACE": "1",
        "MY_OWN": "x",
    }


def test_launch_reads_the_daemons_environment(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("SECRET_KEY", "k")
    spec = BACKEND.launch(settings_for(tiny), order(env={"EXTRA": "1"}))
    assert (spec.env["OMP_NUM_THREADS"], spec.env["EXTRA"]) == ("3", "1")
    assert "SECRET_KEY" not in spec.env


def test_the_backend_is_found_by_its_name() -> None:
    assert isinstance(installed_backends()["llama_cpp"], LlamaCppBackend)


def test_describing_a_backend_imports_no_engine_and_works_from_any_directory(tmp_path: Path) -> None:
    script = (
        "import json, sys; import backends.llama_cpp.backend, backends.registry; "
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    environment = {"PATH": os.environ["PATH"]}
    argv = [sys.executable, "-P", "-c", script]
    output = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, check=True).stdout
    loaded = set(json.loads(output))
    assert "backends" in loaded
    assert loaded.isdisjoint({"llama_cpp", "aiohttp", "numpy", "swapd", "jinja2"})
