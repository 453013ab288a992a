"""Finding the change that spoils a result, among changes that were applied in order."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable


def first_bad(count: int, passes: Callable[[int], bool]) -> int:
    """The smallest k in 1..count such that the first k changes together do not pass.

    Bisection: about log2(count) calls. `passes(count)` is taken to be False. `passes(0)` is
    checked: 0 is returned when even no change at all fails (the fault is not among them).
    """
    if not passes(0):
        return 0
    return 1 + bisect_left(range(1, count), True, key=lambda k: not passes(k))
