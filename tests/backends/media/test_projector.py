"""The face over libmtmd: what does not load says why, and an encoding can be watched and stopped."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import numpy as np
import pytest
from support.engine_driver import load
from support.mmproj_files import Encoder, png, write_llava, write_qwen2vl
from support.seeing import AFTER, BEFORE, seeing, seeing_settings, write_text_model

from backends.base import Offload
from backends.llama_cpp.engine.model import ModelLoadError
from backends.llama_cpp.engine.mtmd import MediaChunk, Projector, StoppedError, TextChunk


def refused(directory: Path, projector: Path) -> ModelLoadError:
    settings = seeing_settings(directory, lambda _: projector)
    model = load(settings)
    try:
        with pytest.raises(ModelLoadError) as refusal:
            Projector.load(model, settings, Offload())
        return refusal.value
    finally:
        model.close()


def test_without_a_projector_in_the_settings_there_is_none(tmp_path: Path) -> None:
    settings = seeing_settings(tmp_path, lambda _: None)  # type: ignore[arg-type,return-value]
    model = load(settings)
    assert Projector.load(model, settings, Offload()) is None
    model.close()


def test_a_projector_that_is_missing_or_made_for_another_model_is_refused_with_the_reason(tmp_path: Path) -> None:
    missing = refused(tmp_path, tmp_path / "absent.gguf")
    assert missing.invalid
    assert "absent.gguf: no such file" in str(missing)
    wide = refused(tmp_path, write_llava(tmp_path / "wide.gguf", 128))
    assert wide.invalid
    assert "mismatch between text model (n_embd = 64) and mmproj (n_embd = 128)" in str(wide)
    model = refused(tmp_path, write_text_model(tmp_path / "model.gguf"))
    assert model.invalid


def test_an_images_chunks_have_the_projectors_marks_around_them(tmp_path: Path) -> None:
    with seeing(seeing_settings(tmp_path, write_qwen2vl)) as eyes:
        bitmap = eyes.projector.sized(200, 100)
        with eyes.projector.chunks([BEFORE, bitmap, AFTER], add_special=True) as chunks:
            before, seen, after = chunks
        bitmap.close()
        assert isinstance(before, TextChunk)
        assert isinstance(after, TextChunk)
        assert isinstance(seen, MediaChunk)
        assert (seen.medium, seen.n_tokens, seen.causal) == (0, 28, True)
        text = "".join(eyes.model.token_text(token) for token in before.tokens)
        assert text.endswith("Look: <|vision_start|>")


def test_a_text_with_a_marker_or_a_null_byte_stays_text(tmp_path: Path) -> None:
    with seeing(seeing_settings(tmp_path, write_llava)) as eyes:
        with eyes.projector.chunks(["a<__media__>b\0c"], add_special=False) as chunks:
            (chunk,) = chunks
        assert isinstance(chunk, TextChunk)
        assert b"".join(eyes.model.token_bytes(token) for token in chunk.tokens) == b"a<__media__>b\0c"


def test_an_encoding_tells_of_its_progress_and_stops_when_it_is_told_to(tmp_path: Path) -> None:
    write = lambda path: write_llava(path, encoder=Encoder(image_size=224))  # noqa: E731
    with seeing(seeing_settings(tmp_path, write)) as eyes:
        bitmap = eyes.projector.decoded(png())
        assert bitmap is not None
        with eyes.projector.chunks([bitmap], add_special=False) as chunks:
            (chunk,) = (chunk for chunk in chunks if isinstance(chunk, MediaChunk))
            whole = eyes.projector.encode(chunk, bool)
            steps = eyes.projector.steps
            assert steps > 1
            asked = count()
            with pytest.raises(StoppedError):
                eyes.projector.encode(chunk, lambda: next(asked) >= 0)
            assert eyes.projector.steps - steps < steps
            # And the next one is as good as the first.
            np.testing.assert_array_equal(eyes.projector.encode(chunk, bool), whole)
        bitmap.close()
        bitmap.close()


def test_fewer_tokens_of_an_image_are_a_setting(tmp_path: Path) -> None:
    lengths = []
    for most in (None, 16):
        with seeing(seeing_settings(tmp_path, write_qwen2vl, image_max_tokens=most)) as eyes:
            bitmap = eyes.projector.sized(1000, 1000)
            with eyes.projector.chunks([bitmap], add_special=False) as chunks:
                lengths += [chunk.n_tokens for chunk in chunks if isinstance(chunk, MediaChunk)]
            bitmap.close()
    assert lengths[0] > 1000
    assert lengths[1] <= 16


def test_a_prompt_with_media_never_shows_in_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with seeing(seeing_settings(tmp_path, write_llava)) as eyes:
        capfd.readouterr()
        with eyes.projector.chunks(["a secret of the client's"], add_special=False):
            pass
    assert "secret" not in capfd.readouterr().err
