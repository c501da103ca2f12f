"""The API keys in force, and what each has used lately.

Owns the look-up of a key, its running requests, its rates and their Retry-After, and what it may not ask for. Must
never keep, show or log a key: what comes in is hashed at once.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from swapd.api.structured import constrained_by
from swapd.config.keys import ApiKey, digest
from swapd.core.rates import Bucket
from swapd.errors import KeyLimitError, StructuredForbiddenError, UnauthorizedError

USUAL_S = 10.0
"""A request's time, of a key that has ended none yet."""
NEWEST_WEIGHT = 0.2
"""Of the newest request in the running mean of their times."""
ASSUMED_ANSWER_TOKENS = 256
"""Of a request whose answer is not counted yet, unless its own limit is lower."""


class Keyring:
    """`now_s` is a monotonic clock, `unix_now` that of the wall, both in seconds."""

    def __init__(
        self, by_digest: Mapping[bytes, ApiKey], now_s: Callable[[], float], unix_now: Callable[[], float]
    ) -> None:
        self._now_s = now_s
        self._unix_now = unix_now
        self._holders: dict[bytes, Holder] = {}
        self.replace(by_digest)

    def replace(self, by_digest: Mapping[bytes, ApiKey]) -> None:
        """Another set of keys. One that stays keeps its account, one that is gone is refused from now on."""
        holders: dict[bytes, Holder] = {}
        for hashed, key in by_digest.items():
            holder = self._holders.get(hashed) or Holder(self._now_s)
            holder.take_over(key)
            holders[hashed] = holder
        self._holders = holders

    def find(self, key: str) -> Holder:
        """Whose key that is. Raises `UnauthorizedError` for one that is unknown or has expired.

        The look-up is by hash: how long it takes says something about the hash of a guess, which the guesser knows,
        and nothing about a key. The hashes are compared once more in constant time.
        """
        hashed = digest(key)
        holder = self._holders.get(hashed)
        if holder is None or not hmac.compare_digest(holder.key.digest, hashed):
            raise UnauthorizedError("this API key is not known here")
        if holder.key.has_expired(self._unix_now()):
            raise UnauthorizedError(f"the API key {holder.key.name} has expired on {holder.key.expires}")
        return holder


class Holder:
    """One key and what it has used."""

    key: ApiKey

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._running = 0
        self._usual_s: float | None = None
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None

    def take_over(self, key: ApiKey) -> None:
        """The key's entry, perhaps with other limits than before."""
        self.key = key
        self._requests = self._sized(self._requests, key.requests_per_minute)
        self._tokens = self._sized(self._tokens, key.tokens_per_minute)

    def _sized(self, bucket: Bucket | None, per_minute: int | None) -> Bucket | None:
        if per_minute is None:
            return None
        if bucket is None:
            return Bucket.full(per_minute, self._now_s())
        bucket.resize(per_minute, self._now_s())
        return bucket

    @contextmanager
    def running(self) -> Iterator[None]:
        """One request's place among those that the key may have at once. Raises `KeyLimitError`."""
        key, began_s = self.key, self._now_s()
        if key.max_requests is not None and self._running >= key.max_requests:
            usual_s = USUAL_S if self._usual_s is None else self._usual_s
            raise _limited(key, f"{key.max_requests} requests at once (max_requests)", usual_s / key.max_requests)
        wait_s = self._requests.wait_s(1, began_s) if self._requests is not None else 0.0
        if wait_s > 0:
            raise _limited(key, f"{key.requests_per_minute} requests a minute (requests_per_minute)", wait_s)
        if self._requests is not None:
            self._requests.take(1, began_s)
        self._running += 1
        try:
            yield
            took_s = self._now_s() - began_s
            self._usual_s = took_s if self._usual_s is None else _mean(self._usual_s, took_s)
        finally:
            self._running -= 1

    def refuse_structured(self, fields: Mapping[str, Any]) -> None:
        """Raises `StructuredForbiddenError` for a grammar or a schema from a key that may send none."""
        field = None if self.key.structured else constrained_by(fields)
        if field is not None:
            raise StructuredForbiddenError(
                f"{field}: the API key {self.key.name} may not have answers held to a grammar or a schema (structured)",
                param=field,
            )

    def charge(self, prompt_tokens: int, answer_limit: int | None) -> Charge | None:
        """Take a request's estimated tokens; None where they are not limited. Raises `KeyLimitError`."""
        bucket, now_s = self._tokens, self._now_s()
        if bucket is None:
            return None
        answer = ASSUMED_ANSWER_TOKENS if answer_limit is None else min(answer_limit, ASSUMED_ANSWER_TOKENS)
        estimated = prompt_tokens + answer
        wait_s = bucket.wait_s(estimated, now_s)
        if wait_s > 0:
            raise _limited(self.key, f"{self.key.tokens_per_minute} tokens a minute (tokens_per_minute)", wait_s)
        bucket.take(estimated, now_s)
        return Charge(bucket, estimated, self._now_s)


class Charge:
    """What one request was charged before anybody had counted its tokens."""

    def __init__(self, bucket: Bucket, tokens: int, now_s: Callable[[], float]) -> None:
        self._bucket = bucket
        self._tokens = tokens
        self._now_s = now_s

    def counted(self, tokens: int) -> None:
        """What it really took. Later counts replace earlier ones."""
        self._bucket.take(tokens - self._tokens, self._now_s())
        self._tokens = tokens


def _mean(known_s: float, newest_s: float) -> float:
    return known_s + NEWEST_WEIGHT * (newest_s - known_s)


def _limited(key: ApiKey, limit: str, wait_s: float) -> KeyLimitError:
    return KeyLimitError(f"the API key {key.name} may have {limit}; try later", retry_after_s=max(1.0, wait_s))
