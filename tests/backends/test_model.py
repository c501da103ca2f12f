from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.engine_driver import SMOLLM2, chat_tokens, load, plain_greedy, settings_for, text_of, tiny_settings
from support.gguf_files import Shape, write_model, write_truncated, write_unknown_architecture, write_wrong_magic

from backends.base import Offload
from backends.llama_cpp.engine.batch import Batch
from backends.llama_cpp.engine.logs import is_memory_trouble, reason
from backends.llama_cpp.engine.model import Model, ModelLoadError


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    loaded = load(settings_for(n_ctx=512, n_parallel=2))
    yield loaded
    loaded.close()


def load_quietly(path: Path, offload: Offload = Offload(), **keys: Any) -> Model:  # noqa: B008 (frozen)
    return Model.load(settings_for(path=path, **keys), offload, portable=True, on_progress=lambda _: None)


def test_loading_reports_rising_progress_up_to_one() -> None:
    seen: list[float] = []
    Model.load(settings_for(n_ctx=256), Offload(), portable=True, on_progress=seen.append).close()
    assert len(seen) > 10
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_an_error_in_the_progress_callback_stops_the_load_and_comes_out() -> None:
    def refuse(_: float) -> None:
        raise RuntimeError("nobody listens")

    with pytest.raises(RuntimeError, match="nobody listens"):
        Model.load(settings_for(), Offload(), portable=True, on_progress=refuse)


def test_the_counts_are_llama_cpps(model: Model) -> None:
    assert (model.n_ctx, model.n_ctx_request, model.n_vocab, model.n_embd) == (512, 512, 49152, 576)
    assert (model.n_batch, model.n_ubatch, model.n_seq_max) == (512, 512, 6)
    assert not model.embeddings
    assert model.keeps_prefixes


def test_a_request_may_use_no_more_than_the_model_was_trained_for(tmp_path: Path) -> None:
    short = load_quietly(write_model(tmp_path / "short.gguf", Shape(n_ctx_train=512)), n_ctx=1024)
    assert (short.n_ctx, short.n_ctx_request) == (1024, 512)
    short.close()


def test_a_file_with_rope_scaling_was_trained_for_more(tmp_path: Path) -> None:
    scaling = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 512,
    }
    path = write_model(tmp_path / "scaled.gguf", Shape(n_ctx_train=512), metadata=scaling)
    scaled = load_quietly(path, n_ctx=1024)
    assert scaled.n_ctx_request == 1024
    scaled.close()


def test_a_context_that_llama_cpp_rounds_up_is_not_given_to_requests(tmp_path: Path) -> None:
    rounded = load_quietly(write_model(tmp_path / "tiny.gguf"), n_ctx=300)
    assert (rounded.n_ctx, rounded.n_ctx_request) == (512, 300)
    rounded.close()


def test_text_survives_the_way_through_tokens(model: Model) -> None:
    for text in ("Hello world", "naïve café ☃ 終わり 🦊", "a\0b", "  spaces\n\ttabs  ", "x" * 5000):
        tokens = model.tokenize(text, add_special=False, parse_special=False)
        assert b"".join(model.piece(token) for token in tokens).decode() == text
    assert model.tokenize("", add_special=False, parse_special=False) == []


def test_special_tokens_are_parsed_only_when_asked(model: Model) -> None:
    (parsed,) = model.tokenize("<|im_end|>", add_special=False, parse_special=True)
    assert parsed in model.eog_tokens
    assert all(model.is_eog(token) for token in model.eog_tokens)
    assert not model.is_eog(parsed + 1)
    assert model.piece(parsed) == b""
    assert model.token_text(parsed) == "<|im_end|>" == model.eos_token
    assert len(model.tokenize("<|im_end|>", add_special=False, parse_special=False)) > 1
    assert model.bos_token == "<|im_start|>"
    assert model.token_text(-1) == model.token_text(10**9) == ""


def test_half_a_surrogate_pair_is_no_error(model: Model) -> None:
    assert model.tokenize("\ud800", add_special=False, parse_special=False)


def test_the_chat_template_is_the_files(model: Model) -> None:
    template = model.chat_template()
    assert template is not None
    assert "<|im_start|>" in template


