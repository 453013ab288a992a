"""The reports as data: these dataclasses *are* the schema of the JSON files.

Plain values only (no arrays, no graph objects), so that a report can be written, read back and
compared without onnx. `report_to_dict` keeps the field order; the published JSON Schemas
`optimize.schema.json` and `audit.schema.json` are checked against these classes by a test.

Units: latencies in microseconds (`_us`), sizes in bytes, errors relative (||y - y'|| / ||y||),
ratios after / before (below 1 is faster or smaller).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

SCHEMA_VERSION = "1.0"

Scalar = str | int | float | bool | None
Kind = Literal["clean-up", "exact", "approximate"]


@dataclass(frozen=True)
class ModelFile:
    """A model on disk. `bytes` includes its external data."""

    path: str
    sha256: str
    bytes: int
    ir_version: int
    opsets: dict[str, int]


@dataclass(frozen=True)
class Cost:
    """What a set of nodes costs. MACs are at batch 1; `latency_us` only where it was measured."""

    nodes: int
    parameters: int
    weight_bytes: int
    macs: int
    latency_us: float | None = None


@dataclass(frozen=True)
class Totals:
    """What a whole model costs. `operators` counts nodes by type, most frequent first."""

    nodes: int
    parameters: int
    weight_bytes: int
    file_bytes: int
    macs: int
    peak_activation_bytes: int | None
    operators: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Latency:
    """Two models timed in turn (A B A B ...), both at ORT_ENABLE_ALL.

    `ratio` is the median of after / before over the pairs, `ratio_low`..`ratio_high` its 95 %
    confidence interval. `input_shapes` is what was fed. `predicted_ratio` is what the rewrites'
    own measurements add up to: null without approximate rewrites, and at other shapes than theirs.
    """

    batch: int
    threads: int
    pairs: int
    before_us: float
    after_us: float
    ratio: float
    ratio_low: float
    ratio_high: float
    input_shapes: dict[str, tuple[int, ...]]
    predicted_ratio: float | None = None

    @property
    def speedup(self) -> float:
        """before / after: 2.0 is twice as fast."""
        return 1.0 / self.ratio

    @property
    def measurably_faster(self) -> bool:
        """Whether the whole confidence interval lies below 1."""
        return self.ratio_high < 1.0


@dataclass(frozen=True)
class RewriteEntry:
    """One rewrite that was applied: what it removed (`before`) and what stands there now (`after`).

    Summed over all entries, `before` - `after` is the difference of the totals.
    """

    name: str
    kind: Kind
    site: tuple[str, ...]
    options: dict[str, Scalar]
    before: Cost
    after: Cost
    predicted_error: float | None = None
    measured_error: float | None = None


@dataclass(frozen=True)
class Declined:
    """A place where a rewrite looked and did nothing, and why."""

    name: str
    site: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class OutputCheck:
    """How one output of the written file compares with the original's, over all samples.

    `level` is the onnxruntime graph optimization level the written file ran at. `mismatches` is
    the share of unequal elements (what counts for integer, boolean and string outputs). `sqnr_db`
    is null where it is infinite (no difference at all) or the output is not a float.
    """

    name: str
    level: Literal["disable_all", "enable_all"]
    dtype: str
    max_abs: float | None
    relative_l2: float | None
    sqnr_db: float | None
    cosine: float | None
    top1_agreement: float | None
    mismatches: float
    passed: bool


@dataclass(frozen=True)
class Samples:
    """Where inputs came from. `source` "synthetic" means drawn at random: errors are indicative.

    `held_out` is the number of samples the proof ran on, whatever the source.
    """

    source: Literal["synthetic", "data"]
    description: str
    fitting: int
    held_out: int


@dataclass(frozen=True)
class AccuracyDrop:
    """A fall in top-1 accuracy as counted on the held-out samples, and as expected.

    `expected` is the mean loss of probability, by the original's own calibrated probabilities,
    where the two models disagree: an estimate of the same drop with a smaller standard error.
    """

    counted: float
    standard_error: float
    expected: float
    expected_standard_error: float


@dataclass(frozen=True)
class Verification:
    """The proof. `tolerance` bounds relative_l2 (null: only the metric or the speed is limited).

    `metric_before` and `metric_after` are the metric on the held-out samples; `accuracy_drop` says
    how sure the difference is, where the metric is top-1 accuracy. `own_noise` names the
    outputs that were allowed more than the tolerance, because the original differs from itself by
    this much between the two levels on these inputs.
    """

    passed: bool
    tolerance: float | None
    samples: Samples
    outputs: tuple[OutputCheck, ...]
    metric: str | None = None
    metric_before: float | None = None
    metric_after: float | None = None
    accuracy_drop: AccuracyDrop | None = None
    rolled_back: tuple[Declined, ...] = ()
    own_noise: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class BudgetUsed:
    """The budget the user gave, and which of its limits stopped the search (`bound_by`)."""

    max_error: float | None = None
    max_drop: float | None = None
    speedup: float | None = None
    bound_by: Literal["max_error", "max_drop", "speedup"] | None = None


@dataclass(frozen=True)
class Estimate:
    """What approximate rewrites could save inside a budget that was not given (an estimate)."""

    max_error: float
    macs_ratio: float


@dataclass(frozen=True)
class FrontierPoint:
    """One model of `--pareto`: closest to the original first, the one the budget allows last.

    `file` is where it is (with `--dry-run`: would be). `after` is what it costs. `error` is the
    largest relative error of its outputs, null where none is a float; `approximated` counts its
    approximate rewrites.
    """

    file: ModelFile
    after: Totals
    latency: tuple[Latency, ...]
    error: float | None
    metric_before: float | None
    metric_after: float | None
    approximated: int


@dataclass(frozen=True)
class DenseSize:
    """One larger picture: the dense network's cells against the original on every window of it.

    `picture` is its height and width, `maps` the shapes of the outputs. `relative_l2` is over all
    windows, `worst_window` that of the one farthest off (null without float outputs),
    `top1_agreement` the share of windows with the same class. `pass_us` is one dense pass,
    `crops_us` the original on all windows one by one (so many times the measured time of one),
    `ratio` the first to the second.
    """

    picture: tuple[int, ...]
    maps: dict[str, tuple[int, ...]]
    windows: int
    relative_l2: float | None
    worst_window: float | None
    top1_agreement: float | None
    pass_us: float | None = None
    crops_us: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None


@dataclass(frozen=True)
class DenseMaps:
    """What `--dense` made: answers to windows of `window` pixels, `stride` pixels apart.

    `exact` says that every cell is what the original answers on its window; otherwise
    `inexact_because` says what reaches beyond the window, and `sizes` how far cells are off.
    """

    input: str
    window: tuple[int, ...]
    stride: tuple[int, ...]
    exact: bool
    inexact_because: str | None
    sizes: tuple[DenseSize, ...]


@dataclass(frozen=True)
class OptimizeReport:
    """Everything `graphopt optimize` did: what an auditor reads."""

    tool: str
    versions: dict[str, str]
    command: str
    input: ModelFile
    output: ModelFile | None
    target: str
    seed: int
    budget: BudgetUsed
    before: Totals
    after: Totals
    latency: tuple[Latency, ...]
    rewrites: tuple[RewriteEntry, ...]
    declined: tuple[Declined, ...]
    verification: Verification | None
    available: tuple[Estimate, ...]
    notes: tuple[str, ...]
    seconds: dict[str, float]
    peak_memory_bytes: int
    frontier: tuple[FrontierPoint, ...] = ()
    dense: DenseMaps | None = None
    schema_version: str = SCHEMA_VERSION


@dataclass(frozen=True)
class Saving:
    """What one rewrite would save on one layer, were it applied.

    `saved_macs` and `saved_parameters` are what it takes away. `predicted_error` is relative, of
    the layer's weight; `latency_ratio` after / before, measured.
    """

    rewrite: str
    kind: Kind
    options: dict[str, Scalar]
    saved_macs: int
    saved_parameters: int
    predicted_error: float | None
    latency_ratio: float | None = None


@dataclass(frozen=True)
class LayerAudit:
    """One layer with weights: its cost, its measured time, and what could be saved.

    `weight_shape` and `group` are those of the file: of a convolution [O, C / group, kernel].
    """

    name: str
    op_type: str
    output_shape: tuple[int, ...]
    cost: Cost
    savings: tuple[Saving, ...]
    weight_shape: tuple[int, ...] = ()
    group: int = 1


@dataclass(frozen=True)
class AuditReport:
    """Everything `graphopt audit` found. Nothing was written."""

    tool: str
    versions: dict[str, str]
    command: str
    input: ModelFile
    threads: int
    totals: Totals
    layers: tuple[LayerAudit, ...]
    exact: tuple[RewriteEntry, ...]
    declined: tuple[Declined, ...]
    notes: tuple[str, ...]
    schema_version: str = SCHEMA_VERSION


def report_to_dict(report: OptimizeReport | AuditReport) -> dict[str, Any]:
    """The report as JSON-ready plain data, `schema_version` first."""
    plain = asdict(report)
    return {"schema_version": plain.pop("schema_version"), **plain}
