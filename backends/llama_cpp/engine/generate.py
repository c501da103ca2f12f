"""Continuous batching: requests come in, batches are made and decoded, and each brings text.

Owns the requests, the batches and every sampler; `roster` has who runs and who waits, `cache` what the context holds.
Runs in the engine thread only and never blocks but in llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable

from backends.llama_cpp.engine.cache import ContextCache
from backends.llama_cpp.engine.candidates import Candidates
from backends.llama_cpp.engine.detokenize import TextStream
from backends.llama_cpp.engine.model import Batch, Model
from backends.llama_cpp.engine.plan import prompt_budget, share_batch, smoothed_rate
from backends.llama_cpp.engine.roster import Roster
from backends.llama_cpp.engine.sampler import SamplingError, choice_seed, make_sampler
from backends.llama_cpp.engine.sequence import Job, Sequence
from backends.llama_cpp.engine.types import Finish, Generate, Output, Piece, Prefilled

_NO_ROOM, _BAD_BATCH = 1, -1

Grant = tuple[Sequence, int]
"""A sequence and how many of its pending tokens are in a batch."""


class DecodeError(Exception):
    """llama_decode failed in a way that leaves the context unusable."""


class Generator:
    """Serves Generate requests on one context. Outputs are appended to the list each method is given."""

    def __init__(
        self,
        model: Model,
        *,
        n_parallel: int,
        prefill_stall_s: float,
        cache_ram_bytes: int,
        fresh_seed: Callable[[], int],
        now_s: Callable[[], float],
    ) -> None:
        self._model = model
        self._prefill_stall_s = prefill_stall_s
        self._fresh_seed = fresh_seed
        self._now_s = now_s
        self._batch = Batch(model.n_batch)
        self._candidates = Candidates(model.n_vocab)
        retired_slots = model.n_seq_max - n_parallel if model.keeps_prefixes else 0
        self._cache = ContextCache(model, retired_slots=retired_slots, host_bytes=cache_ram_bytes)
        self._roster = Roster(self._cache, n_parallel=n_parallel, keeps_prefixes=model.keeps_prefixes)
        self._jobs: dict[str, Job] = {}
        self._arrivals = 0
        self._prompt_rate: float | None = None
        self.batches = 0
        """Micro-batches finished."""

    @property
    def busy(self) -> bool:
        return bool(self._jobs)

    @property
    def preemptions(self) -> int:
        """How often a running sequence had to make room for an older one."""
        return self._roster.preemptions

    def add(self, request: Generate, outputs: list[Output]) -> None:
        """Queue a request; one that can never be served is answered at once."""
        job = Job(request, self._arrivals)
        self._arrivals += 1
        try:
            self._check(request)
            sequences = self._make_sequences(job)
        except (SamplingError, ValueError) as error:
            outputs.append(job.ended(str(error)))
            return
        self._jobs[request.request_id] = job
        for sequence in sequences:
            job.live[sequence.index] = sequence
        self._roster.enqueue(sequences)

    def cancel(self, request_id: str, outputs: list[Output]) -> None:
        """Free a request's sequences. Unknown ones have ended already."""
        job = self._jobs.get(request_id)
        if job is not None:
            self._end(job, None, outputs)

    def end_all(self, error: str, outputs: list[Output]) -> None:
        """End every request for the same reason."""
        for job in list(self._jobs.values()):
            self._end(job, error, outputs)

    def step(self, outputs: list[Output]) -> None:
        """Admit who fits, decode one batch and sample. Raises `DecodeError` when the context is lost."""
        self._roster.admit()
        assert self._roster.running, "requests wait while nothing runs"
        self._decode(self._plan(), outputs)

    # -- requests ------------------------------------------------------------------------------------------

    def _check(self, request: Generate) -> None:
        model = self._model
        if not request.prompt:
            raise ValueError("the prompt is empty")
        if len(request.prompt) >= model.n_ctx_request:
            raise ValueError(f"the prompt has {len(request.prompt)} tokens; the context holds {model.n_ctx_request}")
        if not 0 <= min(request.prompt) <= max(request.prompt) < model.n_vocab:
            raise ValueError(f"the prompt has a token outside the vocabulary of {model.n_vocab}")

    def _make_sequences(self, job: Job) -> list[Sequence]:
        request, model = job.request, self._model
        limit = model.n_ctx_request
        if request.max_tokens is not None:
            limit = min(limit, len(request.prompt) + max(1, request.max_tokens))
        seed = self._fresh_seed() if request.sampling.seed is None else request.sampling.seed
        made: list[Sequence] = []
        try:
            for index in range(request.n):
                sampler = make_sampler(
                    request.sampling,
                    request.prompt,
                    choice_seed(seed, index),
                    eog_tokens=model.eog_tokens,
                    suppressed=model.suppressed_tokens,
                    candidates=self._candidates,
                    n_vocab=model.n_vocab,
                    n_ctx=model.n_ctx,
                )
                text = TextStream(request.stop)
                made.append(Sequence(job, index, list(request.prompt), limit, sampler, text))
        except SamplingError:
            for sequence in made:
                sequence.sampler.close()
            raise
        return made

    def _end(self, job: Job, error: str | None, outputs: list[Output]) -> None:
        for sequence in list(job.live.values()):
            self._leave(sequence)
        outputs.append(job.ended(error))
        del self._jobs[job.request.request_id]

    def _leave(self, sequence: Sequence) -> None:
        """A choice is over: its sampler goes, and its place."""
        del sequence.job.live[sequence.index]
        sequence.sampler.close()
        self._roster.leave(sequence)

    # -- batches -------------------------------------------------------------------------------------------

    def _plan(self) -> list[Grant]:
        model = self._model
        while True:
            running = self._roster.running
            pending = [sequence.pending for sequence in running]
            budget = prompt_budget(
                self._prompt_rate,
                self._prefill_stall_s,
                decoding=pending.count(1),
                n_batch=model.n_batch,
                n_ubatch=model.n_ubatch,
            )
            counts = share_batch(pending, model.n_batch, budget)
            if sum(counts) <= self._cache.free:
                return [(sequence, count) for sequence, count in zip(running, counts, strict=True) if count]
            made = self._roster.make_room()
            assert made, "the only sequence has outgrown the cache"

    def _decode(self, grants: list[Grant], outputs: list[Output]) -> None:
        """Decode a batch and sample. An invalid one is halved until the culprit is alone, and only that fails."""
        todo = [grants]
        while todo:
            grants = [grant for grant in todo.pop() if grant[0].place is not None]
            if not grants:
                continue
            started_s = self._now_s()
            ordered = self._fill(grants)
            code = self._model.decode(self._batch)
            if code == 0:
                self._measure(grants, self._now_s() - started_s)
                self._advance(grants)
                self._sample(ordered, outputs)
            elif code == _NO_ROOM and self._roster.make_room():
                todo.append(grants)
            elif code in (_NO_ROOM, _BAD_BATCH) and len(grants) == 1:
                reason = "no room in the cache" if code == _NO_ROOM else "an invalid batch"
                self._end(grants[0][0].job, f"llama.cpp refused the request's tokens: {reason}", outputs)
            elif code == _BAD_BATCH:
                middle = len(grants) // 2
                todo += [grants[middle:], grants[:middle]]
            else:
                raise DecodeError(f"llama_decode returned {code}")

    def _fill(self, grants: list[Grant]) -> list[tuple[Sequence, int]]:
        """Write the batch. Returns the sequences that get logits, in row order, each with its place in the batch."""
        batch = self._batch
        batch.clear()
        single = [sequence for sequence, count in grants if count == 1 and sequence.pending == 1]
        ordered = list(zip(single, range(len(single)), strict=True))
        if single:
            batch.add_single(
                [sequence.tokens[-1] for sequence in single],
                [sequence.cached for sequence in single],
                [sequence.place.seq_id for sequence in single if sequence.place is not None],
            )
        for sequence, count in grants:
            if sequence.pending == 1:
                continue
            assert sequence.place is not None
            start = sequence.cached
            complete = count == sequence.pending
            batch.add_chunk(sequence.tokens[start : start + count], start, sequence.place.seq_id, output=complete)
            if complete:
                ordered.append((sequence, len(batch) - 1))
        return ordered

    def _measure(self, grants: list[Grant], seconds: float) -> None:
        tokens = len(self._batch)
        self.batches += -(-tokens // self._model.n_ubatch)
        if tokens > len(grants):
            self._prompt_rate = smoothed_rate(self._prompt_rate, tokens, seconds)

    def _advance(self, grants: list[Grant]) -> None:
        for sequence, count in grants:
            assert sequence.place is not None
            self._cache.cells.grow(sequence.place.holding, count)

    def _sample(self, ordered: list[tuple[Sequence, int]], outputs: list[Output]) -> None:
        model = self._model
        for row, (sequence, place) in enumerate(ordered):
            job = sequence.job
            if not job.prefilled:
                job.prefilled = True
                self._roster.note_prefilled()
                outputs.append(Prefilled(job.request.request_id, len(job.request.prompt), job.cached_tokens or 0))
            token = sequence.sampler.pick(model.logits(row), model.ctx, place)
            sequence.sampler.accept(token)
            sequence.tokens.append(token)
            sequence.unsent_tokens += 1
            job.completion_tokens += 1
            if token in model.eog_tokens:
                self._emit(sequence, sequence.text.finish(), Finish.STOP, outputs)
                continue
            text, stopped = sequence.text.push(model.piece(token, visible=token in job.request.visible_tokens))
            if stopped:
                self._emit(sequence, text, Finish.STOP, outputs)
            elif len(sequence.tokens) >= sequence.limit:
                self._emit(sequence, text + sequence.text.finish(), Finish.LENGTH, outputs)
            elif text:
                self._emit(sequence, text, None, outputs)

    def _emit(self, sequence: Sequence, text: str, finish: Finish | None, outputs: list[Output]) -> None:
        job = sequence.job
        outputs.append(Piece(job.request.request_id, sequence.index, text, sequence.unsent_tokens, finish))
        sequence.unsent_tokens = 0
        if finish is not None:
            self._leave(sequence)
            if not job.live:
                self._end(job, None, outputs)
