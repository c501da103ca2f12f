"""Images and sound in the engine, on tiny random models and projectors that llama.cpp and libmtmd really run."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as llama
import llama_cpp.mtmd_cpp as mtmd
import numpy as np
import pytest
from support.engine_driver import ENDLESS, MAX_STEPS, Driver, text_of
from support.mmproj_files import png, wav, write_gemma3, write_llava, write_qwen2vl, write_qwen3vl, write_ultravox
from support.seeing import AFTER, BEFORE, Seeing, heard, image, seeing, seeing_settings

from backends.llama_cpp.engine.batch import Batch
from backends.llama_cpp.engine.media import Layout
from backends.llama_cpp.engine.model import Model
from backends.llama_cpp.engine.types import Generate, Prefilled, Sampling
from backends.llama_cpp.media.parts import Medium
from backends.llama_cpp.media.reader import Prompt

Write = Callable[[Path], Path]

KINDS: dict[str, tuple[Write, str]] = {
    "llava": (write_llava, "llama"),
    "gemma3": (write_gemma3, "llama"),
    "qwen2vl": (write_qwen2vl, "qwen2vl"),
    "qwen3vl": (write_qwen3vl, "qwen3vl"),
    "ultravox": (partial(write_ultravox, seed=1), "llama"),
}
"""A projector and the architecture of the model beside it."""
MROPE = ("qwen2vl", "qwen3vl")


def medium(kind: str, seed: int) -> Medium:
    """One that the kind of projector takes. The image is so wide that M-RoPE saves it most of its positions."""
    return heard(wav(hertz=200 + 300 * seed)) if kind == "ultravox" else image(png(200, 100, seed=seed))


@pytest.fixture(params=list(KINDS), scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def eyes(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seeing]:
    write, architecture = KINDS[kind]
    directory = tmp_path_factory.mktemp(kind)
    with seeing(
        seeing_settings(directory, write, architecture=architecture, n_parallel=3, n_ctx=512, n_ubatch=128)
    ) as found:
        yield found


def generate(prompt: Prompt, request_id: str = "r", count: int = 12, **fields: Any) -> Generate:
    return Generate(request_id, prompt.tokens, ENDLESS, max_tokens=count, media=prompt.spans, **fields)


class MediaDriver(Driver):
    """With M-RoPE the last position is not the number of cells less one; all else in the books stays checked."""

    def check(self) -> None:
        layouts = [sequence.job.layout for sequence in self.generator._roster.running]
        if not any(layout.position(10**6) != 10**6 for layout in layouts) and not len(self.generator._cache.retired):
            super().check()


def llama_cpps_own(eyes: Seeing, shown: Medium, count: int) -> str:
    """The greedy answer when libmtmd itself tokenizes, encodes and decodes the prompt."""
    model, ctx = eyes.model, eyes.projector._ctx
    bitmap = eyes.projector.decoded(shown.data)
    assert bitmap is not None
    text = (BEFORE + "<__media__>" + AFTER).encode()
    chunks, position = mtmd.mtmd_input_chunks_init(), ctypes.c_int32(0)
    prompt = mtmd.mtmd_input_text(text, len(text), True, True)
    assert mtmd.mtmd_tokenize(ctx, chunks, ctypes.byref(prompt), (ctypes.c_void_p * 1)(bitmap.pointer), 1) == 0
    model.clear()
    assert mtmd.mtmd_helper_eval_chunks(ctx, model.ctx, chunks, 0, 0, 128, True, ctypes.byref(position)) == 0
    mtmd.mtmd_input_chunks_free(chunks)
    bitmap.close()
    logits = np.ctypeslib.as_array(llama.llama_get_logits(model.ctx), shape=(model.n_vocab,))
    tokens = [best(model, logits)]
    batch = Batch(1)
    while len(tokens) < count:
        batch.clear()
        batch.add_single([tokens[-1]], [position.value + len(tokens) - 1], [0])
        assert model.decode(batch) == 0
        tokens.append(best(model, model.logits(0)))
    model.clear()
    return text_of(model, tokens)


def best(model: Model, logits: np.ndarray[Any, Any]) -> int:
    """The likeliest token that ends nothing, as `ENDLESS` asks."""
    masked = logits.copy()
    masked[list(model.eog_tokens)] = -np.inf
    return int(np.argmax(masked))


def test_a_medium_is_decoded_as_llama_cpps_own_helper_decodes_it(eyes: Seeing, kind: str) -> None:
    shown = medium(kind, 1)
    reference = llama_cpps_own(eyes, shown, 12)
    assert MediaDriver(eyes.model, 3).one(generate(eyes.prompt(shown))).text == reference


def test_another_medium_brings_another_answer(eyes: Seeing, kind: str) -> None:
    driver = MediaDriver(eyes.model, 3)
    texts = {driver.one(generate(eyes.prompt(medium(kind, seed)), f"r{seed}")).text for seed in range(4)}
    assert len(texts) > 1


def test_the_same_medium_twice_brings_the_same_answer_from_the_cache(eyes: Seeing, kind: str) -> None:
    driver = MediaDriver(eyes.model, 3)
    prompt = eyes.prompt(medium(kind, 0))
    first = driver.one(generate(prompt, "first"))
    second = driver.one(generate(eyes.prompt(medium(kind, 0)), "second"))
    assert first.text == second.text
    assert first.prefilled == Prefilled("first", len(prompt.tokens), 0)
    assert second.prefilled == Prefilled("second", len(prompt.tokens), len(prompt.tokens) - 1)


def test_the_next_turn_of_a_conversation_neither_encodes_nor_decodes_its_media_again(eyes: Seeing, kind: str) -> None:
    driver = MediaDriver(eyes.model, 3)
    shown = medium(kind, 5)
    turn = [BEFORE, shown, AFTER]
    first = eyes.reader.read(turn, add_special=True, stop=bool)
    answer = driver.one(generate(first, "first")).text
    encoded = eyes.reader.encoded
    turn += [f"{answer}<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n"]
    second = eyes.reader.read(turn, add_special=True, stop=bool)
    assert eyes.reader.encoded == encoded
    prefilled = driver.one(generate(second, "second")).prefilled
    assert prefilled is not None
    assert prefilled.cached_tokens >= len(first.tokens)
    # And what was taken over is worth as much as what is computed anew.
    alone = MediaDriver(eyes.model, 3).one(generate(second, "alone"))
    assert alone.prefilled is not None
    assert alone.prefilled.cached_tokens == 0
    assert alone.text == driver.answers["second"].text


def test_another_question_about_the_same_medium_begins_with_its_copy_in_host_memory(eyes: Seeing, kind: str) -> None:
    """With one slot for what has ended, what ends next sends it out of the context."""
    driver = MediaDriver(eyes.model, eyes.model.n_seq_max - 1)
    shown = medium(kind, 2)
    driver.one(generate(eyes.prompt(shown), "first"))
    driver.one(Generate("filler", tuple(range(100, 140)), ENDLESS, max_tokens=2))
    (saved,) = driver.generator._cache.host
    assert saved.tokens[0] != 100
    other = eyes.reader.read([BEFORE, shown, "\n" + AFTER], add_special=True, stop=bool)
    answer = driver.one(generate(other, "second"))
    assert answer.prefilled is not None
    assert answer.prefilled.cached_tokens >= other.spans[-1].end
    assert answer.text == MediaDriver(eyes.model, 3).one(generate(other, "alone")).text


def test_a_prefix_that_ends_in_a_medium_is_shared_up_to_its_beginning(eyes: Seeing, kind: str) -> None:
    """Two prompts that differ in the middle of a medium's tokens do not exist; a cancelled prefill does."""
    driver = MediaDriver(eyes.model, 3)
    prompt = eyes.prompt("a" * 50, medium(kind, 0))
    start, causal = prompt.spans[0].start, prompt.spans[0].causal
    driver.add(generate(prompt, "gone"))
    driver.generator._prompt_rate = 100.0
    while not (cached := driver.generator._roster.running and driver.generator._roster.running[0].cached) or (
        cached < start + 1
    ):
        driver.step()
    driver.cancel("gone")
    answer = driver.one(generate(prompt, "r"))
    assert answer.prefilled is not None
    whole = len(prompt.tokens) - 1 if cached >= prompt.spans[0].end else start
    assert answer.prefilled.cached_tokens == min(cached, whole)
    assert not causal or start < cached
    assert answer.text == MediaDriver(eyes.model, 3).one(generate(prompt, "alone")).text


