"""Two clocks that a test moves."""

from __future__ import annotations

import time

from swapd.system.sleep import SleepWatch


class Clocks:
    def __init__(self) -> None:
        self.awake_s = self.asleep_s = 100.0

    def watch(self) -> SleepWatch:
        return SleepWatch(lambda: self.awake_s + self.asleep_s, lambda: self.awake_s)


def test_a_jump_of_one_clock_is_a_sleep_and_is_told_once() -> None:
    clocks = Clocks()
    watch = clocks.watch()
    clocks.awake_s += 5.0
    assert watch.slept_s() == 0.0
    clocks.asleep_s += 3600.0
    clocks.awake_s += 1.0
    assert watch.slept_s() == 3600.0
    assert watch.slept_s() == 0.0


def test_reading_two_clocks_one_after_the_other_is_no_sleep() -> None:
    clocks = Clocks()
    watch = clocks.watch()
    clocks.asleep_s += 0.01
    assert watch.slept_s() == 0.0


def test_the_kernels_clocks_have_not_slept_during_this_test() -> None:
    watch = SleepWatch(lambda: time.clock_gettime(time.CLOCK_BOOTTIME), time.monotonic)
    assert watch.slept_s() == 0.0
