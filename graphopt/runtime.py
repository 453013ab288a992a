"""onnxruntime sessions, made in one place so that every measurement and proof runs the same way.

CPU execution provider only; threads are always stated; spinning is off, because a spinning idle
pool distorts whatever is measured next to it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np

from graphopt.errors import InputError

Level = Literal["disable_all", "enable_all"]
Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]

_FATAL = 4


def open_session(
    model: str | Path | bytes,
    *,
    level: Level = "enable_all",
    threads: int = 1,
    timed: bool = False,
    shapes_first: bool = False,
) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU.

    Args:
        model: A path, or a serialized model (below 2 GB).
        level: The graph optimization level.
        threads: Intra-op threads; inter-op is always 1.
        timed: It is to run as it would for a user: with onnxruntime's arena, which keeps the memory
            of the largest run as long as the session lives. All others give it back after each run.
        shapes_first: Shape runs as soon as it can, so that what it is asked of can be given back.

    Raises:
        InputError: onnxruntime cannot load the model (unknown operator or domain, broken graph).
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    options.enable_cpu_mem_arena = timed
    if shapes_first:
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.graph_optimization_level = (
        ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if level == "disable_all"
        else ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    )
    source = os.fspath(model) if isinstance(model, Path) else model
    try:  # without falling back from the CPU to the CPU, which it announces on standard output
        return ort.InferenceSession(
            source, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:
        raise InputError(f"onnxruntime cannot load the model: {first_line(error)}") from error


def run(session: Any, feeds: Feeds, outputs: Sequence[str] | None = None) -> list[Any]:
    """Run a session once; `outputs` None gives all of them, in the model's order.

    Raises:
        InputError: onnxruntime refuses the inputs or fails while running.
    """
    import onnxruntime as ort

    quiet = ort.RunOptions()
    quiet.log_severity_level = _FATAL
    try:
        return list(session.run(outputs, dict(feeds), quiet))
    except Exception as error:
        raise InputError(f"onnxruntime cannot run the model: {first_line(error)}") from error


def cores() -> int:
    """How many processors this process may use: for work that is not being timed."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def give_back_memory() -> None:
    """Return to the system what was freed: glibc keeps it, in a heap for every thread there was.

    Measured on a ResNet-50: 1 GB of 3.3 GB after its statistics were gathered. Elsewhere it does nothing.
    """
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def one_blas_thread(*, factorizing: bool = False) -> Iterator[None]:
    """Linear algebra on one thread: many small products gain nothing from more.

    factorizing: that of scipy as well. It brings a library of its own, which can be limited only
    once it is loaded, and loading it takes time; with several threads the last bits of a
    factorization would differ between runs.
    """
    from threadpoolctl import threadpool_limits

    if factorizing:
        import scipy.linalg  # noqa: F401
    with threadpool_limits(limits=1):
        yield


def first_line(error: BaseException) -> str:
    """The first line of an error's message without onnxruntime's prefixes, kept short."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 3)[-1]
    return shorten(text)


def shorten(text: str) -> str:
    """At most 300 characters of a text."""
    return text if len(text) <= 300 else text[:297] + "..."
