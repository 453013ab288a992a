"""How long `graphopt --help` takes: the median wall time over ten runs.

python benchmarks/startup.py [--runs N]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

LIMIT = 0.3
"""Seconds that start-up may take (a figure to print, not an assertion)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    args = parser.parse_args()
    script = Path(sys.executable).with_name("graphopt")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "graphopt"]
    _time(command)  # compiles the bytecode
    seconds = sorted(_time(command) for _ in range(args.runs))
    print(
        f"graphopt --help: median {statistics.median(seconds):.3f} s over {args.runs} runs "
        f"({seconds[0]:.3f} to {seconds[-1]:.3f}); meant to be under {LIMIT} s"
    )


def _time(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([*command, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