def test_clients_with_different_media_at_once_get_the_answers_they_get_alone(eyes: Seeing, kind: str) -> None:
    prompts = {f"r{seed}": eyes.prompt("so " * seed, medium(kind, seed)) for seed in range(3)}
    alone = {name: MediaDriver(eyes.model, 3).one(generate(prompt, name)).text for name, prompt in prompts.items()}
    driver = MediaDriver(eyes.model, 3)
    answers = driver.run(*(generate(prompt, name) for name, prompt in prompts.items()))
    assert {name: answers[name].text for name in prompts} == alone


def test_several_choices_share_one_decoding_of_a_medium(eyes: Seeing, kind: str) -> None:
    prompt = eyes.prompt(medium(kind, 1))
    driver = MediaDriver(eyes.model, 3)
    answer = driver.one(generate(prompt, n=2))
    assert answer.texts[0] == answer.texts[1]
    # One token of each choice is decoded, and each choice's own last token of the prompt.
    cells = {id(run): run.length for kept in driver.generator._cache.retired for run in kept.place.holding.runs}
    assert sum(cells.values()) < 2 * len(prompt.tokens)


def test_a_preempted_sequence_goes_on_as_if_nothing_had_been(eyes: Seeing, kind: str) -> None:
    """Three prompts with media fill a cache of 512 cells; the newest must leave and come back."""
    prompts = [eyes.prompt("so " * 30, medium(kind, seed)) for seed in range(3)]
    count = (512 - len(prompts[0].tokens)) // 2
    alone = [MediaDriver(eyes.model, 3).one(generate(prompt, "r", count)).text for prompt in prompts]
    for host_bytes in (64 * 2**20, 0):
        driver = MediaDriver(eyes.model, 3, cache_ram_bytes=host_bytes)
        answers = driver.run(*(generate(prompt, f"r{at}", count) for at, prompt in enumerate(prompts)))
        assert driver.generator.preemptions > 0
        assert [answers[f"r{at}"].text for at in range(3)] == alone


