"""Numbers and names as people read them, the same in the terminal and in HTML.

Plain ASCII throughout, so that a report survives any pipe, log file and locale. Every function
takes `None` where the report allows it and writes `MISSING` for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

MISSING = "-"
_DECIMAL_PREFIXES = ("", "k", "M", "G", "T", "P")


def count(value: float | None) -> str:
    """A number of things: `812`, `9,408`, `1.23 M`."""
    if value is None:
        return MISSING
    if abs(value) < 10_000:
        return f"{value:,.0f}"
    return _prefixed(value, "")


def size(value: float | None) -> str:
    """Bytes in decimal units: `512 B`, `4.56 MB`."""
    if value is None:
        return MISSING
    return f"{value:.0f} B" if abs(value) < 1000 else _prefixed(value, "B")


def micros(value: float | None) -> str:
    """A latency given in microseconds: `7.42 us`, `812 us`, `1.20 ms`."""
    if value is None or not math.isfinite(value):
        return MISSING
    for unit in ("us", "ms"):
        text = _three_digits(value)
        if abs(float(text)) < 1000:
            return f"{text} {unit}"
        value /= 1000
    return f"{_three_digits(value)} s"


def seconds(value: float) -> str:
    """A duration: `0.04 s`, `12.3 s`, `2 min 5 s`."""
    if value < 59.95:
        return f"{value:.2f} s" if value < 9.995 else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s"


def percent(fraction: float | None) -> str:
    """A share: `58%`, `3.2%`, `0.04%`. Never rounds up to `100%` what is below it."""
    if fraction is None or not math.isfinite(fraction):
        return MISSING
    value = 100 * abs(fraction)
    if value == 0:
        return "0%"
    if 99.5 <= value < 100:
        text = f"{math.floor(value * 100) / 100:.2f}"
    elif value >= 9.95:
        text = f"{value:.0f}"
    elif value >= 0.995:
        text = f"{value:.1f}"
    else:
        text = f"{value:.1g}" if value >= 0.001 else "<0.001"
    return f"{'-' if fraction < 0 else ''}{text}%"


def rate(fraction: float | None) -> str:
    """An accuracy or agreement, where hundredths matter: `76.31%`; `100%` only when it is exact."""
    if fraction is None or not math.isfinite(fraction):
        return MISSING
    if fraction == 1:
        return "100%"
    return f"{min(100 * fraction, 99.99):.2f}%" if fraction < 1 else f"{100 * fraction:.2f}%"


def error(value: float | None) -> str:
    """A relative error: percent from a thousandth on (`3.2%`), else `2.1e-07`; `0` is exact."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    if value < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{exponent}"
    digits = 1 if 100 * value >= 0.995 else 2
    return f"{100 * value:.0f}%" if value >= 0.0995 else _trim(f"{100 * value:.{digits}f}") + "%"


def decimal(value: float | None, digits: int = 6) -> str:
    """A plain number with a fixed count of decimals; infinite (an exact match) is written `inf`."""
    return MISSING if value is None else f"{value:.{digits}f}"


def difference(value: float | None) -> str:
    """An absolute difference, two significant digits: `0.41`, `1.3e-05`."""
    return MISSING if value is None else f"{value:.2g}"


def change(before: float | None, after: float | None) -> str:
    """How much larger or smaller `after` is: `-58%`, `+3.2%`, `same`."""
    if before is None or after is None:
        return MISSING
    if before == after:
        return "same"
    if before == 0:
        return "new"
    text = percent((after - before) / before)
    return text if after < before else f"+{text}"


def signed(value: float) -> str:
    """A difference with its sign: `-12`, `+1.20 M`, `0`."""
    return f"+{count(value)}" if value > 0 else count(value)


def times(value: float, digits: int = 2) -> str:
    """A factor: `2.31x`."""
    return f"{value:.{digits}f}x"


def plural(number: int, noun: str, many: str | None = None) -> str:
    """`1 node`, `12 nodes`; `many` where adding an s will not do."""
    return f"{count(number)} {noun if number == 1 else many or noun + 's'}"


def options(values: Mapping[str, object]) -> str:
    """The options of a rewrite on one line: `rank=32 fit=asymmetric`."""
    return " ".join(f"{clean(key)}={_option(value)}" for key, value in values.items())


def clean(text: str) -> str:
    """`text` on one line, control characters (escape sequences, line ends) shown as `?`."""
    return "".join(character if character.isprintable() else "?" for character in text)


def shorten(text: str, width: int) -> str:
    """`text` cut in its middle to `width` characters: names differ at both ends."""
    if len(text) <= width:
        return text
    if width < 5:
        return text[:width]
    tail = (width - 2) // 2
    return f"{text[: width - 2 - tail]}..{text[-tail:]}"


def site(names: Sequence[str], shown: int = 3) -> str:
    """The nodes of one place: `conv1 + bn1`; nodes beyond `shown` are only counted."""
    more = f" +{len(names) - shown} more" if len(names) > shown else ""
    return " + ".join(clean(name) or "(unnamed)" for name in names[:shown]) + more or "(model)"


def _option(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else clean(str(value))


def _prefixed(value: float, unit: str) -> str:
    """Three significant digits with a decimal prefix."""
    for prefix in _DECIMAL_PREFIXES:
        text = _three_digits(value)
        if abs(float(text)) < 1000 or prefix == _DECIMAL_PREFIXES[-1]:
            break
        value /= 1000
    return f"{text} {prefix}{unit}"


def _three_digits(value: float) -> str:
    """`1.23`, `12.3`, `123`: the width that keeps columns of mixed magnitudes comparable."""
    for digits, limit in ((2, 9.995), (1, 99.95)):
        if abs(value) < limit:
            return f"{value:.{digits}f}"
    return f"{value:.0f}"


def _trim(text: str) -> str:
    """Without the zeros (and the point) at the end of a decimal number."""
    return text.rstrip("0").rstrip(".") if "." in text else text
