"""Figures as a reader wants them."""

from __future__ import annotations

from typing import Any

from zephyr_kit.sizes import in_words

DASH = "–"
SHORT = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))
LONG = ((1e24, "YFLOP"), (1e21, "ZFLOP"), (1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"))


def figure(value: Any) -> str:
    """A value of any kind: four digits of a measured one, a dash for what does not apply."""
    if value is None:
        return DASH
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def short(value: float | None) -> str:
    """A count in three digits: `660 k`."""
    if value is None:
        return DASH
    unit, one = next(((unit, one) for unit, one in SHORT if abs(value) >= one), ("", 1.0))
    return f"{value / one:.3g} {unit}".strip()


def size(value: float | None) -> str:
    """Bytes."""
    return DASH if value is None else in_words(value)


def operations(value: float | None) -> str:
    """Floating-point operations."""
    if value is None:
        return DASH
    one, unit = next(((one, unit) for one, unit in LONG if value >= one), (1, "FLOP"))
    return f"{value / one:.3g} {unit}"


def duration(seconds: float | None) -> str:
    """A time in its two largest units."""
    if seconds is None:
        return DASH
    if round(seconds) < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def hours(seconds: float | None) -> str:
    """Device-hours."""
    return DASH if seconds is None else f"{seconds / 3600:.3g}"


def share(value: float | None) -> str:
    """A part of a whole."""
    return DASH if value is None else f"{value:.1%}"


def money(dollars: float | None) -> str:
    """US dollars."""
    return DASH if dollars is None else f"${dollars:,.2f}"
