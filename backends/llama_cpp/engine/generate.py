"""Continuous batching: requests come in, batches are made and decoded, and each brings text.

Owns the requests, the batches and every sampler; `roster` has who runs and who waits, `cache` what the context holds.
Runs in the engine thread only and never blocks but in llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from backends.llama_cpp.engine.batch import Batch
from backends.llama_cpp.engine.cache import ContextCache
from backends.llama_cpp.engine.candidates import Candidates
from backends.llama_cpp.engine.constrained import constrained, is_complete
from backends.llama_cpp.engine.crew import Crew
from backends.llama_cpp.engine.detokenize import TextStream
from backends.llama_cpp.engine.drafts import Lookup, Pace, draft_lengths
from backends.llama_cpp.engine.grants import Grant, apart, fill
from backends.llama_cpp.engine.logprobs import Logprobs
from backends.llama_cpp.engine.media import Layout, check_media, decode
from backends.llama_cpp.engine.model import Model
from backends.llama_cpp.engine.plan import prompt_budget, share_batch, smoothed_rate
from backends.llama_cpp.engine.roster import Roster
from backends.llama_cpp.engine.sampler import make_sampler
from backends.llama_cpp.engine.sequence import Job, Sequence
from backends.llama_cpp.engine.stages import SamplingError, choice_seed
from backends.llama_cpp.engine.types import Finish, Generate, Output, Piece, Prefilled
from backends.llama_cpp.settings import MAX_DRAFT_TOKENS

_NO_ROOM, _BAD_BATCH = 1, -1


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
        self._crew = Crew(model.n_threads, self._choose)
        retired_slots = model.n_seq_max - n_parallel if model.keeps_prefixes else 0
        self._cache = ContextCache(model, retired_slots=retired_slots, host_bytes=cache_ram_bytes)
        self._roster = Roster(self._cache, n_parallel=n_parallel, keeps_prefixes=model.keeps_prefixes)
        self._jobs: dict[str, Job] = {}
        self._arrivals = 0
        self._prompt_rate: float | None = None
        self._pace = Pace()
        self._guesses = model.n_outputs_max >= model.n_seq_max + MAX_DRAFT_TOKENS and model.keeps_prefixes
        """Whether wrong guesses can be taken out of the cache again, and have rows of logits."""
        self.batches = 0
        """Micro-batches finished."""
        self.guesses_tried = self.guesses_right = 0

    @property
    def busy(self) -> bool:
        return bool(self._jobs)

    @property
    def preemptions(self) -> int:
        """How often a running sequence had to make room for an older one."""
        return self._roster.preemptions

    def add(self, request: Generate, outputs: list[Output]) -> None:
        """Queue a request; one that can never be served is answered at once."""
        job = Job(request, self._arrivals, layout=Layout(request.media))
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
        if not 0 <= min(request.text) <= max(request.text) < model.n_vocab:
            raise ValueError(f"the prompt has a token outside the vocabulary of {model.n_vocab}")
        check_media(request.prompt, request.media, n_embd=model.n_embd_inp, n_ubatch=model.n_ubatch)

    def _make_sequences(self, job: Job) -> list[Sequence]:
        request, model = job.request, self._model
        limit = model.n_ctx_request
        if request.max_tokens is not None:
            limit = min(limit, len(request.prompt) + max(1, request.max_tokens))
        seed = self._fresh_seed() if request.sampling.seed is None else request.sampling.seed
        piece = partial(model.piece, visible=True)
        made: list[Sequence] = []
        try:
            for index in range(request.n):
                sampler = make_sampler(
                    request.sampling,
                    request.text,
                    choice_seed(seed, index),
                    eog_tokens=model.eog_tokens if request.sampling.ignore_eos else (),
                    suppressed=model.suppressed_tokens,
                    piece=piece,
                    candidates=self._candidates,
                    n_vocab=model.n_vocab,
                    n_ctx=model.n_ctx,
                )
                if request.constraint is not None:
                    sampler = constrained(sampler, request, request.constraint, model)
                text = TextStream(request.stop)
                lookup = Lookup() if self._guesses and job.may_round_differently else None
                logprobs = Logprobs(request.logprobs, piece) if request.logprobs is not None else None
                made.append(Sequence(job, index, list(request.prompt), limit, sampler, text, lookup, logprobs))
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
        if sequence.place is not None and sequence.cached > len(sequence.tokens):
            # Guesses behind a stop string, or that were not looked at.
            self._cut(sequence, len(sequence.tokens))
        del sequence.job.live[sequence.index]
        sequence.sampler.close()
        self._roster.leave(sequence)

    # -- batches -------------------------------------------------------------------------------------------

    def _plan(self) -> list[Grant]:
        model = self._model
        while True:
            running = self._roster.running
            pending = [sequence.run for sequence in running]
            budget = prompt_budget(
                self._prompt_rate,
                self._prefill_stall_s,
                decoding=pending.count(1),
                n_batch=model.n_batch,
                n_ubatch=model.n_ubatch,
            )
            shares = share_batch(pending, [sequence.turn for sequence in running], model.n_batch, budget)
            counts = [sequence.granted(share) for sequence, share in zip(running, shares, strict=True)]
            if sum(counts) <= self._cache.free:
                grants = [Grant(sequence, count) for sequence, count in zip(running, counts, strict=True) if count]
                for grant in grants:
                    if grant.sequence.pending > 1:
                        self._roster.note_read(grant.sequence)
                if self._guesses and all(sequence.pending == 1 for sequence in running):
                    self._guess(grants)
                return grants
            made = self._roster.make_room()
            assert made, "the only sequence has outgrown the cache"

    def _guess(self, grants: list[Grant]) -> None:
        """Add to a batch of single tokens what may follow them, as far as that is expected to win time."""
        model = self._model
        room = min(MAX_DRAFT_TOKENS, self._cache.free - len(grants), model.n_ubatch - len(grants))
        found: list[tuple[Grant, Lookup, list[int]]] = []
        for grant in grants:
            sequence = grant.sequence
            useful = min(room, sequence.limit - len(sequence.tokens) - 1)
            if sequence.lookup is not None and useful > 0:
                draft = sequence.lookup.guess(sequence.tokens, useful)
                if draft:
                    found.append((grant, sequence.lookup, draft))
        lengths = draft_lengths(
            [(lookup.chance, len(draft)) for _, lookup, draft in found], len(grants), self._pace, room
        )
        for (grant, lookup, draft), length in zip(found, lengths, strict=True):
            grant.draft = draft[:length]
            if not length:
                lookup.note_untried(len(grant.sequence.tokens), draft[0])

    def _decode(self, grants: list[Grant], outputs: list[Output]) -> None:
        """Decode a batch and sample. An invalid one is halved until the culprit is alone, and only that fails."""
        todo = apart(grants)
        while todo:
            grants = [grant for grant in todo.pop() if grant.sequence.place is not None]
            if not grants:
                continue
            started_s = self._now_s()
            batch = fill(self._batch, grants)
            code = decode(self._model, batch)
            if code == 0:
                self._measure(grants, len(batch), self._now_s() - started_s)
                self._advance(grants)
                self._sample(grants, outputs)
            elif code == _NO_ROOM and self._roster.make_room():
                todo.append(grants)
            elif code in (_NO_ROOM, _BAD_BATCH) and len(grants) == 1:
                reason = "no room in the cache" if code == _NO_ROOM else "an invalid batch"
                self._end(grants[0].sequence.job, f"llama.cpp refused the request's tokens: {reason}", outputs)
            elif code == _BAD_BATCH:
                middle = len(grants) // 2
                todo += [grants[middle:], grants[:middle]]
            else:
                raise DecodeError(f"llama_decode returned {code}")

    def _measure(self, grants: list[Grant], tokens: int, seconds: float) -> None:
        self.batches += -(-tokens // self._model.n_ubatch)
        if any(grant.sequence.pending > 1 for grant in grants):
            self._prompt_rate = smoothed_rate(self._prompt_rate, tokens, seconds)
        else:
            self._pace.note(tokens, seconds)

    def _advance(self, grants: list[Grant]) -> None:
        for grant in grants:
            assert grant.sequence.place is not None
            self._cache.cells.grow(grant.sequence.place.holding, grant.count + len(grant.draft))

    def _sample(self, grants: list[Grant], outputs: list[Output]) -> None:
        grants = [grant for grant in grants if grant.row >= 0]
        chosen = self._crew.do(grants, [grant.sequence.sampler.is_slow for grant in grants])
        for grant, tokens in zip(grants, chosen, strict=True):
            sequence, job = grant.sequence, grant.sequence.job
            if sequence.index not in job.live:
                continue
            if not job.prefilled:
                job.prefilled = True
                self._roster.note_prefilled()
                outputs.append(Prefilled(job.request.request_id, len(job.request.prompt), job.cached_tokens or 0))
            if isinstance(tokens, SamplingError):
                self._end(job, str(tokens), outputs)
                continue
            if grant.draft:
                self._take_back(grant, right=len(tokens) - 1)
            last = len(tokens) if is_complete(sequence.sampler) else 0
            for number, token in enumerate(tokens, 1):
                if self._say(sequence, token, outputs, last=number == last) is not None:
                    break

    def _choose(self, grant: Grant) -> list[int] | SamplingError:
        """The tokens that follow: one, and one more for each guess that the sampler agrees with; or why there is none.

        Runs in several threads at once, for different sequences.
        """
        model, sampler, logprobs = self._model, grant.sequence.sampler, grant.sequence.logprobs
        tokens: list[int] = []
        for guess in (*grant.draft, None):
            at = len(tokens)
            logits = model.logits(grant.row + at)
            try:
                if logprobs is not None:
                    logprobs.observe(logits)
                token = sampler.pick(logits)
                sampler.accept(token)
            except SamplingError as error:
                return error
            if logprobs is not None:
                logprobs.choose(token, logits)
            tokens.append(token)
            if token != guess or model.is_eog(token) or is_complete(sampler):
                break
        return tokens

    def _take_back(self, grant: Grant, *, right: int) -> None:
        """Forget the guesses after the first `right` ones, and remember how good they were."""
        sequence = grant.sequence
        assert sequence.place is not None
        assert sequence.lookup is not None
        sequence.lookup.note_trial(len(grant.draft), right)
        self.guesses_tried += len(grant.draft)
        self.guesses_right += right
        self._cut(sequence, sequence.cached - len(grant.draft) + right)

    def _cut(self, sequence: Sequence, length: int) -> None:
        assert sequence.place is not None
        self._cache.cut(sequence.place, length, sequence.job.layout.position(length))

    def _say(self, sequence: Sequence, token: int, outputs: list[Output], *, last: bool) -> Finish | None:
        """Take a token into a choice; returns why the choice has ended with it, if it has. Nothing follows the last."""
        model, job = self._model, sequence.job
        sequence.tokens.append(token)
        sequence.unsent_tokens += 1
        job.completion_tokens += 1
        finish: Finish | None = None
        if model.is_eog(token):
            text, finish = sequence.text.finish(), Finish.STOP
        else:
            piece = model.piece(token, visible=token in job.request.visible_tokens)
            if sequence.logprobs is not None:
                sequence.logprobs.say(sequence.text.whole, shown=bool(piece))
            text, stopped = sequence.text.push(piece)
            if stopped:
                finish = Finish.STOP
            elif last:
                text, finish = text + sequence.text.finish(), Finish.STOP
            elif len(sequence.tokens) >= sequence.limit:
                text, finish = text + sequence.text.finish(), Finish.LENGTH
        if text or finish is not None:
            self._emit(sequence, text, finish, outputs)
        return finish

    def _emit(self, sequence: Sequence, text: str, finish: Finish | None, outputs: list[Output]) -> None:
        job = sequence.job
        logprobs = sequence.logprobs.release(sequence.text.sent) if sequence.logprobs is not None else ()
        stopped_by = sequence.text.stopped_by
        outputs.append(
            Piece(job.request.request_id, sequence.index, text, sequence.unsent_tokens, finish, logprobs, stopped_by)
        )
        sequence.unsent_tokens = 0
        if finish is not None:
            self._leave(sequence)
            if not job.live:
                self._end(job, None, outputs)
