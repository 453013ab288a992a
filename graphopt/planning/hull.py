"""What is worth choosing of many options: the concave hull of what they save over what they cost."""

from __future__ import annotations

from collections.abc import Sequence

Point = tuple[float, float]
"""Cost and saving of an option, both at least zero."""


def hull(options: Sequence[Point]) -> list[tuple[int, float]]:
    """The options on the upper concave hull from (0, 0) on: index, and saving per cost of the step.

    Gains fall along the hull: no mixture of other options saves more at the same cost.
    """
    ordered = sorted(range(len(options)), key=lambda i: (options[i][0], -options[i][1]))
    found: list[int] = []
    for index in ordered:
        if options[index][1] <= (options[found[-1]][1] if found else 0.0):
            continue
        while found and _gain(_at(options, found, -2), options[found[-1]]) <= _gain(
            options[found[-1]], options[index]
        ):
            found.pop()
        found.append(index)
    return [
        (index, _gain(_at(options, found[: place + 1], -2), options[index]))
        for place, index in enumerate(found)
    ]


def _at(options: Sequence[Point], found: Sequence[int], place: int) -> Point:
    return options[found[place]] if len(found) >= -place else (0.0, 0.0)


def _gain(before: Point, after: Point) -> float:
    return (after[1] - before[1]) / max(after[0] - before[0], 1e-18)
