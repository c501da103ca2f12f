"""What the front door notes about one request while it runs, for its access line and metrics.

Must never hold a prompt or a key.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from aiohttp import web

from swapd.pool.lease import Address, Place, UrlAddress


@dataclass(slots=True)
class Record:
    """Times are seconds; `arrived_s` is on the monotonic clock."""

    request_id: str
    endpoint: str
    trace_headers: Mapping[str, str] = field(default_factory=dict)
    """What a worker gets, so that its client's trace goes on there."""
    arrived_s: float = field(default_factory=time.monotonic)
    arrived_at: float = field(default_factory=time.time)
    """Unix time."""
    model_id: str = ""
    """Empty until the request has named a configured model."""
    key_name: str | None = None
    """Of the API key that it came with."""
    client: str = ""
    """Whose it is to queues and shares; empty until it is whole and may ask for a place."""
    waited_s: float = 0.0
    granted: bool = False
    place: Place | None = None
    """Where it stood in the queue when that was last looked up."""
    first_token_s: float | None = None
    events: int = 0
    """Events with data that were forwarded."""
    whole: int | None = None
    """The status of a stream that went out to its end, whatever its client did then."""
    broken: int | None = None
    """The error's status when an answer broke after its own status was sent."""

    def traces_for(self, address: Address) -> Mapping[str, str]:
        """The headers of its trace that go there: none to a server elsewhere that is not configured for them."""
        return {} if isinstance(address, UrlAddress) and not address.takes_traces else self.trace_headers

    def age_s(self) -> float:
        return time.monotonic() - self.arrived_s


RECORD = web.RequestKey("swapd_record", Record)
