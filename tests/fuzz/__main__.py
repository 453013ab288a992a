"""`python -m tests.fuzz --minutes 30`: fuzz until time is up, save what fails, print a summary."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "support")]


def main() -> int:
    """Exit code 0: nothing failed; 1: something did."""
    from fuzz.graphs import THEMES
    from fuzz.hunt import hunt

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0, help="other seeds draw other networks")
    parser.add_argument("--theme", action="append", choices=tuple(THEMES), help="all by default")
    parser.add_argument("--failures", type=Path, default=Path(".fuzz"), help="folder for failures")
    given = parser.parse_args()
    found = hunt(
        60 * given.minutes,
        1_000_000 * given.seed,
        tuple(given.theme or THEMES),
        folder=given.failures,
    )
    print(found.summary())
    if found.failures:
        print(f"saved in {given.failures}")
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(main())
