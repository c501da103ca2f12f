"""One model's requests by client: who waits, who runs, and how many tokens each client has been served.

Owns the sums behind fair sharing and the order of clients by them, not who may go before his turn (`fairness`). The
ledger keeps them in step with its queues.
The account is the virtual token counter of Sheng et al., OSDI 2024, algorithm 2: what runs is charged by an estimate,
so that many requests of one client cannot all be granted before the first is counted, and put right once it is counted.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

ASSUMED_ANSWER_TOKENS = 256
"""Of a model that has answered nothing yet."""

ANSWER_WEIGHT = 0.2
"""Of the newest answer in the running mean of answers' tokens."""

MAX_AWAY = 1024
"""Clients without a request that a model remembers; the one that has been away for longest is forgotten first."""

MAX_UNSETTLED = 1024
"""Ended requests whose tokens may still be counted."""

MAX_VOID = 64
"""Ranks that no longer hold, beyond as many as there are clients at work, before they are thrown out."""


@dataclass(slots=True, eq=False)
class Request:
    """One accepted request, waiting in its model's queue or running on a worker."""

    id: str
    model_id: str
    client: str
    priority: int
    arrived_at_s: float
    estimated_tokens: int = 0
    """Of its prompt and its answer."""
    weight: float = 1.0
    """How many tokens count as one on its client's account."""
    worker_id: int | None = None
    granted_at_s: float = 0.0
    began: bool = False
    """Its answer has. Only told of workers that do not report their progress themselves."""
    charge: float = 0.0
    """What its account is charged by the estimate, while it runs and is not counted yet."""
    account: Account | None = field(default=None, repr=False)
    """Its client's at its model, as that was when it came."""

    @property
    def arrived_us(self) -> int:
        """In whole microseconds, so that sums of many stay exact."""
        return round(self.arrived_at_s * 1e6)


Rank = tuple[int, float, float, str]


def rank(request: Request, level: float) -> Rank:
    """The lowest goes first: by class, then its client's account, then arrival."""
    return (-request.priority, level, request.arrived_at_s, request.id)


@dataclass(slots=True, eq=False)
class Account:
    """One client at one model."""

    served: float = 0.0
    """Tokens over weights: counted, or estimated of requests that ended and are not counted yet."""
    charged: float = 0.0
    """The same of what runs, by estimate."""
    running: int = 0
    waiting: int = 0
    lines: dict[int, dict[str, Request]] = field(default_factory=dict)
    """Waiting requests by priority class, each in order of arrival. No line is empty."""
    changes: int = 0
    """Counts what may have moved it among the others."""

    @property
    def level(self) -> float:
        """Who has the lowest is next."""
        return self.served + self.charged

    @property
    def is_active(self) -> bool:
        return self.running > 0 or self.waiting > 0

    def head(self) -> Request:
        """The earliest of its highest class, of an account with something waiting."""
        return next(iter(self.lines[max(self.lines)].values()))

    def waits_since_s(self) -> float | None:
        """When the earliest of what waits came."""
        return min((next(iter(line.values())).arrived_at_s for line in self.lines.values()), default=None)

    def in_line(self) -> Iterator[Request]:
        """What waits, in the order in which it will be granted."""
        for priority in sorted(self.lines, reverse=True):
            yield from self.lines[priority].values()

    def enter(self, request: Request) -> None:
        self.lines.setdefault(request.priority, {})[request.id] = request
        self.waiting += 1

    def take_out(self, request: Request) -> None:
        line = self.lines[request.priority]
        del line[request.id]
        if not line:
            del self.lines[request.priority]
        self.waiting -= 1