def test_a_cancelled_request_leaves_no_cell_and_others_undisturbed(eyes: Seeing, kind: str) -> None:
    driver = MediaDriver(eyes.model, 3)
    first, second = eyes.prompt(medium(kind, 1)), eyes.prompt("so ", medium(kind, 2))
    alone = MediaDriver(eyes.model, 3).one(generate(second, "second")).text
    driver.add(generate(first, "first", cache_prompt=False), generate(second, "second"))
    driver.step()
    driver.cancel("first")
    for _ in range(MAX_STEPS):
        if not driver.generator.busy:
            break
        driver.step()
    assert driver.answers["second"].text == alone
    assert len(list(driver.generator._cache.retired)) == 1


def test_a_stream_gets_a_token_with_every_piece_of_a_medium(eyes: Seeing, kind: str) -> None:
    driver = MediaDriver(eyes.model, 3)
    tokens = tuple(eyes.model.tokenize(BEFORE, add_special=True, parse_special=True))
    driver.add(Generate("stream", tokens, ENDLESS, max_tokens=40))
    driver.step()
    stream = driver.generator._roster.running[0]
    # So slow that prompts are cut into the smallest pieces.
    driver.generator._prompt_rate = 100.0
    prompt = eyes.prompt(medium(kind, 3))
    driver.add(generate(prompt, "seen"))
    steps = 0
    while driver.answers.get("seen") is None:
        before = len(stream.tokens)
        driver.step()
        steps += 1
        assert len(stream.tokens) == before + 1
    assert steps >= 3 + prompt.spans[0].causal


def test_penalties_look_at_text_only(eyes: Seeing, kind: str) -> None:
    penalized = Sampling(temperature=0.0, ignore_eos=True, repeat_penalty=1.5, presence_penalty=0.5)
    prompt = eyes.prompt(medium(kind, 1))
    request = Generate("r", prompt.tokens, penalized, max_tokens=12, media=prompt.spans)
    answer = MediaDriver(eyes.model, 3).one(request)
    assert answer.ended is not None
    assert answer.ended.error is None
    assert answer.text


def test_a_prompt_that_ends_in_a_medium_is_refused(eyes: Seeing, kind: str) -> None:
    prompt = eyes.prompt(medium(kind, 1))
    span = prompt.spans[0]
    request = Generate("r", prompt.tokens[: span.end], ENDLESS, media=(span,))
    answer = MediaDriver(eyes.model, 3).one(request)
    assert answer.ended is not None
    assert "ends in a medium" in str(answer.ended.error)


def test_m_rope_takes_fewer_positions_than_tokens_and_the_text_goes_on_behind_them(eyes: Seeing, kind: str) -> None:
    prompt = eyes.prompt(medium(kind, 1))
    span, layout = prompt.spans[0], Layout(prompt.spans)
    rows = 4 if kind in MROPE else 1
    assert span.positions.shape == (rows, span.n_tokens)
    assert (span.n_pos < span.n_tokens) == (kind in MROPE)
    assert layout.position(span.end) == span.start + span.n_pos
    driver = MediaDriver(eyes.model, 3)
    driver.add(generate(prompt, count=5))
    while driver.answers.get("r") is None:
        driver.step()
    (sequence,) = driver.generator._roster.running
    assert sequence.place is not None
    last = llama.llama_memory_seq_pos_max(eyes.model._memory, sequence.place.seq_id)
    assert last == layout.position(sequence.cached) - 1
