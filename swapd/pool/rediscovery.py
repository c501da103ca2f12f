"""Looks for the machine's devices again: after it has slept, and while one is missing or does not answer.

The list of devices is that of the start: a further GPU is taken up by a restart. One that is missing, or whose name now
means another, is told to the core as not found. Must never decide what becomes of workers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from swapd.core.events import DevicesFound
from swapd.core.spec import RAM
from swapd.pool.devices import Device, Machine

log = structlog.get_logger()

EVERY_S = 5.0
"""How often the clocks are compared."""
MISSING_EVERY_S = 15.0
"""How often a missing device is looked for. After a suspend a driver may need a moment, and a lost GPU a reset."""


class Rediscovery:
    """`discover` looks at the machine, and blocks; `slept_s` says for how long it has slept since it was last asked,
    `doubts` whether a device does not answer that should."""

    def __init__(
        self,
        known: Machine,
        discover: Callable[[], Machine],
        slept_s: Callable[[], float],
        doubts: Callable[[], bool],
        post: Callable[[DevicesFound], None],
    ) -> None:
        self._known = known
        self._discover = discover
        self._slept_s = slept_s
        self._doubts = doubts
        self._post = post
        self._is_missing = False

    async def run(self) -> None:
        """For ever."""
        waited_s = 0.0
        while True:
            await asyncio.sleep(EVERY_S)
            waited_s += EVERY_S
            slept_s = self._slept_s()
            if slept_s or (waited_s >= MISSING_EVERY_S and (self._is_missing or self._doubts())):
                waited_s = 0.0
                await self.look(slept_s)

    async def look(self, slept_s: float = 0.0) -> None:
        """Look at the machine, and post what of the list is there."""
        found = await asyncio.to_thread(self._discover)
        present = still_there(self._known, found)
        self._is_missing = len(present) < len(self._known.devices)
        if slept_s or self._is_missing:
            log.info("devices looked for", slept_s=round(slept_s, 1), present=sorted(present), remarks=found.remarks)
        self._post(DevicesFound(present, slept_s))


def still_there(known: Machine, found: Machine) -> frozenset[str]:
    """The devices of the list that are found under the same name: a name that now means another GPU does not count."""
    again = {device.name: device for device in found.devices}
    return frozenset(
        device.name
        for device in known.devices
        if device.name == RAM
        or (device.name in again and _identity(known, device) == _identity(found, again[device.name]))
    )


def _identity(machine: Machine, device: Device) -> tuple[object, ...]:
    """A GPU whose driver answers no more has another kind of meter, or none: it is not the one that it was."""
    meter = machine.meters.get(device.name)
    return (type(meter), getattr(meter, "pci", ""), device.description, device.shares)
