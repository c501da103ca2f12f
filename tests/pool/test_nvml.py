"""NVIDIA's driver, scripted: there is none where tests run."""

from __future__ import annotations

import pynvml
import pytest
from support.machines import GIB, NvidiaGpu, ScriptedNvml

from swapd.pool.nvml import NvidiaCard, NvidiaMemory, cards, read

PCI = "0000:01:00.0"


def test_every_gpu_is_listed_with_the_kernels_address() -> None:
    nvml = ScriptedNvml(NvidiaGpu("00000000:01:00.0"), NvidiaGpu("00000001:0A:00.0", name="NVIDIA L4", total=22 * GIB))
    assert cards(nvml) == (
        NvidiaCard(PCI, "NVIDIA GeForce RTX 3090", 24 * GIB, 23 * GIB),
        NvidiaCard("0001:0a:00.0", "NVIDIA L4", 22 * GIB, 23 * GIB),
    )


def test_without_a_driver_there_are_none() -> None:
    nvml = ScriptedNvml(driver=False)
    assert cards(nvml) == ()
    assert read(nvml, PCI) is None


def test_the_real_module_is_asked_in_the_same_way() -> None:
    """Without a driver it answers by its own exception; with one, by cards."""
    assert isinstance(cards(pynvml), tuple)


def test_each_process_has_the_larger_of_what_it_computes_and_draws_with() -> None:
    gpu = NvidiaGpu("00000000:01:00.0", free=20 * GIB, computing={7: 3 * GIB, 8: GIB}, drawing={8: GIB, 9: 5})
    assert read(ScriptedNvml(gpu), PCI) == NvidiaMemory(20 * GIB, {7: 3 * GIB, 8: GIB, 9: 5})


@pytest.mark.parametrize("kind", ["computing", "drawing"])
def test_a_driver_that_does_not_tell_of_one_process_tells_of_none(kind: str) -> None:
    gpu = NvidiaGpu("00000000:01:00.0", **{kind: {7: 3 * GIB, 8: None}})  # type: ignore[arg-type]
    assert read(ScriptedNvml(gpu), PCI) == NvidiaMemory(23 * GIB, None)


def test_a_lost_gpu_gives_no_answer() -> None:
    assert read(ScriptedNvml(NvidiaGpu("00000000:01:00.0", lost=True)), PCI) is None


def test_the_driver_is_closed_after_each_question_whatever_it_answered() -> None:
    nvml = ScriptedNvml(NvidiaGpu("00000000:01:00.0"), NvidiaGpu("00000000:02:00.0", lost=True))
    cards(nvml)
    read(nvml, PCI)
    read(nvml, "0000:02:00.0")
    read(nvml, "0000:77:00.0")
    assert (nvml.opened, nvml.most_opened) == (0, 1)
