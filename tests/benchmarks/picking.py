"""How long the choice of tokens takes, for several sequences one after the other and by two threads.

    python tests/benchmarks/picking.py [--seconds 20] [--sequences 1,4,8,16]

Made-up logits: noise, and thirty tokens that stand out. Printed are the shortest times of alternating runs, in
microseconds. On a machine that is not idle a real-time priority (`chrt -f 5`) keeps both cores for this one.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from backends.llama_cpp.engine.candidates import Candidates
from backends.llama_cpp.engine.crew import Crew
from backends.llama_cpp.engine.sampler import Sampler, make_sampler
from backends.llama_cpp.engine.types import Sampling

SETTINGS = {
    "default": Sampling(),
    "with penalties": Sampling(repeat_penalty=1.1),
    "temperature only": Sampling(top_k=0, top_p=1.0, min_p=0.0),
    "top_p without top_k": Sampling(top_k=0),
    "mirostat 2": Sampling(mirostat=2),
}
PAUSE_S = 0.01
"""Between two cases, so that what else runs gets on."""

Task = tuple[Sampler, npt.NDArray[np.float32]]


@dataclass
class Case:
    n_vocab: int
    name: str
    tasks: list[Task]
    alone_s: list[float] = field(default_factory=list)
    together_s: list[float] = field(default_factory=list)


def pick(task: Task) -> int:
    sampler, row = task
    return sampler.pick(row)


def cases(counts: list[int]) -> list[Case]:
    made = []
    for n_vocab in (49_152, 151_936):
        candidates = Candidates(n_vocab)
        noise = np.random.default_rng(0)
        rows = (noise.standard_normal((max(counts), n_vocab)) * 2).astype(np.float32)
        for row in rows:
            row[noise.integers(0, n_vocab, 30)] += 6 + 8 * noise.random(30).astype(np.float32)
        for name, sampling in SETTINGS.items():
            for count in counts:
                tasks = [(sampler(sampling, seed, candidates), rows[seed]) for seed in range(count)]
                made.append(Case(n_vocab, name, tasks))
    return made


def sampler(sampling: Sampling, seed: int, candidates: Candidates) -> Sampler:
    prompt = tuple(range(100, 164))
    n_vocab = candidates.n_vocab
    return make_sampler(
        sampling,
        prompt,
        seed,
        eog_tokens=(),
        suppressed=(),
        piece=lambda _: b"",
        candidates=candidates,
        n_vocab=n_vocab,
        n_ctx=4096,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--sequences", default="1,4,8,16")
    asked = parser.parse_args()
    crew: Crew[Task, int] = Crew(2, pick)
    all_cases = cases([int(count) for count in asked.sequences.split(",")])
    end_s = time.monotonic() + asked.seconds
    while time.monotonic() < end_s:
        for case in all_cases:
            time.sleep(PAUSE_S)
            # Not timed: whoever came first would find the caches cold.
            crew.do(case.tasks, [False] * len(case.tasks))
            for times_s, threads in ((case.alone_s, False), (case.together_s, True)):
                begun_s = time.perf_counter()
                crew.do(case.tasks, [threads] * len(case.tasks))
                times_s.append(time.perf_counter() - begun_s)
    print("vocabulary  settings             sequences  one thread  two threads (µs)")
    for case in all_cases:
        alone_us, together_us = min(case.alone_s) * 1e6, min(case.together_s) * 1e6
        print(f"{case.n_vocab:10}  {case.name:19}  {len(case.tasks):9}  {alone_us:10.0f}  {together_us:11.0f}")


if __name__ == "__main__":
    main()