def test_warming_up_leaves_nothing_in_the_cache(model: Model) -> None:
    prompt = chat_tokens(model, "Name three colours.")
    before = plain_greedy(model, prompt, 8)
    for brief in (False, True):
        model.warm_up(brief=brief)
        assert model.kv_bytes == pytest.approx(2 * 30 * 192 * 2 * model.n_ctx, rel=0.05)
        assert plain_greedy(model, prompt, 8) == before
    assert text_of(model, before)


def test_a_batch_over_the_limits_is_a_defect_caught_before_llama_cpp_aborts(model: Model) -> None:
    batch = Batch(600)
    batch.add_chunk([5] * 600, 0, 0, outputs=1)
    with pytest.raises(AssertionError):
        model.decode(batch)
    rows = model.n_outputs_max + 1
    batch = Batch(rows)
    batch.add_single([5] * rows, list(range(rows)), [0] * rows)
    with pytest.raises(AssertionError):
        model.decode(batch)
    batch.clear()
    with pytest.raises(AssertionError):
        model.decode(batch)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("magic", "invalid magic"),
        ("truncated", "not within the file bounds"),
        ("unknown", "unknown model architecture"),
    ],
)
def test_a_file_that_can_never_load_is_invalid_and_says_why(name: str, says: str, tmp_path: Path) -> None:
    source = write_model(tmp_path / "good.gguf")
    path = tmp_path / "bad.gguf"
    if name == "magic":
        write_wrong_magic(path, source)
    elif name == "truncated":
        write_truncated(path, source, -100)
    else:
        write_unknown_architecture(path)
    with pytest.raises(ModelLoadError, match=says) as caught:
        load_quietly(path)
    assert caught.value.invalid


def test_a_missing_file_is_invalid(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="no such file") as caught:
        load_quietly(tmp_path / "nowhere.gguf")
    assert caught.value.invalid


def test_a_cache_type_that_does_not_suit_the_model_is_invalid_and_says_why(tmp_path: Path) -> None:
    path = write_model(tmp_path / "narrow.gguf", Shape(n_embd=64, n_head=4))
    with pytest.raises(ModelLoadError, match="block size 32 does not divide n_embd_head_k=16") as caught:
        load_quietly(path, flash_attn=True, type_k="q8_0")
    assert caught.value.invalid


def test_an_unknown_device_is_an_error_of_the_load() -> None:
    with pytest.raises(ModelLoadError, match="no device named 'CUDA7'"):
        load_quietly(SMOLLM2, Offload(31, ("CUDA7",)))


@pytest.mark.parametrize(
    "keys",
    [
        {"n_ubatch": 1, "n_batch": 1},
        {"flash_attn": True, "type_k": "q8_0", "type_v": "q8_0"},
        {"use_mmap": False},
        {"split_mode": "none"},
    ],
    ids=str,
)
def test_unusual_settings_load_and_decode(keys: dict[str, Any]) -> None:
    loaded = load(settings_for(n_ctx=256, **keys))
    assert plain_greedy(loaded, (5,), 3)
    loaded.close()


@pytest.mark.parametrize("offload", [Offload(n_cpu_moe=2), Offload(31, tensor_split=(31.0,))], ids=str)
def test_unusual_placements_load_and_decode_on_a_machine_without_a_gpu(offload: Offload) -> None:
    loaded = load_quietly(SMOLLM2, offload, n_ctx=256)
    assert plain_greedy(loaded, (5,), 3)
    loaded.close()


def test_closing_twice_is_harmless(tmp_path: Path) -> None:
    loaded = load(tiny_settings(tmp_path, n_ctx=256))
    loaded.close()
    loaded.close()


def test_the_cause_is_found_in_what_llama_cpp_logs() -> None:
    lines = [
        "llama_model_load: error loading model: bad magic",
        "llama_model_load_from_file_impl: failed to load model",
    ]
    assert reason(lines) == "bad magic"
    assert reason(["f: tensor 'x' has offset 3", "g: failed"]) == "tensor 'x' has offset 3"
    assert reason([]) == "it gave no reason"
    assert is_memory_trouble(["ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory"])
    assert not is_memory_trouble(lines)
