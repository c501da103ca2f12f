"""The configuration in force and the current inspection of each of its models.

Owns when a model's file is looked at again. What the loop may see changes only in `replace` and in the events that
`refresh` hands to the loop; inspections run in threads. Must never decide whether a model may be loaded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from typing import Any

import structlog

from backends.base import Backend
from swapd.config.schema import Config, Model
from swapd.core.events import Event, ModelsChanged
from swapd.errors import ShuttingDownError
from swapd.pool import catalog
from swapd.pool.learned import Lesson

log = structlog.get_logger()

Do = Callable[[Callable[[], Event]], Awaitable[None]]
"""Has the loop make an event and take it; raises `ShuttingDownError` when it takes none any more."""
Own = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]
"""Starts a task, by its name, in the scope of the pool."""


class Entries:
    """Empty until the first `replace`."""

    def __init__(
        self,
        backends: Mapping[str, Backend],
        device_names: Iterable[str],
        lesson_of: Callable[[str], Lesson],
        do: Do,
        own: Own,
    ) -> None:
        self.config = Config()
        self.by_id: Mapping[str, catalog.Entry] = {}
        self._backends = backends
        self._device_names = tuple(device_names)
        self._lesson_of = lesson_of
        self._do = do
        self._own = own
        self._refreshes: dict[str, asyncio.Task[None]] = {}

    async def inspect(self, config: Config) -> Mapping[str, catalog.Entry]:
        """Every model of a configuration that is not in force yet, as its file is now."""

        def inspect_all() -> Mapping[str, catalog.Entry]:
            return {model.id: self._look(model, config) for model in config.models.values()}

        return await asyncio.to_thread(inspect_all)

    def replace(self, config: Config, by_id: Mapping[str, catalog.Entry]) -> Event:
        """Put a configuration and its inspected models in force; returns what the core must hear."""
        self.config, self.by_id = config, by_id
        return ModelsChanged(tuple(entry.spec for entry in by_id.values()))

    def correct(self, model_id: str, launch_key: str) -> Event | None:
        """Take over what was learned of a model meanwhile, if it still is the one that it was learned of."""
        entry = self.by_id.get(model_id)
        if entry is None or entry.spec.launch_key != launch_key:
            return None
        corrected = catalog.with_lesson(entry, self._lesson_of(launch_key))
        return self.replace(self.config, {**self.by_id, model_id: corrected})

    def _look(self, model: Model, config: Config) -> catalog.Entry:
        return catalog.inspect(model, config, self._backends[model.backend], self._device_names, self._lesson_of)

    async def refresh(self, model_id: str) -> None:
        """Look at a model's file again: it may have been mended or replaced since it was inspected.

        One look serves everyone who asks at the same time, and goes on if they leave.
        """
        if model_id not in self.by_id:
            return
        refresh = self._refreshes.get(model_id)
        if refresh is None:
            refresh = self._own(self._refresh(model_id), f"refresh {model_id}")
            self._refreshes[model_id] = refresh
            refresh.add_done_callback(lambda _: self._refreshes.pop(model_id, None))
        await asyncio.shield(refresh)

    async def _refresh(self, model_id: str) -> None:
        seen, config = self.by_id[model_id], self.config
        backend = self._backends[seen.model.backend]
        if not await asyncio.to_thread(catalog.is_stale, seen, backend):
            return
        fresh = await asyncio.to_thread(self._look, seen.model, config)

        def swap() -> Event:
            by_id = self.by_id
            # A reload meanwhile has inspected everything itself; a correction has changed nothing but costs.
            current = by_id.get(model_id)
            if current is not None and current.model is seen.model and current.identity == seen.identity:
                log.info("model file changed", model=model_id)
                by_id = {**by_id, model_id: fresh}
            return self.replace(self.config, by_id)

        # A shutdown may come first; then nobody needs the news.
        with suppress(ShuttingDownError):
            await self._do(swap)
