"""Slides the original over larger pictures and compares what it says with the cells of a dense network.

A dense network is what the original would be if it were run on every window. So it is: at two
sizes, a few strides beyond the original's, the written file runs once and the original on each
window that a cell covers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphopt.calibration.synthetic import draw
from graphopt.cost.latency import Effort, Timing, compare_calls
from graphopt.errors import VerificationError
from graphopt.graph.shapes import Shape
from graphopt.progress import Progress
from graphopt.rewrites.dense.make import Dense
from graphopt.rewrites.dense.states import Extent, Map
from graphopt.runtime import Array, Level, open_session, run
from graphopt.verification.metrics import OutputDistance, is_float
from graphopt.verification.proof import LEVELS

_STRIDES = (1, 5)
"""How many strides larger than the original's the pictures are, on both sides: 4 and 36 windows."""

_EFFORT = Effort(seconds=2.0, least=5, most=51)

_MISMATCHES = 0.05
"""Share of classes (of labels) that may differ where cells are exact: ties that rounding tips over."""


@dataclass(frozen=True)
class SlideCheck:
    """What was found at one size of the picture.

    picture: height and width. maps: shapes of the outputs. relative_l2: over all windows;
    worst_window: the largest of one (None without float outputs). top1_agreement: share of windows
    with the same class. timing: one window against one dense pass.
    """

    picture: Extent
    maps: Mapping[str, Shape]
    windows: int
    relative_l2: float | None
    worst_window: float | None
    top1_agreement: float | None
    timing: Timing | None


