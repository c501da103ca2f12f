"""From parts to a prompt: the order of the work, what is kept, what is refused before anything is encoded."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from support.mmproj_files import Encoder, png, png_of, wav, write_gemma3, write_llava, write_ultravox
from support.seeing import AFTER, BEFORE, Seeing, heard, image, seeing, seeing_settings

from backends.llama_cpp.errors import CONTEXT_EXCEEDED, RequestError
from backends.llama_cpp.media.images import ImageSize
from backends.llama_cpp.media.parts import Abilities, Medium
from backends.llama_cpp.media.reader import Kept, StoppedError

KEPT_BYTES = 4 * 64 * 64 * 4
"""Four images: each is 64 tokens of 64 floats."""


@pytest.fixture(scope="module")
def eyes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seeing]:
    directory = tmp_path_factory.mktemp("llava")
    with seeing(seeing_settings(directory, write_llava, n_ctx=512), kept_bytes=KEPT_BYTES) as found:
        yield found


def encoded(eyes: Seeing, *seeds: int) -> int:
    """How many images had to be encoded for a prompt with these."""
    before = eyes.reader.encoded
    eyes.prompt(*(image(png(seed=seed)) for seed in seeds))
    return eyes.reader.encoded - before


def test_a_prompt_has_the_tokens_of_its_texts_and_one_run_per_medium(eyes: Seeing) -> None:
    prompt = eyes.prompt(image(png(seed=0)), " or ", image(png(seed=1)))
    texts = [
        eyes.model.tokenize(text, add_special=not index, parse_special=True)
        for index, text in enumerate((BEFORE, " or ", AFTER))
    ]
    starts = [len(texts[0]), len(texts[0]) + 64 + len(texts[1])]
    assert [span.start for span in prompt.spans] == starts
    assert [span.n_tokens for span in prompt.spans] == [64, 64]
    assert [token for token in prompt.tokens if token >= 0] == [token for text in texts for token in text]
    assert not set(prompt.tokens[starts[0] : starts[0] + 64]) & set(prompt.tokens[starts[1] : starts[1] + 64])


def test_the_same_image_is_encoded_once_in_a_prompt_and_not_again_while_it_is_kept(eyes: Seeing) -> None:
    assert encoded(eyes, 10, 11, 10) == 2
    assert encoded(eyes, 11, 10) == 0


def test_the_embeddings_that_were_not_used_for_longest_make_way(eyes: Seeing) -> None:
    assert encoded(eyes, 20, 21, 22, 23) == 4
    assert encoded(eyes, 20) == 0
    assert encoded(eyes, 24) == 1
    assert encoded(eyes, 20, 22, 23, 24) == 0
    assert encoded(eyes, 21) == 1


def test_a_prompt_with_more_than_can_be_kept_is_read_all_the_same(eyes: Seeing) -> None:
    assert encoded(eyes, 30, 31, 32, 33, 34) == 5


def test_what_is_larger_than_all_that_may_be_kept_is_not_kept() -> None:
    kept = Kept(100)
    kept.put(b"large", np.zeros(26, np.float32))
    kept.put(b"small", np.zeros(25, np.float32))
    assert kept.get(b"large") is None
    assert kept.get(b"small") is not None
    assert kept.held_bytes == 100


def test_a_prompt_over_the_context_is_refused_with_both_numbers_before_anything_is_encoded(eyes: Seeing) -> None:
    before = eyes.reader.encoded
    with pytest.raises(RequestError) as refusal:
        eyes.prompt(*(image(png(seed=seed)) for seed in range(40, 48)))
    assert refusal.value.kind == CONTEXT_EXCEEDED
    assert refusal.value.param == "messages"
    assert refusal.value.details["n_ctx"] == 512
    assert refusal.value.details["n_prompt_tokens"] > 8 * 64
    assert eyes.reader.encoded == before


def test_counting_tokens_encodes_nothing(eyes: Seeing) -> None:
    before = eyes.reader.encoded
    parts = [BEFORE, image(png(seed=50)), AFTER]
    total = eyes.reader.count(parts, add_special=True)
    assert eyes.reader.encoded == before
    assert total == len(eyes.reader.read(parts, add_special=True, stop=bool).tokens)


def test_an_image_that_cannot_be_decoded_is_named(eyes: Seeing) -> None:
    """Its header is sound, and it unpacks to the right size, but its filters do not exist."""
    rows = b"".join(b"\x09" + bytes(3 * 8) for _ in range(8))
    damaged = png_of(struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0), zlib.compress(rows))
    with pytest.raises(RequestError, match="is damaged: it cannot be decoded") as refusal:
        eyes.prompt(image(png()), image(damaged, "messages[3].content[1].image_url.url"))
    assert refusal.value.param == "messages[3].content[1].image_url.url"
    assert refusal.value.status == 400


def test_an_image_of_another_size_than_its_header_was_read_to_say_is_named(eyes: Seeing) -> None:
    liar = Medium("messages[0]", png(40, 40, seed=60), b"digest", ImageSize(10, 10))
    with pytest.raises(RequestError, match="is not of the size that its header says"):
        eyes.prompt(liar)


def test_a_request_that_nobody_waits_for_is_given_up_between_two_images(eyes: Seeing) -> None:
    asked = count()
    before = eyes.reader.encoded
    with pytest.raises(StoppedError):
        eyes.reader.read(
            [BEFORE, image(png(seed=70)), image(png(seed=71)), AFTER],
            add_special=True,
            stop=lambda: eyes.reader.encoded > before or next(asked) > 100,
        )
    assert eyes.reader.encoded == before + 1


def test_a_prompt_that_ends_in_an_image_is_refused(eyes: Seeing) -> None:
    with pytest.raises(RequestError, match="writes nothing after the last image"):
        eyes.reader.read([BEFORE, image(png())], add_special=True, stop=bool)


def test_an_image_that_must_be_read_at_once_must_fit_a_micro_batch(tmp_path: Path) -> None:
    write = lambda path: write_gemma3(path, encoder=Encoder(image_size=336))  # noqa: E731
    settings = seeing_settings(tmp_path, write, n_ctx=512, n_ubatch=128)
    with seeing(settings) as eyes, pytest.raises(RequestError, match=r"becomes 144 tokens.*n_ubatch is 128") as refusal:
        eyes.prompt(image(png(), "messages[0]"))
    assert refusal.value.param == "messages[0]"
    assert refusal.value.status == 400


def test_a_model_that_only_hears_refuses_no_sound_and_tells_what_it_takes(tmp_path: Path) -> None:
    with seeing(seeing_settings(tmp_path, write_ultravox, n_ctx=512)) as ears:
        assert ears.reader.able == Abilities(sees=False, hears=True)
        prompt = ears.prompt(heard(wav(0.1)))
        assert [span.n_tokens for span in prompt.spans] == [75]
        # A sound of more than thirty seconds is encoded in several parts that follow each other.
        prompt = ears.prompt(heard(wav(31, rate=4000)))
        assert [span.n_tokens for span in prompt.spans] == [75, 75]
        assert prompt.spans[1].start == prompt.spans[0].end


def test_a_stereo_wav_of_another_rate_is_heard_like_the_same_tone_in_mono(tmp_path: Path) -> None:
    with seeing(seeing_settings(tmp_path, write_ultravox, n_ctx=512)) as ears:
        mono, stereo, other = (
            ears.prompt(heard(data)).spans[0].embeddings
            for data in (wav(1), wav(1, rate=48_000, channels=2), wav(1, hertz=2000))
        )
    assert np.abs(mono - stereo).mean() < 0.5 * np.abs(mono - other).mean()
