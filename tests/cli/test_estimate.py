"""estimate, on real files, with the real probe where it is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.model_zoo import ZOO

from backends.registry import installed_backends
from swapd.cli import main
from swapd.config.load import load
from swapd.pool import catalog
from swapd.pool.learned import FILE_NAME, Lesson, Store
from swapd.pool.measure import Surplus

Captured = pytest.CaptureFixture[str]
MIB = 2**20


def write_config(directory: Path, text: str) -> Path:
    path = directory / "config.yaml"
    path.write_text(text)
    return path


def test_an_estimate_of_a_file_needs_no_configuration_and_adds_up(small_model: Path, capsys: Captured) -> None:
    assert main(["estimate", str(small_model), "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    (device,) = model["devices"]
    assert device["name"] == "RAM"
    parts = ("weights_bytes", "kv_bytes", "compute_bytes", "other_bytes")
    assert all(isinstance(device[part], int) and device[part] > 0 for part in parts)
    assert sum(device[part] for part in parts) == device["total_bytes"] == model["total_bytes"]
    assert model["fits"] is True
    # 30 layers, 3 KV heads of 64, K and V, 2 bytes each, 8192 cells: the cache of this model by hand.
    assert device["kv_bytes"] == 30 * 3 * 64 * 2 * 2 * 8192


def test_an_estimate_is_a_table_and_a_sentence(small_model: Path, capsys: Captured) -> None:
    assert main(["estimate", str(small_model)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1].split() == ["DEVICE", "BY", "WEIGHTS", "KV", "CACHE", "COMPUTE", "OTHER", "TOTAL", "BUDGET"]
    assert [line.split()[:2] for line in out[3:5]] == [["RAM", "formulas"], ["RAM", "engine"]]
    assert out[5].startswith("engine: llama.cpp's memory breakdown, ")
    assert out[6] == "largest context that fits: 8,192 tokens, all it was trained for"
    assert out[7].startswith("fits ")
    assert len(out) == 8


def test_an_estimate_of_a_configured_model_uses_its_settings_and_budget(
    tmp_path: Path, small_model: Path, capsys: Captured
) -> None:
    config = write_config(
        tmp_path,
        f"memory: {{budget: {{RAM: 100MiB}}}}\n"
        f"models:\n  tiny:\n    path: {small_model}\n    n_ctx: 1024\n    aliases: [small]\n",
    )
    assert main(["estimate", "small", "--config", str(config), "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert model["n_ctx"] == 1024
    assert model["fits"] is False
    assert "100 MiB" in model["fit"]


def test_an_unknown_model_is_told_a_close_name(tmp_path: Path, small_model: Path, capsys: Captured) -> None:
    config = write_config(tmp_path, f"models:\n  qwen3-8b:\n    path: {small_model}\n")
    assert main(["estimate", "qwen3-8", "--config", str(config)]) == 1
    assert capsys.readouterr().err == f"swapd: {config} has no model 'qwen3-8'; did you mean qwen3-8b?\n"


def test_a_bad_file_among_good_ones_fails_the_command_and_not_their_estimates(
    tmp_path: Path, small_model: Path, capsys: Captured
) -> None:
    assert main(["estimate", str(tmp_path / "gone.gguf"), str(small_model), "--json"]) == 1
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["models"]) == 1
    assert "gone.gguf" in captured.err
    assert captured.err.count("\n") == 1


def test_the_engine_says_what_the_formulas_say(small_model: Path, capsys: Captured) -> None:
    assert main(["estimate", str(small_model), "--json", "--n-ctx", "2048"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    (ram,) = model["devices"]
    assert model["n_ctx"] == 2048
    assert ram["engine"]["kv_bytes"] == ram["kv_bytes"]
    assert ram["engine"]["total_bytes"] == pytest.approx(ram["total_bytes"], rel=0.01)


def test_without_the_probe_no_process_is_started(
    small_model: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.run", None)
    assert main(["estimate", str(small_model), "--json", "--no-probe"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert model["engine"] == ""
    assert model["devices"][0]["engine"] is None


def test_a_file_that_only_the_engine_refuses_is_still_estimated(tmp_path: Path, capsys: Captured) -> None:
    broken = ZOO["llama"](2)
    broken.tensors = [tensor for tensor in broken.tensors if tensor[0] != "blk.1.attn_k.weight"]
    assert main(["estimate", str(broken.write(tmp_path / "broken.gguf"))]) == 0
    out = capsys.readouterr().out
    assert "engine: has no answer: " in out
    assert "blk.1.attn_k.weight" in out
    assert "RAM      formulas" in out


def test_a_device_that_is_not_there_is_reckoned_with_when_it_is_said_what_it_has(
    tmp_path: Path, capsys: Captured
) -> None:
    path = ZOO["llama"]().write(tmp_path / "llama.gguf")
    assert main(["estimate", str(path), "--json", "--device", "CUDA0=1500MiB"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    gpu = next(device for device in model["devices"] if device["name"] == "CUDA0")
    assert gpu["budget_bytes"] == 1500 * MIB
    assert 0 < gpu["total_bytes"] <= 1500 * MIB
    assert (model["layers"], model["n_gpu_layers"], model["limits"]["n_gpu_layers"]) == (5, 5, 5)
    assert model["engine"] == "not asked, because this machine has no CUDA0"
    assert 8192 < model["limits"]["n_ctx_on_gpus"] < model["limits"]["n_ctx"] <= 131072
    # What is said to fit does, and a step more does not.
    for n_ctx, whole in ((model["limits"]["n_ctx_on_gpus"], True), (model["limits"]["n_ctx_on_gpus"] + 256, False)):
        assert main(["estimate", str(path), "--json", "--device", "CUDA0=1500MiB", "--n-ctx", str(n_ctx)]) == 0
        (model,) = json.loads(capsys.readouterr().out)["models"]
        assert (model["n_gpu_layers"] == model["layers"]) is whole


def test_a_device_without_a_size_must_be_there(small_model: Path, capsys: Captured) -> None:
    assert main(["estimate", str(small_model), "--device", "CUDA7"]) == 1
    assert "there is no device CUDA7; this machine has" in capsys.readouterr().err
    for wrong in ("=1GiB", "CUDA0=lots"):
        with pytest.raises(SystemExit, match="2"):
            main(["estimate", str(small_model), "--device", wrong])


def test_a_context_that_cannot_be_is_refused_with_its_bounds(small_model: Path, capsys: Captured) -> None:
    assert main(["estimate", str(small_model), "--n-ctx", "9"]) == 1
    assert "cannot have n_ctx 9: Expected `int` >= 256" in capsys.readouterr().err


def learned_model(directory: Path, model: Path, lesson: Lesson) -> Path:
    """A configuration of one model, of which a daemon has learned this; returns the configuration's path."""
    path = write_config(
        directory, f"server: {{state_dir: {directory}/state}}\nmodels:\n  tiny: {{path: {model}, n_ctx: 1024}}\n"
    )
    backends = installed_backends()
    config = load(path, backends)
    entry = catalog.inspect(config.models["tiny"], config, backends["llama_cpp"], ["RAM"])
    (directory / "state").mkdir()
    store = Store.opened(directory / "state" / FILE_NAME)
    store.learn(entry.spec.launch_key, lesson)
    store.close()
    return path


