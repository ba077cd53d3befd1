"""Numbers as people read them; what is not known is a dash."""

from __future__ import annotations

import math

from graphprune.macs import Macs

NONE = "–"
_DIGITS = 6  # after the point; smaller numbers have an exponent
_LONGEST = 160  # letters of a name: one of a fused node lists all that it was made of
_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def clip(name: str) -> str:
    """A name from a model, shortened in its middle where it is very long."""
    half = _LONGEST // 2
    return name if len(name) <= _LONGEST else f"{name[:half]} … {name[-half:]}"


def significant(value: float | None) -> str:
    """Three digits, as many of them after the point as that takes: 0.0123, 1.23, 123, 1,235."""
    if value is None or not math.isfinite(value):
        return NONE
    if abs(value) >= 100 or value == 0:
        return f"{value:,.0f}"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{value:.{digits}f}" if digits <= _DIGITS else f"{value:.2e}"


def short(value: float | None) -> str:
    """A count: 1.18 M, 12.3 k, 640."""
    return _scaled(value, _STEPS, "")


def size(value: float | None) -> str:
    """Bytes, in powers of a thousand: 90.3 MB."""
    return _scaled(value, _BYTES, "B")


def whole(value: float | None) -> str:
    """All digits: 1,181,568."""
    return NONE if value is None else f"{value:,.0f}"


def duration(microseconds: float | None) -> str:
    """A time, given in microseconds: 812 µs, 1.23 ms."""
    if microseconds is None:
        return NONE
    if microseconds < 1000:
        return f"{significant(microseconds)} µs"
    return (
        f"{significant(microseconds / 1e3)} ms"
        if microseconds < 1e6
        else f"{significant(microseconds / 1e6)} s"
    )


def percent(share: float | None) -> str:
    """A share: 12.3%."""
    return NONE if share is None else f"{share:.1%}"


def formula(macs: Macs) -> str:
    """Multiply-accumulates with their symbolic sizes."""
    return " + ".join(" × ".join((*names, f"{count:,}")) for names, count in macs.terms) or "0"


def _scaled(value: float | None, steps: tuple[tuple[float, str], ...], unit: str) -> str:
    if value is None:
        return NONE
    for factor, name in steps:
        if abs(value) >= factor:
            return f"{significant(value / factor)} {name}"
    return f"{value:.0f} {unit}".strip() if value == round(value) else f"{significant(value)} {unit}".strip()