@dataclass(slots=True)
class Shares:
    """All clients of one model."""

    active: dict[str, Account] = field(default_factory=dict)
    """Those with something waiting or running."""
    away: dict[str, Account] = field(default_factory=dict)
    """Those without, in the order in which they left."""
    unsettled: dict[str, tuple[Account, float, float]] = field(default_factory=dict)
    """By the id of a request that ended uncounted: its account, what that was charged, and the weight."""
    waiting_tokens: int = 0
    """Estimated, of all that waits."""
    waiting_since_us: int = 0
    """Summed times of arrival of all that waits."""
    answer_tokens: float | None = None
    """Running mean of what answers had; None before the first."""
    grants: int = 0
    ranks: list[tuple[Rank, int, Account]] = field(default_factory=list)
    """A heap of those with something waiting, by what they had at so many changes. Later ones make an entry void."""

    def estimate(self, prompt_tokens: int, answer_limit: int | None) -> int:
        """What a request will take: its prompt, and what answers usually have within the limit that it set."""
        usual = ASSUMED_ANSWER_TOKENS if self.answer_tokens is None else round(self.answer_tokens)
        return prompt_tokens + (usual if answer_limit is None else min(usual, answer_limit))

    def enter(self, request: Request) -> None:
        """A request begins to wait."""
        account = self.active.get(request.client)
        if account is None:
            account = self.active[request.client] = self._welcome(request.client)
        request.account = account
        account.enter(request)
        self.waiting_tokens += request.estimated_tokens
        self.waiting_since_us += request.arrived_us
        self._rank(account)

    def first(self) -> Request:
        """What is next by the accounts, of a queue that is not empty."""
        while True:
            _, changes, account = self.ranks[0]
            if changes == account.changes:
                return account.head()
            heapq.heappop(self.ranks)

    def _rank(self, account: Account) -> None:
        account.changes += 1
        if account.waiting:
            heapq.heappush(self.ranks, (rank(account.head(), account.level), account.changes, account))
        if len(self.ranks) > MAX_VOID + 2 * len(self.active):
            self.ranks = [one for one in self.ranks if one[1] == one[2].changes]
            heapq.heapify(self.ranks)

    def _welcome(self, client: str) -> Account:
        """A client that comes, or comes back, starts level with the least served of those at work.

        Otherwise an empty account would let it push everyone aside until it had caught up with tokens served long
        ago. When nobody is at work, the client that left last stands for them. What is only estimated is left out:
        prompts that turn out to be cached would put a newcomer far behind those who send them.
        """
        peers = self.active.values() or [self.away[name] for name in islice(reversed(self.away), 1)]
        level = min((peer.served for peer in peers), default=0.0)
        account = self.away.pop(client, None) or Account()
        account.served = max(account.served, level)
        return account

    def leave(self, request: Request) -> None:
        """A request waits no longer, and was not granted."""
        account = self._take_out(request)
        self._rank(account)
        self._part(request.client, account)

    def start(self, request: Request) -> None:
        """A waiting request is granted."""
        account = self._take_out(request)
        account.running += 1
        request.charge = request.estimated_tokens / request.weight
        account.charged += request.charge
        self.grants += 1
        self._rank(account)

    def end(self, request: Request, *, refund: bool) -> None:
        """A running request ended. With `refund` it got nothing for what it was charged."""
        account = request.account
        assert account is not None
        account.running -= 1
        account.charged = account.charged - request.charge if account.running else 0.0
        if request.charge and not refund:
            account.served += request.charge
            self.unsettled[request.id] = (account, request.charge, request.weight)
            if len(self.unsettled) > MAX_UNSETTLED:
                del self.unsettled[next(iter(self.unsettled))]
        self._rank(account)
        self._part(request.client, account)

    def count_answer(self, tokens: int) -> None:
        known = self.answer_tokens
        self.answer_tokens = float(tokens) if known is None else known + ANSWER_WEIGHT * (tokens - known)

    def settle(self, running: Request, tokens: int) -> None:
        """The tokens of a request that still runs are counted."""
        account = running.account
        assert account is not None
        account.charged -= running.charge
        account.served += tokens / running.weight
        running.charge = 0.0
        self._rank(account)

    def settle_late(self, request_id: str | None, client: str, tokens: int) -> None:
        """The tokens of one that has ended, or that nothing is known of, are counted."""
        account, charge, weight = self.unsettled.pop(request_id or "", (None, 0.0, 1.0))
        account = account or self.active.get(client) or self.away.get(client)
        if account is not None:
            account.served += tokens / weight - charge
            self._rank(account)

    def _take_out(self, request: Request) -> Account:
        account = request.account
        assert account is not None
        account.take_out(request)
        self.waiting_tokens -= request.estimated_tokens
        self.waiting_since_us -= request.arrived_us
        return account

    def _part(self, client: str, account: Account) -> None:
        if account.is_active:
            return
        del self.active[client]
        self.away[client] = account
        while len(self.away) > MAX_AWAY:
            del self.away[next(iter(self.away))]
