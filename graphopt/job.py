"""One run of `optimize`: everything that is settled before the first rewrite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphopt.calibration.prepare import Inputs
    from graphopt.clock import Clock
    from graphopt.cost.stopwatch import Stopwatch
    from graphopt.graph.io import Source
    from graphopt.graph.shapes import TensorInfo
    from graphopt.options import Options
    from graphopt.progress import Progress
    from graphopt.records import Records
    from graphopt.selection import Selection
    from graphopt.verification.compare import Reference
    from graphopt.verification.proof import Limits


@dataclass(frozen=True)
class Job:
    """The model as read, the options, and what follows from them.

    infos: concrete shapes of the model's values for the bound inputs. limits: what the result must
    keep to. stopwatch: None when nothing is to be measured. records: of this run in its folder, where
    it has one (`--resume`).
    """

    source: Source
    options: Options
    selection: Selection
    inputs: Inputs
    infos: dict[str, TensorInfo]
    reference: Reference
    limits: Limits
    stopwatch: Stopwatch | None
    progress: Progress
    clock: Clock
    records: Records | None = None
