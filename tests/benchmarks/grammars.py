"""llguidance beside the converter and the sampler that come with llama.cpp, on the same schemas and grammars.

    python tests/benchmarks/grammars.py [--grammars DIRECTORY_OF_GBNF_FILES]

Coverage: a schema counts where every good value of the corpus is allowed and every bad one is not. Times are CPU time
of the one thread at work, medians, on SmolLM2's vocabulary of 49,152; walks draw each token from all that are allowed,
with a fixed seed. Last, what a schema costs a stream.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import llama_cpp.llama_cpp as llama
import numpy as np
from llama_cpp.llama_grammar import json_schema_to_gbnf

sys.path.insert(0, str(Path(__file__).parent.parent))
from support.engine_driver import Driver, chat_tokens, load, settings_for
from support.schema_corpus import CORPUS, closed

from backends.llama_cpp.engine.grammars import GrammarError
from backends.llama_cpp.engine.model import Model
from backends.llama_cpp.engine.types import Constraint, Generate, Sampling
from backends.llama_cpp.structured.gbnf_lark import LARK_ROOT, to_lark
from backends.llama_cpp.structured.schema import enforceable

STEPS = 60
TOKENS = 96


class Matcher(Protocol):
    """One way to follow a grammar."""

    def allows(self, token: int) -> bool: ...

    def allowed(self) -> Any: ...

    def accept(self, token: int) -> None: ...


class Bundled:
    """llama.cpp's grammar sampler."""

    def __init__(self, model: Model, gbnf: str) -> None:
        self._sampler: Any = llama.llama_sampler_init_grammar(model._vocab, gbnf.encode(), b"root")
        if not self._sampler:
            raise GrammarError("llama.cpp makes no grammar of it")
        self._one = (llama.llama_token_data * 1)()
        self._all = (llama.llama_token_data * model.n_vocab)()
        self._view = np.ctypeslib.as_array(self._all)
        self._view["id"] = np.arange(model.n_vocab)

    def allows(self, token: int) -> bool:
        self._one[0].id, self._one[0].logit = token, 0.0
        self._apply(self._one, 1)
        return bool(self._one[0].logit == 0.0)

    def allowed(self) -> Any:
        self._view["logit"] = 0
        self._apply(self._all, len(self._all))
        return self._view["logit"] == 0

    def accept(self, token: int) -> None:
        llama.llama_sampler_accept(self._sampler, token)

    def _apply(self, data: Any, count: int) -> None:
        array = llama.llama_token_data_array(data=data, size=count, selected=-1, sorted=False)
        llama.llama_sampler_apply(self._sampler, ctypes.byref(array))


@dataclass(slots=True)
class Times:
    """Microseconds of CPU time."""

    compile: list[float] = field(default_factory=list)
    check: list[float] = field(default_factory=list)
    mask: list[float] = field(default_factory=list)
    accept: list[float] = field(default_factory=list)

    def line(self) -> str:
        parts = []
        for name in ("compile", "check", "accept", "mask"):
            values = getattr(self, name)
            parts.append(f"{name} {median(values):.0f} (most {max(values):.0f})" if values else f"{name} -")
        return ", ".join(parts)


def timed(into: list[float], work: Callable[[], Any]) -> Any:
    began = time.thread_time_ns()
    result = work()
    into.append((time.thread_time_ns() - began) / 1000)
    return result


def guidance(model: Model, lark: str) -> Matcher:
    model.grammars._compiled.clear()
    return model.grammars.matcher(lark)


def ways_of_schema(model: Model, schema: dict[str, Any]) -> Iterator[tuple[str, Callable[[], Matcher]]]:
    yield "llguidance", lambda: guidance(model, f"start: %json {enforceable(schema, 'schema')}")
    yield "bundled", lambda: Bundled(model, json_schema_to_gbnf(json.dumps(schema)))


def ways_of_gbnf(model: Model, text: str) -> Iterator[tuple[str, Callable[[], Matcher]]]:
    yield "llguidance", lambda: guidance(model, f"start: {LARK_ROOT}\n{to_lark(text, lambda _: None)}")
    yield "bundled", lambda: Bundled(model, text)


def walk(model: Model, make: Callable[[], Matcher], times: Times) -> None:
    """Follow a grammar at random, and time each call."""
    rng = random.Random(1)
    matcher = timed(times.compile, make)
    for _ in range(STEPS):
        mask = timed(times.mask, matcher.allowed)
        candidates = [token for token in np.flatnonzero(mask).tolist() if token not in model.eog_tokens]
        if not candidates:
            return
        token = rng.choice(candidates)
        assert timed(times.check, partial(matcher.allows, token))
        timed(times.accept, partial(matcher.accept, token))


def follows(model: Model, make: Callable[[], Matcher], value: object) -> bool:
    matcher = make()
    for token in model.tokenize(json.dumps(value, ensure_ascii=False), add_special=False, parse_special=False):
        if not matcher.allows(token):
            return False
        matcher.accept(token)
    return bool(getattr(matcher, "complete", False)) or matcher.allows(2)


def schemas(model: Model) -> None:
    times = {"llguidance": Times(), "bundled": Times()}
    covered = dict.fromkeys(times, 0)
    silent = dict.fromkeys(times, 0)
    for case in CORPUS:
        for name, make in ways_of_schema(model, case.schema):
            try:
                make()
            except Exception as error:
                print(f"  {name} refuses {case.name!r}: {type(error).__name__}")
                continue
            good = all(follows(model, make, value) for value in case.good)
            bad = any(follows(model, make, value) for value in case.bad)
            covered[name] += good and not bad
            silent[name] += bad
            walk(model, make, times[name])
    for name, found in times.items():
        print(
            f"schemas, {name}: {covered[name]} of {len(CORPUS)}, {silent[name]} let bad values pass; us: {found.line()}"
        )


def grammars(model: Model, directory: Path) -> None:
    for path in sorted(directory.glob("*.gbnf")):
        for name, make in ways_of_gbnf(model, path.read_text()):
            times = Times()
            walk(model, make, times)
            print(f"{path.name}, {name}; us: {times.line()}")


def stream(model: Model) -> None:
    """One greedy stream of as many tokens, free and held to a schema: CPU time per token, compute included."""
    item = closed(
        {"name": {"type": "string"}, "age": {"type": "integer"}, "tags": {"type": "array", "items": {"type": "string"}}}
    )
    constraint = Constraint(f"start: %json {enforceable({'type': 'array', 'items': item, 'minItems': 50}, 'schema')}")
    prompt = chat_tokens(model, "List people with name, age and tags as JSON.")
    driver = Driver(model, 1)
    model.grammars.check(constraint.grammar)
    for turn in range(3):
        for name, one in (("free", None), ("held", constraint)):
            request = Generate(
                f"{name}{turn}", prompt, Sampling(temperature=0, seed=1, ignore_eos=True), TOKENS, constraint=one
            )
            driver.add(request)
            driver.step()
            began = time.thread_time()
            while driver.generator.busy:
                driver.step()
            took = time.thread_time() - began
            count = driver.answers[request.request_id].tokens[0] - 1
            print(f"stream, {name}: {count} tokens, {1e3 * took / count:.2f} ms each")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grammars", type=Path)
    given = parser.parse_args()
    model = load(settings_for(n_ctx=512, n_parallel=1, prefix_slots=0))
    first: list[float] = []
    timed(first, lambda: model.grammars.check('start: "x"'))
    print(f"first grammar of a worker: {first[0] / 1000:.0f} ms")
    schemas(model)
    if given.grammars:
        grammars(model, given.grammars)
    stream(model)


if __name__ == "__main__":
    main()
