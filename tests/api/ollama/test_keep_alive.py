from math import inf

import pytest

from swapd.api.ollama.keep_alive import keep_alive_s
from swapd.errors import BadRequestError


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (0, 0.0),
        (300, 300.0),
        (0.5, 0.5),
        (-1, inf),
        (-0.1, inf),
        ("0", 0.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        (".5s", 0.5),
        ("250ms", 0.25),
        ("-1s", inf),
        ("+10s", 10.0),
        ("-0", 0.0),
        ("2562047h47m", inf),
        (1e300, inf),
    ],
)
def test_numbers_are_seconds_and_texts_are_durations_of_go(value: float | str | None, seconds: float | None) -> None:
    assert keep_alive_s(value) == pytest.approx(seconds)


@pytest.mark.parametrize("value", ["300", "", "m", "5 m", "5d", "1h-5m", "five", ".s", "5m" * 40, "1e3s"])
def test_other_texts_are_refused_by_name(value: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        keep_alive_s(value)
    assert caught.value.param == "keep_alive"
