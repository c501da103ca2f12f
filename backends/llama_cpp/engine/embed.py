"""Embeddings and reranking scores: inputs of all waiting requests, packed into batches of their own.

Owns the sequences of an embeddings context, which lives from one batch to the next without any state. Runs in
the engine thread only.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import numpy.typing as npt

from backends.llama_cpp.engine.batch import Batch
from backends.llama_cpp.engine.generate import DecodeError
from backends.llama_cpp.engine.model import Model
from backends.llama_cpp.engine.plan import pack_inputs
from backends.llama_cpp.engine.types import Embed, Embedded, Ended, Output, Task

_BAD_BATCH = -1

Vector = tuple[float, ...]


def raw_scores(values: npt.NDArray[np.float32]) -> Vector:
    """A classifier's outputs as they are."""
    return tuple(values.tolist())


def unit_vector(values: npt.NDArray[np.float32]) -> Vector:
    """The vector scaled to length 1; a zero vector stays one."""
    length = float(np.linalg.norm(values))
    return tuple((values / length).tolist()) if length > 0 else tuple(values.tolist())


@dataclass(slots=True, eq=False)
class EmbedJob:
    """One Embed request while it is served."""

    request: Embed
    vectors: list[Vector] = field(default_factory=list)
    """Of the inputs done, in order."""

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.request.inputs))

    def ended(self, error: str | None) -> Ended:
        return Ended(self.request.request_id, self.prompt_tokens, 0, 0, error)


Entry = tuple[EmbedJob, tuple[int, ...]]
"""One input and the job it belongs to."""


class Embedder:
    """Serves Embed requests on one context, a share of each waiting request per batch."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._finished = raw_scores if model.facts.task is Task.RANK else unit_vector
        self._batch = Batch(model.n_batch)
        self._jobs: dict[str, EmbedJob] = {}
        self._turns: deque[EmbedJob] = deque()
        self.batches = 0

    @property
    def busy(self) -> bool:
        return bool(self._jobs)

    def add(self, request: Embed, outputs: list[Output]) -> None:
        """Queue a request; one that can never be served is answered at once."""
        job = EmbedJob(request)
        error = self._problem(request)
        if error is not None:
            outputs.append(job.ended(error))
            return
        self._jobs[request.request_id] = job
        self._turns.append(job)

    def cancel(self, request_id: str, outputs: list[Output]) -> None:
        """Forget a request. Unknown ones have ended already."""
        job = self._jobs.get(request_id)
        if job is not None:
            self._end(job, None, outputs)

    def end_all(self, error: str, outputs: list[Output]) -> None:
        """End every request for the same reason."""
        for job in list(self._jobs.values()):
            self._end(job, error, outputs)

    def step(self, outputs: list[Output]) -> None:
        """Embed one batch of inputs. Raises `DecodeError` when the context is lost."""
        entries = self._gather()
        if len(entries[0][1]) > self._model.n_batch:
            self._embed_long(*entries[0], outputs)
        else:
            self._embed(entries, outputs)
        self._turns.rotate(-1)

    def _problem(self, request: Embed) -> str | None:
        model = self._model
        longest = model.longest_input
        for position, tokens in enumerate(request.inputs):
            if not tokens:
                return f"input {position} is empty"
            if len(tokens) > longest:
                return f"input {position} has {len(tokens)} tokens; this model takes {longest} (n_ubatch bounds it)"
            if not 0 <= min(tokens) <= max(tokens) < model.n_vocab:
                return f"input {position} has a token outside the vocabulary of {model.n_vocab}"
        return None if request.inputs else "there is no input"

    def _gather(self) -> list[Entry]:
        """The inputs of the next batch, from the job whose turn it is on."""
        waiting = ((job, tokens) for job in self._turns for tokens in job.request.inputs[len(job.vectors) :])
        entries = list(islice(waiting, self._model.n_seq_max))
        count = pack_inputs([len(tokens) for _, tokens in entries], self._model.n_batch, self._model.n_seq_max)
        return entries[:count]

    def _embed(self, entries: list[Entry], outputs: list[Output]) -> None:
        """Decode inputs together; halves a batch that llama.cpp calls invalid until the culprit is alone."""
        todo = [entries]
        while todo:
            entries = [entry for entry in todo.pop() if entry[0].request.request_id in self._jobs]
            if not entries:
                continue
            self._batch.clear()
            for seq_id, (_, tokens) in enumerate(entries):
                self._batch.add_chunk(tokens, 0, seq_id, outputs=1)
            code = self._decode()
            if code == 0:
                for seq_id, (job, _) in enumerate(entries):
                    job.vectors.append(self._finished(self._model.embedding(seq_id)))
                self._model.clear()
                for job in dict.fromkeys(job for job, _ in entries):
                    self._finish(job, outputs)
            elif len(entries) > 1:
                middle = len(entries) // 2
                todo += [entries[middle:], entries[:middle]]
            else:
                self._end(entries[0][0], f"llama.cpp refused the input: llama_decode returned {code}", outputs)

    def _embed_long(self, job: EmbedJob, tokens: tuple[int, ...], outputs: list[Output]) -> None:
        """An input larger than a batch, for models whose vector is that of the last token."""
        for start in range(0, len(tokens), self._model.n_batch):
            self._batch.clear()
            self._batch.add_chunk(tokens[start : start + self._model.n_batch], start, 0, outputs=1)
            code = self._decode()
            if code != 0:
                self._model.clear()
                self._end(job, f"llama.cpp refused the input: llama_decode returned {code}", outputs)
                return
        job.vectors.append(self._finished(self._model.embedding(0)))
        self._model.clear()
        self._finish(job, outputs)

    def _decode(self) -> int:
        self._batch.output[: len(self._batch)] = 1
        code = self._model.decode(self._batch)
        if code < _BAD_BATCH:
            raise DecodeError(f"llama_decode returned {code}")
        self.batches += 1
        return code

    def _finish(self, job: EmbedJob, outputs: list[Output]) -> None:
        if len(job.vectors) == len(job.request.inputs):
            outputs.append(Embedded(job.request.request_id, tuple(job.vectors), job.prompt_tokens))
            self._end(job, None, outputs)

    def _end(self, job: EmbedJob, error: str | None, outputs: list[Output]) -> None:
        outputs.append(job.ended(error))
        del self._jobs[job.request.request_id]
        self._turns.remove(job)
