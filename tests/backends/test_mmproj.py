"""Projectors as files: verdicts, and their share of the memory against what libmtmd itself reports."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import llama_cpp.mtmd_cpp as mtmd
import pytest
from support.engine_driver import settings_for
from support.gguf_files import write_wrong_magic
from support.mmproj_files import (
    Encoder,
    write_gemma3,
    write_llava,
    write_qwen2vl,
    write_ultravox,
)
from support.seeing import write_text_model
from test_worker_process import launched

from backends.base import InvalidModelError
from backends.control import Failed, FailureKind
from backends.gguf import read_header
from backends.llama_cpp.backend import LlamaCppBackend
from backends.llama_cpp.engine import logs
from backends.mmproj import DECODE_BYTES_PER_PIXEL, KEPT_BYTES, MAX_IMAGE_PIXELS, read_projector

BACKEND = LlamaCppBackend()
MIB = 2**20
ENCODERS = [
    Encoder(336, 256, 1024, 4),
    Encoder(336, 1024, 4096, 16),
    Encoder(448, 512, 512, 8),
    Encoder(672, 384, 1536, 6),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("mmproj") / "base.gguf")


def libmtmds_own(path: Path, capfd: pytest.CaptureFixture[str]) -> tuple[float, float]:
    """MiB of weights and of the compute buffer, as libmtmd logs them with two digits."""
    mtmd.mtmd_helper_log_set(logs.callback, None)
    params = mtmd.mtmd_context_params_default()
    params.use_gpu, params.n_threads = False, 1
    capfd.readouterr()
    ctx = mtmd.mtmd_init_from_file(bytes(path), None, params)
    assert ctx
    mtmd.mtmd_free(ctx)
    log = capfd.readouterr().err
    weights = re.findall(r"model size: +([\d.]+) MiB", log)
    compute = re.findall(r"compute buffer size = +([\d.]+) MiB", log)
    return float(weights[-1]), sum(map(float, compute))


@pytest.mark.parametrize("write", [write_llava, write_gemma3, write_ultravox])
@pytest.mark.parametrize("encoder", ENCODERS, ids=range(len(ENCODERS)))
def test_weights_and_buffer_are_those_that_libmtmd_reports(
    tmp_path: Path, write: Callable[..., Path], encoder: Encoder, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "mmproj.gguf", encoder=encoder)
    weights, compute = libmtmds_own(path, capfd)
    ours = read_projector(read_header(path), image_max_tokens=None)
    assert ours.weights_bytes / MIB == pytest.approx(weights, abs=0.0051)
    assert 0.98 * compute <= ours.compute_bytes / MIB <= 1.1 * compute


@pytest.mark.parametrize("encoder", [ENCODERS[1], ENCODERS[2], Encoder(336, 1280, 5120, 16)], ids=range(3))
def test_the_buffer_of_an_image_in_its_own_size_is_that_of_as_many_tokens(
    tmp_path: Path, encoder: Encoder, capfd: pytest.CaptureFixture[str]
) -> None:
    """libmtmd reports it for 46 x 46 tokens only; what is counted is the largest image that the settings allow."""
    path = write_qwen2vl(tmp_path / "mmproj.gguf", encoder=encoder)
    _, compute = libmtmds_own(path, capfd)
    header = read_header(path)
    ours = read_projector(header, image_max_tokens=46 * 46).compute_bytes / MIB
    assert 0.96 * compute <= ours <= 1.25 * compute
    assert read_projector(header, image_max_tokens=None).compute_bytes / MIB == pytest.approx(
        ours * 4096 / 46**2, rel=0.01
    )


def inspected(base: Path, projector: Path | None, **keys: Any) -> Any:
    return BACKEND.inspect(settings_for(path=base, mmproj=projector, **{"n_ctx": 512, **keys}))


def test_a_projector_is_counted_with_the_output_layer_or_in_ram(tmp_path: Path, base: Path) -> None:
    path = write_llava(tmp_path / "mmproj.gguf")
    own = read_projector(read_header(path), image_max_tokens=None)
    plain = inspected(base, None).footprint
    beside = inspected(base, path).footprint
    in_ram = inspected(base, path, mmproj_offload=False).footprint
    took = own.weights_bytes + own.compute_bytes
    assert beside.layer_weights_bytes == (*plain.layer_weights_bytes[:-1], plain.layer_weights_bytes[-1] + took)
    assert beside.host_weights_bytes == plain.host_weights_bytes
    assert in_ram.layer_weights_bytes == plain.layer_weights_bytes
    assert in_ram.host_weights_bytes == plain.host_weights_bytes + took
    media = MAX_IMAGE_PIXELS * DECODE_BYTES_PER_PIXEL + KEPT_BYTES + 512 * 64 * 4
    assert beside.process_bytes == in_ram.process_bytes == plain.process_bytes + media
    assert beside.total_bytes == in_ram.total_bytes


def test_a_model_tells_what_it_takes_beside_text(tmp_path: Path, base: Path) -> None:
    able = [
        inspected(base, projector).capabilities
        for projector in (None, write_llava(tmp_path / "v.gguf"), write_ultravox(tmp_path / "a.gguf"))
    ]
    assert [(one.vision, one.audio) for one in able] == [(False, False), (True, False), (False, True)]


def test_the_files_of_a_model_are_its_projector_too(tmp_path: Path, base: Path) -> None:
    path = tmp_path / "absent.gguf"
    assert BACKEND.files(settings_for(path=base, mmproj=path)) == (base, path)


def clip_file(path: Path, **metadata: Any) -> Path:
    writer = gguf.GGUFWriter(path, "clip")
    for key, value in metadata.items():
        name = "clip." + key.replace("__", ".")
        (writer.add_bool if isinstance(value, bool) else writer.add_uint32)(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


WRONG: list[tuple[Callable[[Path], Path], str]] = [
    (lambda path: path, "no such file"),
    (lambda path: write_text_model(path), "is not a multimodal projector but llama"),
    (lambda path: write_wrong_magic(path, write_llava(path)), "not a GGUF file"),
    (lambda path: clip_file(path), "has neither a vision nor an audio encoder"),
    (lambda path: clip_file(path, has_vision_encoder=True), "does not say what projector it is"),
    (
        lambda path: write_ultravox(path, stack=8),
        "stacks 8 frames of sound into a token.*expects 187 tokens and makes 188",
    ),
]


@pytest.mark.parametrize(("write", "says"), WRONG, ids=range(len(WRONG)))
def test_a_projector_that_cannot_be_used_is_refused_with_the_reason_before_any_process(
    tmp_path: Path, base: Path, write: Callable[[Path], Path], says: str
) -> None:
    path = tmp_path / "bad.gguf"
    write(path)
    with pytest.raises(InvalidModelError, match=says) as refusal:
        inspected(base, path)
    assert str(path) in str(refusal.value)


def test_a_projector_named_as_the_model_says_where_it_belongs(tmp_path: Path) -> None:
    path = write_llava(tmp_path / "mmproj.gguf")
    with pytest.raises(InvalidModelError, match=r"is the projector of a multimodal model.*this one under mmproj"):
        inspected(path, None)


def test_an_embeddings_model_takes_no_projector(tmp_path: Path, base: Path) -> None:
    path = write_llava(tmp_path / "mmproj.gguf")
    with pytest.raises(InvalidModelError, match=r"is served for embeddings.*leave out mmproj"):
        inspected(base, path, embeddings=True)


async def test_a_worker_reports_a_projector_that_is_for_another_model(tmp_path: Path, base: Path) -> None:
    """Its header does not say for which model it is, so this is found out by loading it."""
    path = write_llava(tmp_path / "mmproj.gguf", 128)
    async with asyncio.timeout(60), launched(tmp_path, base, mmproj=str(path)) as worker:
        failed = (await worker.until(Failed))[-1]
    assert isinstance(failed, Failed)
    assert failed.kind is FailureKind.INVALID_MODEL
    assert "mismatch between text model (n_embd = 64) and mmproj (n_embd = 128)" in failed.message


def test_the_least_tokens_of_an_image_are_not_more_than_the_most(base: Path) -> None:
    with pytest.raises(ValueError, match="image_min_tokens is 300; it must not exceed image_max_tokens"):
        settings_for(path=base, image_min_tokens=300, image_max_tokens=200)
    assert settings_for(path=base, image_min_tokens=200, image_max_tokens=200).image_max_tokens == 200
