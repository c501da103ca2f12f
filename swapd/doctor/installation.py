"""Checks of what is installed: Python, the packages that must fit each other, backends and the devices they see.

Must never import an engine: what it sees, a helper process tells.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from swapd.doctor.findings import Finding, fail, ok, warn
from swapd.pool.devices import Machine

BINDINGS = "llama-cpp-python"
GIB = 1024**3
_BOUND = re.compile(r"(>=|<=|==|!=|<|>)\s*([\d.]+)")


def python(version: Sequence[int]) -> Finding:
    text = ".".join(str(part) for part in version[:3])
    if tuple(version[:2]) < (3, 11):
        return fail("Python", text, "install 3.11 or newer, and swapd with it")
    return ok("Python", text)


def bindings(installed: str | None, requirements: Iterable[str]) -> Finding:
    """llama-cpp-python's structs follow llama.cpp's: a version that was not tested can corrupt memory."""
    wanted = next((one for one in requirements if re.match(rf"{BINDINGS}\b", one)), BINDINGS)
    if installed is None:
        return fail(BINDINGS, "not installed", f"pip install '{wanted}'")
    if not fits(installed, wanted):
        return fail(BINDINGS, f"{installed}, and swapd was tested with {wanted}", f"pip install '{wanted}'")
    return ok(BINDINGS, installed)


def fits(version: str, requirement: str) -> bool:
    """Whether a plain version such as 0.3.36 is within a requirement's bounds."""
    have = _numbers(version)
    compare: dict[str, Callable[[tuple[int, ...]], bool]] = {
        ">=": lambda one: have >= one,
        "<=": lambda one: have <= one,
        "==": lambda one: have == one,
        "!=": lambda one: have != one,
        "<": lambda one: have < one,
        ">": lambda one: have > one,
    }
    return all(compare[sign](_numbers(bound)) for sign, bound in _BOUND.findall(requirement.partition(";")[0]))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def devices(machine: Machine, expects_gpu: bool) -> Iterator[Finding]:
    """What workers can be placed on. `expects_gpu`: a driver's files are there."""
    for remark in machine.remarks:
        yield warn("devices", remark, "see docs/install.md for wheels that use GPUs")
    for one in machine.devices:
        yield ok("device", f"{one.name}: {one.description}, {one.total_bytes / GIB:.1f} GiB")
    if expects_gpu and len(machine.devices) == 1 and not machine.remarks:
        remedy = f"install {BINDINGS} with CUDA, Vulkan or ROCm, see docs/install.md"
        yield warn("devices", "there is a GPU's driver, and the bindings see no GPU", remedy)
