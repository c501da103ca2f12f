"""Checks of what is installed."""

from __future__ import annotations

import pytest

from swapd.doctor import installation
from swapd.pool.devices import Device, Machine

WANTED = ("aiohttp>=3.14", "llama-cpp-python<0.3.37,>=0.3.36", 'types; extra == "dev"')
RAM = Device("RAM", "host memory", 8 * 2**30, 2**30)


@pytest.mark.parametrize(
    ("version", "requirement", "fit"),
    [
        ("0.3.36", "x<0.3.37,>=0.3.36", True),
        ("0.3.37", "x<0.3.37,>=0.3.36", False),
        ("0.3.9", "x>=0.3.36", False),
        ("1.0", "x==1.0; python_version < '3'", True),
        ("2.0", "x!=2.0", False),
        ("2.0", "x>1.9,<=2.0", True),
        ("2.0", "x", True),
    ],
)
def test_a_version_fits_a_requirement_by_its_numbers(version: str, requirement: str, fit: bool) -> None:
    assert installation.fits(version, requirement) is fit


def test_bindings_of_another_version_are_named_with_the_command_that_mends_it() -> None:
    assert installation.bindings("0.3.36", WANTED).grade == "ok"
    for version in ("0.3.40", None):
        found = installation.bindings(version, WANTED)
        assert (found.grade, found.remedy) == ("fail", "pip install 'llama-cpp-python<0.3.37,>=0.3.36'")


def test_pythons_age_counts() -> None:
    assert installation.python((3, 11, 7)).grade == "ok"
    assert installation.python((3, 10, 1)).grade == "fail"


def test_a_driver_whose_gpu_the_bindings_do_not_see_is_worth_a_word() -> None:
    alone = list(installation.devices(Machine((RAM,)), expects_gpu=False))
    assert [(one.grade, one.said) for one in alone] == [("ok", "RAM: host memory, 8.0 GiB")]
    assert [one.grade for one in installation.devices(Machine((RAM,)), expects_gpu=True)] == ["ok", "warn"]
    remarked = installation.devices(Machine((RAM,), remarks=("the driver is too old",)), expects_gpu=True)
    first = next(iter(remarked))
    assert (first.grade, first.said) == ("warn", "the driver is too old")