def test_what_a_daemon_has_learned_of_a_model_is_shown_and_reckoned_with(
    tmp_path: Path, small_model: Path, capsys: Captured
) -> None:
    lesson = Lesson(surplus=Surplus(host_bytes=24 * MIB), measured_bytes={"RAM": 300 * MIB})
    config = learned_model(tmp_path, small_model, lesson)
    assert main(["estimate", "tiny", "--config", str(config), "--json", "--no-probe"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    (ram,) = model["devices"]
    assert (ram["correction_bytes"], ram["measured_bytes"]) == (24 * MIB, 300 * MIB)
    formulas = sum(ram[part] for part in ("weights_bytes", "kv_bytes", "compute_bytes", "other_bytes"))
    assert ram["total_bytes"] == model["total_bytes"] == formulas + 24 * MIB

    assert main(["estimate", "tiny", "--config", str(config), "--no-probe"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in out[3:6]] == [["RAM", "formulas"], ["RAM", "measured"], ["RAM", "corrected"]]
    assert out[4].split()[2:7] == ["-", "-", "-", "-", "300"]
    assert out[6].startswith("corrected: by what its workers were seen to take")


def test_what_was_learned_with_other_settings_is_not(tmp_path: Path, small_model: Path, capsys: Captured) -> None:
    lesson = Lesson(surplus=Surplus(host_bytes=24 * MIB), measured_bytes={"RAM": 300 * MIB})
    config = learned_model(tmp_path, small_model, lesson)
    assert main(["estimate", "tiny", "--config", str(config), "--json", "--no-probe", "--n-ctx", "2048"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert [(ram["correction_bytes"], ram["measured_bytes"]) for ram in model["devices"]] == [(0, None)]
