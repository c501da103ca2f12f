"""A worker's states and a sleeper's, and what moves them between these. The tables are the documentation.

`docs/states.md` is printed from them. A missing cell is an impossible transition and raises.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import TypeVar

_State = TypeVar("_State", bound=Enum)
_Cause = TypeVar("_Cause", bound=Enum)


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


class SleeperState(Enum):
    """Of a process that sleeps in place of ending, so that its model is back sooner. No worker while it does."""

    FALLING = "falling asleep"
    ASLEEP = "asleep"
    WAKING = "waking"
    LEAVING = "leaving"
    GONE = "gone"

    __hash__ = object.__hash__


SLEEPER_MEANING = {
    SleeperState.FALLING: "its worker stops; what it keeps while it sleeps is reserved beside that one's memory",
    SleeperState.ASLEEP: "it holds what it keeps, and serves nobody",
    SleeperState.WAKING: "it is a worker again, which loads; what it kept and that worker has not is still charged",
    SleeperState.LEAVING: "it was told to end; what it keeps is still charged",
    SleeperState.GONE: "it has ended, or is a worker that is ready",
}


class SleeperCause(Enum):
    FELL_ASLEEP = "fell asleep"
    WAKE_ASKED = "wake asked"
    AWOKE = "awoke"
    END_ASKED = "end asked"
    EXITED = "exited"


SLEEPER_CAUSE_MEANING = {
    SleeperCause.FELL_ASLEEP: "the program has said that it sleeps",
    SleeperCause.WAKE_ASKED: "its model is wanted, and there is room",
    SleeperCause.AWOKE: "the worker that it is now is ready",
    SleeperCause.END_ASKED: "others need what it keeps, or its model does not want it back",
    SleeperCause.EXITED: "the process ended, by itself or not, or did not do as it was asked and was ended",
}

SLEEPER_TRANSITIONS: dict[SleeperState, dict[SleeperCause, SleeperState]] = {
    SleeperState.FALLING: {
        SleeperCause.FELL_ASLEEP: SleeperState.ASLEEP,
        SleeperCause.END_ASKED: SleeperState.LEAVING,
        SleeperCause.EXITED: SleeperState.GONE,
    },
    SleeperState.ASLEEP: {
        SleeperCause.WAKE_ASKED: SleeperState.WAKING,
        SleeperCause.END_ASKED: SleeperState.LEAVING,
        SleeperCause.EXITED: SleeperState.GONE,
    },
    SleeperState.WAKING: {
        SleeperCause.AWOKE: SleeperState.GONE,
        SleeperCause.EXITED: SleeperState.GONE,
    },
    SleeperState.LEAVING: {
        # News that was on its way when the end was asked.
        SleeperCause.FELL_ASLEEP: SleeperState.LEAVING,
        SleeperCause.EXITED: SleeperState.GONE,
    },
    SleeperState.GONE: {},
}


class ImpossibleTransitionError(AssertionError):
    """A worker was told something that cannot happen to it in its state: a defect of swapd."""


def after(state: WorkerState, cause: Cause) -> WorkerState:
    """The state that follows. Raises `ImpossibleTransitionError` where the table has no cell."""
    try:
        return TRANSITIONS[state][cause]
    except KeyError:
        raise ImpossibleTransitionError(f"a worker that is {state.value} cannot be {cause.value}") from None


def after_sleeping(state: SleeperState, cause: SleeperCause) -> SleeperState:
    """As `after`, for a sleeper."""
    try:
        return SLEEPER_TRANSITIONS[state][cause]
    except KeyError:
        raise ImpossibleTransitionError(f"a sleeper that is {state.value} cannot have {cause.value}") from None


def as_markdown() -> str:
    """The tables as the page `docs/states.md`."""
    lines = [
        "# Worker states",
        "",
        "Printed from `swapd/core/lifecycle.py` by `scripts/print-states`; a test keeps the two the same.",
        "",
        "A worker is one process that holds one model. It moves only along this table; an empty cell is",
        "impossible, and the daemon stops rather than go on from there.",
        "",
        *_table(TRANSITIONS, Cause, MEANING, CAUSE_MEANING, "What the states mean", "What moves a worker"),
        "",
        "# Sleepers",
        "",
        "A program that can sleep ([vLLM](backends.md#vllm)) does so in place of ending when its model makes room.",
        "A sleeper is no worker: it gets no requests.",
        "",
        *_table(
            SLEEPER_TRANSITIONS,
            SleeperCause,
            SLEEPER_MEANING,
            SLEEPER_CAUSE_MEANING,
            "What a sleeper's states mean",
            "What moves a sleeper",
        ),
    ]
    return "\n".join(lines) + "\n"


def _table(
    transitions: Mapping[_State, Mapping[_Cause, _State]],
    causes: Iterable[_Cause],
    meaning: Mapping[_State, str],
    cause_meaning: Mapping[_Cause, str],
    states_title: str,
    causes_title: str,
) -> list[str]:
    columns = list(causes)
    lines = [
        "| state | " + " | ".join(cause.value for cause in columns) + " |",
        "| --- |" + " --- |" * len(columns),
    ]
    for state, row in transitions.items():
        cells = [row[cause].value if cause in row else "" for cause in columns]
        lines.append(f"| **{state.value}** | " + " | ".join(cells) + " |")
    lines += ["", f"## {states_title}", ""]
    lines += [f"- **{state.value}**: {meaning[state]}." for state in transitions]
    lines += ["", f"## {causes_title}", ""]
    return lines + [f"- **{cause.value}**: {cause_meaning[cause]}." for cause in columns]
