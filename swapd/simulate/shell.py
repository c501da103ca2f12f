"""The shell's contract without processes: events go to a scheduler, and what it wants done is done in virtual time.

Owns the clock, the one timer, and the machine's own account of its memory. What loads, requests and faults are like
is a subclass's to say; it must post exactly one WorkerExited for each Launch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from swapd.core import effects as ef
from swapd.core import events as ev
from swapd.core.pages import Pages
from swapd.core.spec import RAM, DeviceSpec, ModelSpec
from swapd.simulate.clock import Clock

SAMPLE_S = 0.001
"""Until a device that is asked has answered."""

Decide = Callable[[ev.Event, float], Sequence[ef.Effect]]
"""A scheduler: what to do after an event, at a time in seconds."""


@dataclass(slots=True)
class Process:
    """What the machine knows of one worker."""

    model_id: str
    device_bytes: dict[str, int]
    pages: Pages | None = None
    """In RAM beside `device_bytes`, shared, and no part of what is held or not free: the kernel can drop them."""
    alive: bool = True
    running: set[str] = field(default_factory=set)


class Shell(ABC):
    """Drives one scheduler."""

    def __init__(self, decide: Decide, devices: Iterable[DeviceSpec]) -> None:
        self.clock = Clock()
        self.steps = 0
        listed = list(devices)
        self._late = {spec.name for spec in listed if spec.settles}
        self.processes: dict[int, Process] = {}
        #: Bytes that no process of ours holds.
        self.device_free = {spec.name: spec.total_bytes for spec in listed}
        self._decide = decide
        self._timer: int | None = None

    def start(self, devices: Sequence[DeviceSpec], models: Sequence[ModelSpec]) -> None:
        """What a daemon's scheduler is told first."""
        self.post(ev.DevicesChanged(tuple(devices)))
        self.post(ev.ModelsChanged(tuple(models)))

    @property
    def now_s(self) -> float:
        return self.clock.now_s

    def post(self, event: ev.Event) -> None:
        self.steps += 1
        for effect in self._decide(event, self.now_s):
            self._perform(effect)

    def post_if_alive(self, worker_id: int, event: ev.Event) -> None:
        process = self.processes.get(worker_id)
        if process is not None and process.alive:
            self.post(event)

    def _perform(self, effect: ef.Effect) -> None:
        match effect:
            case ef.Launch(worker_id, model_id, placement):
                process = Process(model_id, dict(placement.device_bytes), self.pages(effect))
                if process.pages is not None:
                    process.device_bytes[RAM] -= process.pages.size_bytes
                self.processes[worker_id] = process
                for name, size_bytes in process.device_bytes.items():
                    self.device_free[name] -= size_bytes
                self.launch(effect, process)
            case ef.Stop():
                self.stop(effect)
            case ef.Grant():
                process = self.processes[effect.worker_id]
                assert process.alive, "a grant to a process that is gone"
                process.running.add(effect.request_id)
                self.serve(effect)
            case ef.Reject():
                self.refuse(effect)
            case ef.Sample(device):
                self.sample(device)
            case ef.SetTimer(at_s):
                self._set_timer(at_s)
            case _:
                self.note(effect)

    # -- what a subclass says ------------------------------------------------------------------------------------

    @abstractmethod
    def pages(self, effect: ef.Launch) -> Pages | None:
        """What a worker that is launched so maps of files that others may map too."""

    @abstractmethod
    def launch(self, effect: ef.Launch, process: Process) -> None:
        """Its memory is already taken."""

    @abstractmethod
    def stop(self, effect: ef.Stop) -> None: ...

    @abstractmethod
    def serve(self, effect: ef.Grant) -> None:
        """The request is already among those that the process runs."""

    @abstractmethod
    def refuse(self, effect: ef.Reject) -> None: ...

    @abstractmethod
    def note(self, effect: ef.Effect) -> None:
        """What is only told."""

    # -- memory and the timer ------------------------------------------------------------------------------------

    def sample(self, name: str) -> None:
        """Answer with what is free now."""
        free_bytes = self.device_free[name]
        held = {number: one.device_bytes.get(name, 0) for number, one in self.processes.items() if one.alive}
        self.clock.at(SAMPLE_S, lambda: self.post(ev.MemorySampled(name, free_bytes, held)))

    def end(self, process: Process) -> None:
        """It is reaped. RAM is back at once, and what is part of it; a GPU's own memory is by `give_back`."""
        process.alive = False
        process.running.clear()
        for name in process.device_bytes.keys() - self._late:
            self.device_free[name] += process.device_bytes.pop(name)

    def give_back(self, process: Process) -> None:
        for name, size_bytes in process.device_bytes.items():
            self.device_free[name] += size_bytes

    def _set_timer(self, at_s: float | None) -> None:
        self._timer = None
        if at_s is None:
            return
        assert at_s > self.now_s

        def fire() -> None:
            if self._timer == number:
                self._timer = None
                self.post(ev.TimerFired())

        number = self.clock.at_time(at_s, fire)
        self._timer = number
