"""Runs a command and says what it cost, as JSON: `python -I -S metered.py SECONDS COMMAND...`.

Small on purpose: Linux counts the memory of the process that starts another one into the other's peak, so
that whoever measures has to be smaller than whatever is measured. Imports nothing but what Python has anyway.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time


def metered(limit: int, command: list[str]) -> dict[str, float]:
    """Wall and CPU seconds, peak bytes of the largest process, and how it ended (a negative code: a signal).

    What the command prints goes to standard error. After `limit` seconds it is killed.
    """
    start = time.perf_counter()
    child = os.posix_spawn(
        command[0],
        command,
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)],
        setpgroup=0,
    )

    def stop(*_: object) -> None:
        os.killpg(child, signal.SIGKILL)

    signal.signal(signal.SIGALRM, stop)
    signal.signal(signal.SIGTERM, stop)
    signal.alarm(limit)
    _, status, used = os.wait4(child, 0)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "seconds": time.perf_counter() - start,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": used.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


if __name__ == "__main__":
    print(json.dumps(metered(int(sys.argv[1]), sys.argv[2:])))