@dataclass(frozen=True)
class Slide:
    """The original, the dense file, and how they are to be compared.

    graph: the original's, for drawing pictures. tolerance: the relative error that cells may have;
    None where they are only measured. threads: to compare with. timed: threads to time with.
    """

    original: Path
    result: Path
    graph: ir.Graph
    dense: Dense
    tolerance: float | None
    seed: int
    threads: int
    timed: int | None

    def checks(self, shapes: Mapping[str, Shape], progress: Progress) -> tuple[SlideCheck, ...]:
        """Compare at every size.

        shapes: of the original's input.

        Raises:
            VerificationError: A map is not of the size it should be, or cells are off by too much.
        """
        progress.stage("Sliding windows", sum((count + 1) ** 2 for count in _STRIDES))
        return tuple(self._check(shapes[self.dense.picture], n, progress) for n in _STRIDES)

    def _check(self, shape: Shape, strides: int, progress: Progress) -> SlideCheck:
        picture = self._picture(shape, strides)
        whole = [self._maps(picture, strides, level) for level in LEVELS]
        original = open_session(self.original, level="disable_all", threads=self.threads)
        names = [output.name for output in original.get_outputs()]
        totals = [{name: OutputDistance() for name in self.dense.outputs} for _ in LEVELS]
        worst = 0.0
        for row, column in np.ndindex(strides + 1, strides + 1):
            window = self._window(picture, row, column)
            answers = dict(zip(names, run(original, {self.dense.picture: window}), strict=True))
            progress.step()
            for maps, total in zip(whole, totals, strict=True):
                for name, found in maps.items():
                    cells = self._cells(name, found, answers[name], row, column)
                    total[name].add(answers[name], cells)
                    worst = max(worst, _distance(answers[name], cells))
        check = _summary(self._size(picture.shape), whole[0], totals, worst, (strides + 1) ** 2)
        self._judge(check, totals)
        return replace(check, timing=self._timing(picture))

    def _picture(self, shape: Shape, strides: int) -> Array:
        """A drawn picture so many strides larger both ways than the one of this shape."""
        larger = list(shape)
        for axis, stride in zip(self.dense.axes, self.dense.stride, strict=True):
            larger[axis] += strides * stride
        name = self.dense.picture
        # The second batch is the coarse one: networks have something to look at in it.
        drawn = draw(self.graph, {name: tuple(larger)}, self.seed, batches=2)
        return drawn.batches[1].feeds[name][: shape[0]]

    def _window(self, picture: Array, row: int, column: int) -> Array:
        where = [slice(None)] * picture.ndim
        for axis, place, stride, size in zip(
            self.dense.axes, (row, column), self.dense.stride, self.dense.window, strict=True
        ):
            where[axis] = slice(place * stride, place * stride + size)
        return np.ascontiguousarray(picture[tuple(where)])

    def _maps(self, picture: Array, strides: int, level: Level) -> dict[str, Array]:
        """The dense file's outputs, of the size that they should be."""
        session = open_session(self.result, level=level, threads=self.threads)
        names = [output.name for output in session.get_outputs()]
        found = dict(zip(names, run(session, {self.dense.picture: picture}), strict=True))
        for name, state in self.dense.outputs.items():
            cells = zip(state.size, self.dense.cells(name), strict=True)
            wanted = tuple(size + strides * step for size, step in cells)
            got = tuple(found[name].shape[axis] for axis in _space(state))
            if got != wanted:
                raise VerificationError(
                    f"output {name!r} is a map of {_by(got)} for a picture of "
                    f"{_by(self._size(picture.shape))}, not of {_by(wanted)}: nothing was written"
                )
        return {name: found[name] for name in self.dense.outputs}

    def _cells(self, name: str, found: Array, answer: Array, row: int, column: int) -> Array:
        """What a map says of one window, in the shape of the original's answer."""
        state = self.dense.outputs[name]
        where = [slice(None)] * found.ndim
        for axis, place, step, size in zip(
            _space(state), (row, column), self.dense.cells(name), state.size, strict=True
        ):
            where[axis] = slice(place * step, place * step + size)
        return found[tuple(where)].reshape(answer.shape)

    def _judge(self, check: SlideCheck, totals: list[dict[str, OutputDistance]]) -> None:
        if self.tolerance is None:
            return
        shares = (total.mismatches for level in totals for total in level.values())
        label_off = check.relative_l2 is None and max(shares, default=0.0) > _MISMATCHES
        if label_off or (check.relative_l2 is not None and not check.relative_l2 <= self.tolerance):
            off = "its classes" if label_off else f"{check.relative_l2:.3g}"
            raise VerificationError(
                f"on a picture of {_by(check.picture)} the dense network is off by {off} "
                "from the original on its windows, though it pads nowhere: nothing was written"
            )

    def _size(self, shape: Shape) -> Extent:
        height, width = (shape[axis] for axis in self.dense.axes)
        return height, width

    def _timing(self, picture: Array) -> Timing | None:
        """One window in the original against the whole picture in the dense network, interleaved."""
        if self.timed is None:
            return None
        name, window = self.dense.picture, self._window(picture, 0, 0)
        original = open_session(self.original, threads=self.timed, timed=True)
        result = open_session(self.result, threads=self.timed, timed=True)
        return compare_calls(
            lambda: run(original, {name: window}), lambda: run(result, {name: picture}), _EFFORT
        )


def _summary(
    picture: Extent,
    maps: Mapping[str, Array],
    totals: list[dict[str, OutputDistance]],
    worst: float,
    windows: int,
) -> SlideCheck:
    floats = [name for name, array in maps.items() if is_float(array)]
    errors = [total[name].relative_l2 for total in totals for name in floats]
    agreed = [t.top1_agreement for total in totals for t in total.values()]
    return SlideCheck(
        picture=picture,
        maps={name: array.shape for name, array in maps.items()},
        windows=windows,
        relative_l2=max(errors, default=None),
        worst_window=worst if floats else None,
        top1_agreement=min((share for share in agreed if share is not None), default=None),
        timing=None,
    )


def _distance(answer: Array, cells: Array) -> float:
    distance = OutputDistance()
    distance.add(answer, cells)
    return distance.relative_l2


def _space(state: Map) -> tuple[int, int]:
    """Where a dense output has height and width."""
    return (1, 2) if state.form in ("last", "labels") else (2, 3)


def _by(sizes: Shape) -> str:
    return "x".join(map(str, sizes))
