"""What the front door does for a worker that reports nothing itself: it sees progress and tokens in the answer.

Owns what is noticed of one exchange with such a worker, and what of a server elsewhere is not for clients. Must never
hold an answer back.
"""

from __future__ import annotations

from swapd.api.openai import Endpoint
from swapd.api.usage import UsageTap, asking_for_usage
from swapd.errors import UpstreamRefusedError
from swapd.http.upstream import Upstream
from swapd.pool.door import Door
from swapd.pool.lease import Lease, UrlAddress

_STREAMED = (Endpoint.CHAT_COMPLETIONS.value, Endpoint.COMPLETIONS.value)
_REDIRECTS = range(300, 400)
_NOT_FOR_CLIENTS = (401, 403, 407)
_ERROR = b'"error"'
_HIDDEN = b"***"


class ForeignAnswer:
    """One exchange. Close it when it is over, however that was."""

    def __init__(self, door: Door, lease: Lease, path: str, body: bytes, *, stream: bool) -> None:
        self._door = door
        self._lease = lease
        asking = asking_for_usage(body) if stream and path in _STREAMED else None
        self.request = body if asking is None else asking
        """The body to send."""
        self._tap = UsageTap(hide=asking is not None)
        self._upstream: Upstream | None = None
        self._began = False
        self._secrets = _secrets(lease)

    def head(self, upstream: Upstream) -> None:
        """Its answer's head has come. Raises `UpstreamRefusedError` for what only concerns swapd."""
        self._upstream = upstream
        address, status = self._lease.address, upstream.status
        if isinstance(address, UrlAddress):
            self._check(address, status)
        self._door.answer_moved(self._lease, began=False)

    def _check(self, address: UrlAddress, status: int) -> None:
        if status in _NOT_FOR_CLIENTS:
            self._door.answer_broke(self._lease)
            raise UpstreamRefusedError(
                f"the server of model {self._lease.model_id!r}, {address}, refuses swapd's key ({status}); "
                "see api_key_file or api_key_env of the model"
            )
        if status in _REDIRECTS:
            raise UpstreamRefusedError(
                f"the server of model {self._lease.model_id!r}, {address}, answered {status}, a redirect, which is not "
                "followed; see proxy of the model"
            )

    def moved(self, *, answers: bool) -> None:
        """Bytes have come; `answers` if some are of the answer itself, and no comments."""
        began = answers and not self._began
        if began:
            self._began = True
            if self._upstream is not None and self._lease.patience is not None:
                self._upstream.allow_silence(self._lease.patience.silence_s)
        self._door.answer_moved(self._lease, began=began)

    def events(self, whole: bytes, data_events: int) -> tuple[bytes, int]:
        """Whole events as the client gets them, and how many of them carry data."""
        self.moved(answers=data_events > 0)
        whole, hidden = self._tap.events(whole)
        return self._without_secrets(whole) if _ERROR in whole else whole, data_events - hidden

    def body(self, status: int, whole: bytes) -> bytes:
        """A whole answer that is not streamed, as the client gets it."""
        if status >= 400:
            return self._without_secrets(whole)
        self._tap.body(whole)
        return whole

    def _without_secrets(self, whole: bytes) -> bytes:
        for secret in self._secrets:
            whole = whole.replace(secret, _HIDDEN)
        return whole

    @property
    def silence_key(self) -> str:
        """What says how long it may be silent now."""
        return "stall_timeout" if self._began else "first_token_timeout"

    def broke(self) -> None:
        """The exchange failed on the server's side."""
        self._door.answer_broke(self._lease)

    def close(self) -> None:
        if self._tap.counts is not None:
            self._door.answer_counted(self._lease, self._tap.counts)


def _secrets(lease: Lease) -> tuple[bytes, ...]:
    """What a server could repeat of swapd's key."""
    if not isinstance(lease.address, UrlAddress):
        return ()
    return tuple(value.rpartition(" ")[2].encode() for value in lease.address.headers.values() if value)
