"""What a program takes: declared, else measured with a margin, else all."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from backends.base import Capabilities, Footprint, Inspection
from swapd.core.placement import MIB
from swapd.core.spec import RAM, LayerCosts, Placement
from swapd.pool.fixed import ASSUMED_RAM_BYTES, MARGIN_BYTES, fixed_of, with_margin, with_measured
from swapd.pool.measure import Run
from swapd.pool.ports import FIRST_PORT, PORTS, Ports
from swapd.pool.sysfs import PROC, family

GIB = 1024 * MIB


def inspection(**fields: object) -> Inspection:
    return Inspection(Footprint((0,), (0,), 0, 0, 0, 0), 1, Capabilities(), 0, places_itself=True, **fields)  # type: ignore[arg-type]


def test_what_is_declared_counts_and_its_processes_are_assumed_to_take_some_ram() -> None:
    declared = {"CUDA0": 20 * GIB}
    fixed = fixed_of(inspection(declared_bytes=declared), ["CUDA0", "CUDA1", RAM])
    assert fixed == {"CUDA0": 20 * GIB, RAM: ASSUMED_RAM_BYTES}
    measured = {"CUDA0": 9 * GIB, RAM: 4 * GIB}
    assert with_measured(fixed, declared, measured) == {"CUDA0": 20 * GIB, RAM: with_margin(4 * GIB)}


def test_without_a_word_nothing_is_known_of_the_gpus_it_may_use() -> None:
    assert fixed_of(inspection(), ["CUDA0", "CUDA1", RAM]) == {"CUDA0": None, "CUDA1": None, RAM: None}
    assert fixed_of(inspection(devices=("CUDA1",)), ["CUDA0", "CUDA1", RAM]) == {"CUDA1": None, RAM: None}


def test_what_was_measured_counts_with_a_margin_and_other_gpus_are_free() -> None:
    fixed = {"CUDA0": None, "CUDA1": None, RAM: None}
    measured = {"CUDA1": 8 * GIB, RAM: 100 * MIB}
    assert with_measured(fixed, {}, measured) == {"CUDA0": 0, "CUDA1": 9 * GIB, RAM: 100 * MIB + MARGIN_BYTES}
    assert with_measured(fixed, {}, {}) == fixed
    assert with_measured(fixed, {}, {RAM: GIB}) == {"CUDA0": None, "CUDA1": None, RAM: with_margin(GIB)}


def test_of_all_its_runs_the_largest_counts_until_it_runs_out_with_that() -> None:
    placement = Placement({"CUDA0": 10 * GIB, RAM: GIB}, 0, ("CUDA0",), "")
    costs = LayerCosts((0,), (0,), 0, 0)
    run = Run.of("m", "k", placement, costs, by_rows=False, maps=False, is_fixed=True)
    run.see("CUDA0", 3 * GIB)
    run.see(RAM, 20 * MIB)
    assert run.most_bytes({"CUDA0": 4 * GIB}) == {"CUDA0": 4 * GIB, RAM: 24 * MIB}, "less than a step is noise"
    assert run.host_beyond_bytes() is None, "nothing was worked out that this could be beyond"
    run.ran_out = True
    assert run.most_bytes({"CUDA0": 4 * GIB}) == {}


def test_a_workers_children_are_of_its_family() -> None:
    child = subprocess.Popen(
        ["/bin/sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert child.stdout is not None
    grandchild = int(child.stdout.readline())
    try:
        assert sorted(family(PROC, child.pid)) == sorted([child.pid, grandchild])
        assert {child.pid, grandchild} <= set(family(PROC, os.getpid()))
    finally:
        os.killpg(child.pid, 9)
        child.wait()
        child.stdout.close()
    gone = 2**22 + 1
    assert family(PROC, gone) == [gone]


def test_no_port_is_given_twice_nor_one_that_is_taken() -> None:
    ports = Ports()
    given = {ports.take() for _ in range(20)}
    assert len(given) == 20
    assert all(FIRST_PORT <= port < FIRST_PORT + PORTS for port in given)
    first = min(given)
    ports.give_back(first)
    assert ports.take() not in given, "one that was just given back rests"


def test_ports_are_below_those_of_outgoing_connections() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert lowest >= FIRST_PORT + PORTS
