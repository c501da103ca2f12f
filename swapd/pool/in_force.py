"""Which configuration is in force: the file's, seen through a profile and what was pinned by hand.

Owns what outlives a reload of the file, and the order of changes: one at a time, each inspected first and then put in
force in one step. Must never read the file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping

import structlog

from backends.base import Backend
from swapd.config.profiles import in_profile, with_pins
from swapd.config.schema import Config
from swapd.core import events as ev
from swapd.errors import UnknownProfileError
from swapd.pool import catalog, devices
from swapd.pool.entries import Entries
from swapd.pool.inbox import Inbox
from swapd.pool.learned import Store
from swapd.pool.status import ConfigStatus

log = structlog.get_logger()


class InForce:
    """The written configuration, the profile and the pins. `keep_outputs` is told whose output is still wanted."""

    def __init__(
        self,
        entries: Entries,
        backends: Mapping[str, Backend],
        machine: devices.Machine,
        store: Store,
        keep_outputs: Callable[[Collection[str]], None],
        inbox: Inbox,
        clock: Callable[[], float],
    ) -> None:
        self._entries = entries
        self._backends = backends
        self._machine = machine
        self._store = store
        self._keep_outputs = keep_outputs
        self._inbox = inbox
        self._clock = clock
        self._written = Config()
        self._pins: Mapping[str, bool] = {}
        self._changing = asyncio.Lock()
        self._loaded_s = clock()
        self._error: str | None = None
        self._began = False

    async def configure(self, config: Config) -> None:
        """Put a file's valid configuration in force, with the profile that is, if the file still has it."""
        async with self._changing:
            profile = self._entries.config.profile
            if profile is not None and profile not in config.profiles:
                log.warning("the profile in force is gone from the configuration", profile=profile)
            await self._put(config, profile)
            self._error, self._loaded_s = None, self._clock()

    async def switch_profile(self, name: str | None) -> None:
        """See `Door.switch_profile`."""
        async with self._changing:
            if name is not None and name not in self._written.profiles:
                known = ", ".join(self._written.profiles) or "none"
                raise UnknownProfileError(f"there is no profile {name[:64]!r}; the configuration has: {known}")
            await self._put(self._written, name)
            log.info("profile switched", profile=name)

    async def pin(self, model_id: str, *, pinned: bool) -> None:
        """See `Door.pin`."""
        async with self._changing:
            self._pins = {**self._pins, model_id: pinned}
            await self._put(self._written, self._entries.config.profile)
        log.info("pinned" if pinned else "unpinned", model=model_id)

    def refused(self, error: str) -> None:
        """A new configuration was refused; say so in the status until a valid one comes."""
        self._error = error

    def status(self) -> ConfigStatus:
        config = self._entries.config
        return ConfigStatus(
            path=None if config.path is None else str(config.path),
            loaded_ago_s=self._clock() - self._loaded_s,
            error=self._error,
            profile=config.profile,
        )

    async def _put(self, written: Config, profile: str | None) -> None:
        """Files are inspected first, then everything changes in one step."""
        self._pins = {name: pinned for name, pinned in self._pins.items() if name in written.models}
        config = with_pins(in_profile(written, profile), self._pins)
        entries = await self._entries.inspect(config)

        def swap() -> ev.Event:
            self._written = written
            self._keep_outputs(entries)
            return self._entries.replace(config, entries)

        self._inbox.put(ev.DevicesChanged(devices.budgets(config.memory, self._machine)))
        self._inbox.put(ev.SparesChanged(catalog.spare_sizes(config, self._backends)))
        if not self._began:
            # What was handed over before a restart still is.
            for device in self._store.paused() & {one.name for one in self._machine.devices}:
                self._inbox.put(ev.PauseAsked(f"kept {device}", device))
            self._began = True
        await self._inbox.do(swap)
