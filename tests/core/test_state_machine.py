"""Any order of events keeps every invariant, and in the quiet afterwards nothing waits for ever.

Where the simulation plays whole afternoons, this looks for short, strange orders, and shrinks what it finds.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.simulation import MIB, deep_costs, elsewhere, gpu, metered, model, ram
from support.stepper import Stepper, gpu_model, only

from swapd.core import effects as ef
from swapd.core import events as ev
from swapd.core.lifecycle import WorkerState
from swapd.core.records import LEAVING_STATES, Worker
from swapd.core.spec import ModelSpec

MODELS = (
    model("small", 200, slots=1, replicas=2, mapped_files="small", max_wait_s=5.0, queue_timeout_s=400.0),
    model(
        "large", 900, slots=2, max_wait_s=10.0, turn_s=3.0, max_waiting=3, has_portable_mode=True, mapped_files="large"
    ),
    model("pinned", 100, pin=True, drain_s=4.0, slots=1, replicas=2),
    gpu_model("gpu", 400, slots=1, idle_unload_s=20.0, replicas=3),
    gpu_model("other", 600, slots=1, turn_s=0.0, priority=1, has_portable_mode=True),
    replace(model("deep", 1200, gpu=True, slots=2, max_wait_s=8.0), costs=deep_costs(1200, experts=True)),
    model("huge", 9000),
    elsewhere("cloud", slots=1, first_token_timeout_s=300.0),
    model("twin", 900, slots=1, max_wait_s=10.0, mapped_files="large"),
)
NAMES = [spec.id for spec in MODELS]
DEVICES = (metered("CUDA0", 1000, reserve_mib=50), gpu("CUDA1", 500), ram(1200))

names = st.sampled_from(NAMES)
places = st.integers(0, 7)


class Histories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        self.stepper = Stepper(DEVICES, *MODELS)
        self.models: tuple[ModelSpec, ...] = MODELS
        self.asks: dict[str, bool] = {}

    # -- the shell's contract ----------------------------------------------------------------------------------

    def post(self, event: ev.Event) -> None:
        self.note(self.stepper.post(event))

    def note(self, effects: list[ef.Effect]) -> None:
        for answer in only(ef.Answer, effects):
            assert not self.asks[answer.ask_id], "an ask was answered twice"
            self.asks[answer.ask_id] = True
        for reject in only(ef.Reject, effects):
            assert reject.refusal.message
            assert reject.refusal.retry_after_s is None or reject.refusal.retry_after_s > 0

    def fresh(self, prefix: str) -> str:
        self.number += 1
        return f"{prefix}{self.number}"

    def some_worker(self, place: int, *states: WorkerState) -> Worker | None:
        found = [worker for worker in self.stepper.ledger.workers.values() if not states or worker.state in states]
        return found[place % len(found)] if found else None

    # -- what happens ------------------------------------------------------------------------------------------

    @rule(name=names, client=st.sampled_from("abc"), priority=st.integers(0, 1), times=st.sampled_from([1, 1, 1, 4]))
    def arrive(self, name: str, client: str, priority: int, times: int) -> None:
        for _ in range(times):
            request_id = self.fresh("r")
            if times == 1 or len(self.stepper.ledger.waiting) < 30:
                self.post(ev.RequestArrived(request_id, name, client, priority))

    @precondition(lambda self: self.stepper.ledger.waiting or self.stepper.ledger.running)
    @rule(place=places)
    def cancel(self, place: int) -> None:
        known = [*self.stepper.ledger.waiting, *self.stepper.ledger.running]
        self.post(ev.RequestCancelled(known[place % len(known)]))

    @precondition(lambda self: self.stepper.ledger.running)
    @rule(place=places, ok=st.booleans(), tokens=st.integers(0, 1000))
    def finish(self, place: int, ok: bool, tokens: int) -> None:
        running = list(self.stepper.ledger.running.values())
        request = running[place % len(running)]
        self.post(ev.TokensServed(request.model_id, request.client, tokens, request.id))
        self.post(ev.RequestFinished(request.id, ok))

    @rule(name=names, keep_alive_s=st.sampled_from([0.0, 3.0, 40.0, float("inf")]))
    def keep(self, name: str, keep_alive_s: float) -> None:
        self.post(ev.KeepAliveAsked(name, keep_alive_s))

    @rule(place=places)
    def start(self, place: int) -> None:
        worker = self.some_worker(place, WorkerState.LAUNCHING)
        if worker is not None:
            self.post(ev.WorkerStarted(worker.id))

    @rule(place=places)
    def become_ready(self, place: int) -> None:
        worker = self.some_worker(place, WorkerState.LAUNCHING, WorkerState.LOADING)
        if worker is not None:
            if worker.state is WorkerState.LAUNCHING:
                self.post(ev.WorkerStarted(worker.id))
            self.post(ev.WorkerReady(worker.id))

    @rule(place=places)
    def progress(self, place: int) -> None:
        worker = self.some_worker(place)
        if worker is not None:
            self.post(ev.WorkerProgressed(worker.id))

    @rule(
        place=places,
        kind=st.sampled_from([*[ev.ExitKind.FAILED] * 6, *ev.ExitKind]),
        device=st.sampled_from([None, "RAM", "CUDA0", "CUDA9"]),
    )
    def exit(self, place: int, kind: ev.ExitKind, device: str | None) -> None:
        worker = self.some_worker(place)
        if worker is not None:
            self.post(ev.WorkerExited(worker.id, kind, "it ended", device))

    @rule(place=places)
    def reap(self, place: int) -> None:
        worker = self.some_worker(place, WorkerState.STOPPING)
        if worker is not None:
            self.post(ev.WorkerExited(worker.id, ev.ExitKind.FAILED, "asked to"))

    @rule(seconds=st.sampled_from([0.01, 0.5, 2.0, 7.0, 30.0, 200.0]))
    def pass_time(self, seconds: float) -> None:
        self.note(self.stepper.wait(seconds))

    @rule(name=st.sampled_from(["CUDA0", "CUDA1"]), free_mib=st.sampled_from([0, 200, 300, 700, 1000]))
    def sample(self, name: str, free_mib: int) -> None:
        self.post(ev.MemorySampled(name, free_mib * MIB))

    @rule(name=st.sampled_from(["CUDA0", "CUDA1", "RAM", "CUDA9"]), pause=st.booleans())
    def hand_over(self, name: str, pause: bool) -> None:
        ask_id = self.fresh("a")
        self.asks[ask_id] = False
        self.post(ev.PauseAsked(ask_id, name) if pause else ev.ResumeAsked(ask_id, name))

    @rule(present=st.sets(st.sampled_from(["CUDA0", "CUDA1", "RAM"])), slept_s=st.sampled_from([0.0, 60.0]))
    def find(self, present: set[str], slept_s: float) -> None:
        self.post(ev.DevicesFound(frozenset(present), slept_s))

    @rule(name=names, load=st.booleans())
    def ask(self, name: str, load: bool) -> None:
        ask_id = self.fresh("a")
        self.asks[ask_id] = False
        self.post(ev.LoadAsked(ask_id, name) if load else ev.UnloadAsked(ask_id, name))

    @rule(name=names, what=st.sampled_from(["key", "pin", "gone", "back", "patience", "replicas"]))
    def reload(self, name: str, what: str) -> None:
        listed = {spec.id: spec for spec in self.models}
        spec = listed.get(name)
        if what == "back" or spec is None:
            listed[name] = MODELS[NAMES.index(name)]
        elif what == "gone":
            del listed[name]
        elif what == "key":
            listed[name] = replace(spec, launch_key=self.fresh("k"))
        elif what == "pin":
            listed[name] = replace(spec, pin=not spec.pin)
        elif what == "replicas":
            listed[name] = replace(spec, replicas=3 if spec.replicas == 1 else 1)
        else:
            listed[name] = replace(spec, max_wait_s=1.0, queue_timeout_s=15.0, idle_unload_s=3.0, max_waiting=1)
        self.models = tuple(listed.values())
        self.post(ev.ModelsChanged(self.models))

    @rule(share=st.sampled_from([0.3, 0.7, 1.0]), without=st.integers(0, 2))
    def change_budgets(self, share: float, without: int) -> None:
        specs = [replace(spec, budget_bytes=int(spec.total_bytes * share)) for spec in DEVICES]
        self.post(ev.DevicesChanged(tuple(specs[without:])))

    # -- what must hold ----------------------------------------------------------------------------------------

    @invariant()
    def the_ledger_adds_up(self) -> None:
        self.stepper.ledger.check()

    @invariant()
    def the_next_timer_lies_ahead(self) -> None:
        due_s = self.stepper.ledger.timer_at_s
        assert due_s is None or due_s > self.stepper.now_s

    @invariant()
    def a_worker_of_the_old_settings_never_gets_requests(self) -> None:
        ledger = self.stepper.ledger
        for worker in ledger.workers.values():
            model = ledger.models.get(worker.model_id)
            current = model is not None and model.spec.launch_key == worker.spec.launch_key
            assert current or worker.state in LEAVING_STATES

    def teardown(self) -> None:
        """Quiet: no more faults and no more arrivals. All that waits is served or told why not, in bounded time."""
        self.post(ev.DevicesChanged(DEVICES))
        self.post(ev.DevicesFound(frozenset(spec.name for spec in DEVICES)))
        for spec in DEVICES:
            self.hand_over(spec.name, False)
        ledger = self.stepper.ledger
        for _ in range(200):
            if self.is_at_rest():
                return
            self.one_quiet_step()
        raise AssertionError(f"still not at rest: {ledger!r}, asks {self.asks}, settling {ledger.settling}")

    def is_at_rest(self) -> bool:
        ledger = self.stepper.ledger
        moving = any(worker.state is not WorkerState.READY for worker in ledger.workers.values())
        return not (ledger.waiting or ledger.running or ledger.settling or moving) and all(self.asks.values())

    def one_quiet_step(self) -> None:
        for worker in list(self.stepper.ledger.workers.values()):
            match worker.state:
                case WorkerState.LAUNCHING:
                    self.post(ev.WorkerStarted(worker.id))
                case WorkerState.LOADING:
                    self.post(ev.WorkerReady(worker.id))
                case WorkerState.STOPPING:
                    self.post(ev.WorkerExited(worker.id, ev.ExitKind.FAILED, "asked to"))
                case _:
                    for request_id in list(worker.running):
                        self.post(ev.RequestFinished(request_id, True))
        for spec in DEVICES[:-1]:
            held = sum(
                worker.placement.device_bytes.get(spec.name, 0) for worker in self.stepper.ledger.workers.values()
            )
            self.post(ev.MemorySampled(spec.name, spec.total_bytes - held))
        self.note(self.stepper.wait(1.0))


Histories.TestCase.settings = settings(
    max_examples=120,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestHistories = Histories.TestCase
