"""A worker's states and what moves it between them. The table is the documentation.

`docs/states.md` is printed from it. A missing cell is an impossible transition and raises.
"""

from __future__ import annotations

from enum import Enum


class WorkerState(Enum):
    LAUNCHING = "launching"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    GONE = "gone"

    # Asked of every worker again and again; an enumeration's own hash is worked out from the name each time.
    __hash__ = object.__hash__


MEANING = {
    WorkerState.LAUNCHING: "memory is reserved; the process is being started",
    WorkerState.LOADING: "the process runs and loads the model",
    WorkerState.READY: "it serves requests, or waits for some",
    WorkerState.DRAINING: "it finishes what it runs and gets nothing new",
    WorkerState.STOPPING: "it was told to end; its memory is still charged",
    WorkerState.GONE: "the process is reaped; a GPU's bytes stay charged until they are seen to be back",
}


class Cause(Enum):
    STARTED = "started"
    LOADED = "loaded"
    DRAIN_ASKED = "drain asked"
    REPRIEVED = "reprieved"
    STOP_ASKED = "stop asked"
    EXITED = "exited"


CAUSE_MEANING = {
    Cause.STARTED: "the process exists",
    Cause.LOADED: "the worker reported that it is ready",
    Cause.DRAIN_ASKED: "it has to leave while requests run on it",
    Cause.REPRIEVED: "the model that it was to make room for no longer wants it",
    Cause.STOP_ASKED: "nothing runs on it any more, its time is up, or it is stuck",
    Cause.EXITED: "the process ended, by itself or not, or could not be started",
}

TRANSITIONS: dict[WorkerState, dict[Cause, WorkerState]] = {
    WorkerState.LAUNCHING: {
        Cause.STARTED: WorkerState.LOADING,
        Cause.STOP_ASKED: WorkerState.STOPPING,
        Cause.EXITED: WorkerState.GONE,
    },
    WorkerState.LOADING: {
        Cause.LOADED: WorkerState.READY,
        Cause.STOP_ASKED: WorkerState.STOPPING,
        Cause.EXITED: WorkerState.GONE,
    },
    WorkerState.READY: {
        Cause.DRAIN_ASKED: WorkerState.DRAINING,
        Cause.STOP_ASKED: WorkerState.STOPPING,
        Cause.EXITED: WorkerState.GONE,
    },
    WorkerState.DRAINING: {
        Cause.REPRIEVED: WorkerState.READY,
        Cause.STOP_ASKED: WorkerState.STOPPING,
        Cause.EXITED: WorkerState.GONE,
    },
    WorkerState.STOPPING: {
        # News that was on its way when the stop was asked.
        Cause.STARTED: WorkerState.STOPPING,
        Cause.LOADED: WorkerState.STOPPING,
        Cause.EXITED: WorkerState.GONE,
    },
    WorkerState.GONE: {},
}


class ImpossibleTransitionError(AssertionError):
    """A worker was told something that cannot happen to it in its state: a defect of swapd."""


def after(state: WorkerState, cause: Cause) -> WorkerState:
    """The state that follows. Raises `ImpossibleTransitionError` where the table has no cell."""
    try:
        return TRANSITIONS[state][cause]
    except KeyError:
        raise ImpossibleTransitionError(f"a worker that is {state.value} cannot be {cause.value}") from None


def as_markdown() -> str:
    """The table as the page `docs/states.md`."""
    causes = list(Cause)
    lines = [
        "# Worker states",
        "",
        "Printed from `swapd/core/lifecycle.py` by `scripts/print-states`; a test keeps the two the same.",
        "",
        "A worker is one process that holds one model. It moves only along this table; an empty cell is",
        "impossible, and the daemon stops rather than go on from there.",
        "",
        "| state | " + " | ".join(cause.value for cause in causes) + " |",
        "| --- |" + " --- |" * len(causes),
    ]
    for state, row in TRANSITIONS.items():
        cells = [row[cause].value if cause in row else "" for cause in causes]
        lines.append(f"| **{state.value}** | " + " | ".join(cells) + " |")
    lines += ["", "## What the states mean", ""]
    lines += [f"- **{state.value}**: {MEANING[state]}." for state in WorkerState]
    lines += ["", "## What moves a worker", ""]
    lines += [f"- **{cause.value}**: {CAUSE_MEANING[cause]}." for cause in Cause]
    return "\n".join(lines) + "\n"
