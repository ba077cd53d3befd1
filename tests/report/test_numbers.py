from __future__ import annotations

import pytest

from graphprune.macs import Macs
from graphprune.report import numbers


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (0.0123, "0.0123"),
        (0.12345, "0.123"),
        (1.2345, "1.23"),
        (12.345, "12.3"),
        (99.96, "100.0"),
        (123.4, "123"),
        (1234.5, "1,234"),
        (-0.5, "-0.500"),
        (3.07e-6, "3.07e-06"),
        (float("nan"), "–"),
        (float("inf"), "–"),
        (None, "–"),
    ],
)
def test_three_digits(value: float | None, shown: str) -> None:
    assert numbers.significant(value) == shown


def test_units() -> None:
    assert numbers.duration(812.3) == "812 µs"
    assert numbers.duration(12_345) == "12.3 ms"
    assert numbers.duration(2_500_000) == "2.50 s"
    assert numbers.duration(None) == numbers.size(None) == numbers.percent(None) == numbers.NONE
    assert numbers.short(591_360) == "591 k"
    assert numbers.short(64) == "64"
    assert numbers.size(90_261_504) == "90.3 MB"
    assert numbers.size(512) == "512 B"
    assert numbers.percent(0.1234) == "12.3%"
    assert numbers.whole(1_181_568) == "1,181,568"
    assert numbers.formula(Macs.of(6, "batch", "sequence")) == "batch × sequence × 6"
    assert numbers.formula(Macs.of(7_667_712)) == "7,667,712"
    assert numbers.formula(Macs()) == "0"
