"""LoRA adapters: verdicts on their files, their share of the memory, and what they do to a model's logits."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from support.engine_driver import load, settings_for
from support.gguf_files import Shape, write_model
from support.lora_files import RANK, pairs_for, write_lora
from test_worker_process import launched

from backends.base import InvalidModelError, Offload
from backends.control import Failed, FailureKind
from backends.gguf_settings import Lora
from backends.llama_cpp.backend import LlamaCppBackend
from backends.llama_cpp.engine.batch import Batch
from backends.llama_cpp.engine.model import Model
from backends.llama_cpp.engine.params import ModelLoadError

SHAPE = Shape(weight_type=gguf.GGMLQuantizationType.F32)
BACKEND = LlamaCppBackend()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("lora") / "base.gguf", SHAPE)


def settings(base: Path, *adapters: Path, scale: float = 1.0, **keys: Any) -> Any:
    return settings_for(path=base, lora=tuple(Lora(path, scale) for path in adapters), **{"n_ctx": 256, **keys})


def logits(base: Path, *adapters: Path, scale: float = 1.0) -> np.ndarray[Any, Any]:
    model = load(settings(base, *adapters, scale=scale, type_k="f32", type_v="f32", flash_attn=False))
    batch = Batch(8)
    batch.add_chunk([20, 21, 22, 23], 0, 0, outputs=1)
    assert model.decode(batch) == 0
    found = model.logits(0).copy()
    model.close()
    return found


def test_an_adapter_changes_the_logits_and_a_scale_of_zero_does_not(tmp_path: Path, base: Path) -> None:
    adapter = write_lora(tmp_path / "a.gguf", SHAPE)
    plain, changed = logits(base), logits(base, adapter)
    assert np.abs(changed - plain).max() > 0.1
    np.testing.assert_array_equal(logits(base, adapter, scale=0.0), plain)
    assert np.abs(logits(base, adapter, scale=0.25) - changed).max() > 0.05


def test_an_adapter_does_to_the_logits_what_its_product_added_to_the_weights_does(tmp_path: Path, base: Path) -> None:
    """The definition of LoRA: W + scale * alpha / rank * B A."""
    adapter = write_lora(tmp_path / "a.gguf", SHAPE)
    halves = {tensor.name: tensor.data for tensor in gguf.GGUFReader(adapter).tensors}
    merged = tmp_path / "merged.gguf"
    merged.write_bytes(base.read_bytes())
    for tensor in gguf.GGUFReader(merged, "r+").tensors:
        if tensor.name in pairs_for(SHAPE):
            product = halves[f"{tensor.name}.lora_b"] @ halves[f"{tensor.name}.lora_a"]
            tensor.data[:] += 0.5 * 8.0 / RANK * product
    np.testing.assert_allclose(logits(base, adapter, scale=0.5), logits(merged), atol=1e-4)


def test_two_adapters_add_up(tmp_path: Path, base: Path) -> None:
    one, two = (write_lora(tmp_path / f"{seed}.gguf", SHAPE, seed=seed) for seed in (1, 2))
    both = logits(base, one, two)
    assert np.abs(both - logits(base, one)).max() > 0.05
    assert np.abs(both - logits(base, two)).max() > 0.05


def test_adapters_are_counted_beside_the_tensors_they_change(tmp_path: Path, base: Path) -> None:
    pairs = {**pairs_for(SHAPE), "output.weight": (512, 64)}
    adapter = write_lora(tmp_path / "a.gguf", SHAPE, pairs=pairs)
    plain, with_one, with_two = (BACKEND.inspect(settings(base, *[adapter] * count)).footprint for count in range(3))
    a_layer = 4 * RANK * (2 * 64 + 64 + 128)
    grown = [new - old for new, old in zip(with_one.layer_weights_bytes, plain.layer_weights_bytes, strict=True)]
    assert grown == [a_layer, a_layer, 4 * RANK * (512 + 64)]
    assert with_two.weights_bytes - with_one.weights_bytes == with_one.weights_bytes - plain.weights_bytes
    n_tokens = 256
    assert with_one.compute_bytes - plain.compute_bytes == 4 * n_tokens * RANK


def test_an_adapter_of_the_token_embedding_stays_in_ram(tmp_path: Path, base: Path) -> None:
    """llama.cpp wants this pair the other way round."""
    adapter = write_lora(tmp_path / "a.gguf", SHAPE, pairs={"token_embd.weight": (64, 512)})
    plain, with_one = BACKEND.inspect(settings(base)).footprint, BACKEND.inspect(settings(base, adapter)).footprint
    assert with_one.layer_weights_bytes == plain.layer_weights_bytes
    assert with_one.host_weights_bytes - plain.host_weights_bytes == 4 * RANK * (64 + 512)
    assert np.abs(logits(base, adapter) - logits(base)).max() > 0.01


def test_the_files_of_a_model_are_its_adapters_too(tmp_path: Path, base: Path) -> None:
    adapter = tmp_path / "absent.gguf"
    assert BACKEND.files(settings(base, adapter)) == (base, adapter)


WRONG: list[tuple[Mapping[str, Any], str, bool]] = [
    ({"metadata": {"general.type": "model"}}, "is not a LoRA adapter but a model", True),
    ({"metadata": {"general.type": None}}, "does not say so", True),
    ({"metadata": {"adapter.type": "ia3"}}, "another type than lora", True),
    ({"metadata": {"adapter.lora.alpha": float("nan")}}, "alpha should be a number", False),
    ({"metadata": {"adapter.lora.alpha": "8"}}, "alpha should be a number", False),
    ({"metadata": {"adapter.alora.invocation_tokens": [1, 2]}}, "activated LoRA", False),
    ({"architecture": "qwen3"}, "was made for qwen3 models", True),
    ({"pairs": {}}, "holds no tensors", False),
    ({"pairs": {"blk.0.attn_x.weight": (64, 64)}}, "which base.gguf does not have", True),
    ({"pairs": {"blk.9.attn_q.weight": (64, 64)}}, "which base.gguf does not have", True),
    ({"pairs": {"blk.0.attn_q.weight": (64, 32)}}, "has another shape", True),
    ({"pairs": {"blk.0.attn_q.weight": (32, 64)}}, "has another shape", True),
    ({"halves": ("lora_a",)}, "only one half of its pair", True),
]


@pytest.mark.parametrize(("keys", "says", "llama_cpp_agrees"), WRONG)
def test_an_adapter_that_does_not_suit_is_refused_with_the_reason_before_any_process(
    tmp_path: Path, base: Path, keys: Mapping[str, Any], says: str, llama_cpp_agrees: bool
) -> None:
    adapter = write_lora(tmp_path / "bad.gguf", SHAPE, **keys)
    with pytest.raises(InvalidModelError, match=says) as refusal:
        BACKEND.inspect(settings(base, adapter))
    assert str(adapter) in str(refusal.value)
    if llama_cpp_agrees:
        with pytest.raises(ModelLoadError, match=r"llama\.cpp cannot load it") as theirs:
            Model.load(settings(base, adapter), Offload(), portable=True, on_progress=lambda _: None)
        assert theirs.value.invalid


def test_a_tensor_that_is_none_of_an_adapter_is_named(tmp_path: Path, base: Path) -> None:
    adapter = write_lora(tmp_path / "bad.gguf", SHAPE)
    content = adapter.read_bytes()
    adapter.write_bytes(content.replace(b"attn_q.weight.lora_a", b"attn_q.weight.lora_c", 1))
    with pytest.raises(InvalidModelError, match=r"'blk\.0\.attn_q\.weight\.lora_c' is none of a LoRA adapter"):
        BACKEND.inspect(settings(base, adapter))


def test_an_adapter_that_is_missing_or_no_gguf_is_named(tmp_path: Path, base: Path) -> None:
    with pytest.raises(InvalidModelError, match=r"absent\.gguf: no such file"):
        BACKEND.inspect(settings(base, tmp_path / "absent.gguf"))
    (tmp_path / "text.gguf").write_text("not a model")
    with pytest.raises(InvalidModelError, match=r"text\.gguf: not a GGUF file"):
        BACKEND.inspect(settings(base, tmp_path / "text.gguf"))


def test_an_adapter_named_as_the_model_says_where_it_belongs(tmp_path: Path) -> None:
    adapter = write_lora(tmp_path / "a.gguf", SHAPE)
    with pytest.raises(InvalidModelError, match=r"not a model but an adapter.*list this one under lora"):
        BACKEND.inspect(settings_for(path=adapter))


async def test_a_worker_reports_an_adapter_that_was_exchanged_for_a_bad_one(tmp_path: Path, base: Path) -> None:
    adapter = write_lora(tmp_path / "bad.gguf", SHAPE, architecture="qwen3")
    async with asyncio.timeout(60), launched(tmp_path, base, lora=[{"path": str(adapter)}]) as worker:
        failed = (await worker.until(Failed))[-1]
    assert isinstance(failed, Failed)
    assert failed.kind is FailureKind.INVALID_MODEL
    assert "model arch and LoRA arch mismatch" in failed.message
