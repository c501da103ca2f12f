"""What the front door may ask of the pool. The pool implements it; tests of the door script it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from swapd.config.schema import Model
from swapd.pool.lease import Lease, Place, Ticket, TokenCounts
from swapd.pool.routes import Routes
from swapd.pool.status import DeviceStatus, Happening, ListedModel, ModelStatus, RequestEnded, RequestStatus, Status


class Door(Protocol):
    @property
    def routes(self) -> Routes:
        """What names stand for, the profile in force considered."""
        ...

    async def switch_profile(self, name: str | None) -> None:
        """Put a profile, or none, in force, and return once it is. Raises `UnknownProfileError`."""
        ...

    def resolve(self, name: str) -> Model:
        """The model of that id or alias, pins left aside. Raises `UnknownModelError`, which lists close names."""
        ...

    def listed(self) -> Sequence[ListedModel]:
        """Every model and virtual model that is not `unlisted`, in the file's order."""
        ...

    def listed_as(self, name: str) -> ListedModel:
        """The model or virtual model that an id or alias names. Raises `UnknownModelError`."""
        ...

    def lease(self, ticket: Ticket) -> AbstractAsyncContextManager[Lease]:
        """Wait for a place at a worker of the ticket's model, loading it if need be.

        Entering raises a `SwapdError` when the request is refused; leaving gives the place back. A body that
        raises counts as a failed request, one that is cancelled as cancelled.
        """
        ...

    def answer_moved(self, lease: Lease, *, began: bool) -> None:
        """Bytes of an answer have come from a worker that does not report: its progress. Call it as often as they do.

        `began` is for the first of the answer itself.
        """
        ...

    def answer_counted(self, lease: Lease, counts: TokenCounts) -> None:
        """An answer of such a worker said what it took. Once for each lease."""
        ...

    def answer_broke(self, lease: Lease) -> None:
        """A server elsewhere gave no answer, or only a part of one. It is looked after, and given up if that recurs."""
        ...

    def place(self, request_id: str) -> Place | None:
        """Where a request waits, about a second old at most; None if it does not wait."""
        ...

    def in_flight(self) -> Sequence[RequestStatus]:
        """Requests one by one, within a bound; for a long queue this takes longer than `status`."""
        ...

    def status(self) -> Status:
        """Everything but `in_flight`."""
        ...

    def ready(self) -> bool:
        """Whether the daemon can serve: it is up and not shutting down."""
        ...

    async def load(self, model_id: str) -> ModelStatus:
        """Load a model and wait for it. The load goes on if the caller leaves. Raises a `SwapdError`."""
        ...

    async def unload(self, model_id: str) -> ModelStatus:
        """Drain and stop a model's workers and wait until they are gone."""
        ...

    async def pin(self, model_id: str, *, pinned: bool) -> ModelStatus:
        """Pin a model, or no longer, whatever the configuration says, until the daemon ends."""
        ...

    def keep(self, model_id: str, keep_alive_s: float) -> None:
        """How long a loaded model stays from now on when it is idle; infinity is for ever, 0 until it runs nothing."""
        ...

    async def pause(self, device: str) -> DeviceStatus:
        """Hand a device over and wait until nothing of the daemon's is on it. Raises a `SwapdError`."""
        ...

    async def resume(self, device: str) -> DeviceStatus:
        """Use a device again. Raises a `SwapdError`."""
        ...

    def logs(self, model_id: str) -> Sequence[str]:
        """The newest output lines of the model's current or last worker, oldest first."""
        ...

    def follow_logs(self, model_id: str) -> AsyncGenerator[str, None]:
        """The same lines, then each further one as it comes."""
        ...

    def happenings(self) -> AsyncGenerator[Happening, None]:
        """The newest happenings, then each further one as it comes."""
        ...

    def requests_ended(self) -> AsyncGenerator[RequestEnded, None]:
        """Each request that ends from now on."""
        ...
