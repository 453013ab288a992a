"""Realistic reports made by hand: an eight-layer VGG on 32x32 pictures, optimized and audited.

All totals are computed from the layers, so that the sums a report promises hold here as well.
"""

from __future__ import annotations

from dataclasses import replace

from graphopt.reporting.schema import (
    AuditReport,
    BudgetUsed,
    Cost,
    Declined,
    Estimate,
    FrontierPoint,
    Latency,
    LayerAudit,
    ModelFile,
    OptimizeReport,
    OutputCheck,
    RewriteEntry,
    Samples,
    Saving,
    Totals,
    Verification,
)

HOSTILE = "<script>alert('x')</script>&\"[bold red]\x1b[31m\n/conv"

# name, input channels, output channels, height = width of the output, rank chosen (0: kept)
CONVOLUTIONS = (
    ("/features/features.0/Conv", 3, 64, 32, 0),
    ("/features/features.3/Conv", 64, 64, 32, 32),
    ("/features/features.7/Conv", 64, 128, 16, 48),
    ("/features/features.10/Conv", 128, 128, 16, 64),
    ("/features/features.14/Conv", 128, 256, 8, 96),
    ("/features/features.17/Conv", 256, 256, 8, 112),
)
VERSIONS = {
    "graphopt": "0.1.0",
    "onnx": "1.23.0",
    "onnxruntime": "1.32.0",
    "numpy": "2.4.1",
    "python": "3.11.7",
    "cpu": "AMD EPYC 7763 64-Core Processor",
}


def _convolution(channels: int, outputs: int, side: int, kernel: int = 9, bias: int = 0) -> Cost:
    weights = channels * outputs * kernel
    return Cost(1, weights + bias, 4 * (weights + bias), weights * side * side)


def _sum(*costs: Cost, latency_us: float | None = None) -> Cost:
    return Cost(
        nodes=sum(cost.nodes for cost in costs),
        parameters=sum(cost.parameters for cost in costs),
        weight_bytes=sum(cost.weight_bytes for cost in costs),
        macs=sum(cost.macs for cost in costs),
        latency_us=latency_us,
    )


def _batch_norm(outputs: int) -> Cost:
    return Cost(1, 4 * outputs, 16 * outputs, 0)


def _fusions() -> list[RewriteEntry]:
    entries = []
    for name, channels, outputs, side, _ in CONVOLUTIONS:
        bare = _convolution(channels, outputs, side)
        entries.append(
            RewriteEntry(
                name="fuse-conv-bn",
                kind="exact",
                site=(name, name.replace("Conv", "BatchNormalization")),
                options={},
                before=_sum(bare, _batch_norm(outputs)),
                after=_convolution(channels, outputs, side, bias=outputs),
                measured_error=2.4e-7,
            )
        )
    return entries


def _splits() -> list[RewriteEntry]:
    entries = []
    for name, channels, outputs, side, rank in CONVOLUTIONS:
        if not rank:
            continue
        before = _convolution(channels, outputs, side, bias=outputs)
        reduce = _convolution(channels, rank, side, kernel=1)
        expand = _convolution(rank, outputs, side, bias=outputs)
        entries.append(
            RewriteEntry(
                name="input-bottleneck",
                kind="approximate",
                site=(name,),
                options={"rank": rank, "fit": "asymmetric", "shrinkage": 0.05},
                before=replace(before, latency_us=before.macs / 52_000),
                after=_sum(reduce, expand, latency_us=(reduce.macs + expand.macs) / 47_000),
                predicted_error=0.011 + rank / 10_000,
                measured_error=0.012 + rank / 9_000,
            )
        )
    return entries


def _identity() -> RewriteEntry:
    return RewriteEntry(
        name="drop-identity",
        kind="clean-up",
        site=("/dropout/Identity",),
        options={},
        before=Cost(1, 0, 0, 0),
        after=Cost(0, 0, 0, 0),
    )


def model_file(name: str, size: int, digit: str) -> ModelFile:
    return ModelFile(f"models/{name}", digit * 64, size, 10, {"": 21})


def before_totals() -> Totals:
    convolutions = [
        _sum(_convolution(channels, outputs, side), _batch_norm(outputs))
        for _, channels, outputs, side, _ in CONVOLUTIONS
    ]
    head = Cost(2, 1_051_402, 4_205_608, 1_051_136)
    whole = _sum(*convolutions, head)
    operators = {"Relu": 7, "Conv": 6, "BatchNormalization": 6, "MaxPool": 3, "Gemm": 2}
    return Totals(
        nodes=whole.nodes + 7 + 3 + 2,
        parameters=whole.parameters,
        weight_bytes=whole.weight_bytes,
        file_bytes=whole.weight_bytes + 5_120,
        macs=whole.macs,
        peak_activation_bytes=524_288,
        operators={**operators, "Flatten": 1, "Identity": 1},
    )


def after_totals(rewrites: tuple[RewriteEntry, ...]) -> Totals:
    before = before_totals()
    saved = _sum(*(entry.before for entry in rewrites))
    added = _sum(*(entry.after for entry in rewrites))
    operators = {"Conv": 11, "Relu": 7, "MaxPool": 3, "Gemm": 2, "Flatten": 1}
    return Totals(
        nodes=before.nodes - saved.nodes + added.nodes,
        parameters=before.parameters - saved.parameters + added.parameters,
        weight_bytes=before.weight_bytes - saved.weight_bytes + added.weight_bytes,
        file_bytes=before.file_bytes - saved.weight_bytes + added.weight_bytes,
        macs=before.macs - saved.macs + added.macs,
        peak_activation_bytes=393_216,
        operators=operators,
    )


def latency(
    batch: int = 1,
    ratio: float = 0.433,
    low: float = 0.420,
    high: float = 0.444,
    predicted: float | None = None,
) -> Latency:
    before = 2950.0 * batch
    return Latency(
        batch=batch,
        threads=1,
        pairs=60,
        before_us=before,
        after_us=before * ratio,
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
        input_shapes={"image": (batch, 3, 32, 32)},
        predicted_ratio=predicted,
    )


def checks() -> tuple[OutputCheck, ...]:
    first = OutputCheck(
        name="logits",
        level="disable_all",
        dtype="float32",
        max_abs=0.41,
        relative_l2=0.0318,
        sqnr_db=29.95,
        cosine=0.999494,
        top1_agreement=0.9863,
        mismatches=1.0,
        passed=True,
    )
    indices = OutputCheck("class", "disable_all", "int64", None, None, None, None, None, 0, True)
    return (
        first,
        replace(first, level="enable_all", relative_l2=0.032),
        indices,
        replace(indices, level="enable_all"),
    )


def verification() -> Verification:
    return Verification(
        passed=True,
        tolerance=0.05,
        samples=Samples("data", "calib.npz, split with seed 0", fitting=1024, held_out=512),
        outputs=checks(),
        metric="top-1",
        metric_before=0.7632,
        metric_after=0.7598,
        rolled_back=(
            Declined("kernel-pair", ("/features/features.0/Conv",), "error 6.1% above the budget"),
        ),
    )


def declined() -> tuple[Declined, ...]:
    depthwise = tuple(
        Declined("spatial", (name,), "not faster on this target: 0.97x")
        for name, *_ in CONVOLUTIONS
    )
    return (
        Declined("input-bottleneck", (CONVOLUTIONS[0][0],), "3 input channels: nothing to save"),
        *depthwise,
        Declined("fold-constant", ("/Shape",), "result would be larger than 1 MB"),
    )


def optimize_report() -> OptimizeReport:
    rewrites = (_identity(), *_fusions(), *_splits())
    before, after = before_totals(), after_totals(rewrites)
    return OptimizeReport(
        tool="graphopt 0.1.0",
        versions=VERSIONS,
        command="graphopt optimize models/vgg8.onnx --data calib.npz --max-error 0.05",
        input=model_file("vgg8.onnx", before.file_bytes, "a"),
        output=model_file("vgg8.opt.onnx", after.file_bytes, "b"),
        target="cpu",
        seed=0,
        budget=BudgetUsed(max_error=0.05, max_drop=0.01, speedup=2.0, bound_by="max_error"),
        before=before,
        after=after,
        latency=(latency(predicted=0.45), latency(8, 0.34, 0.33, 0.35)),
        rewrites=rewrites,
        declined=declined(),
        verification=verification(),
        available=(),
        notes=("input 'image': dynamic batch taken as 1",),
        seconds={"load": 0.04, "exact": 0.31, "calibrate": 4.8, "plan": 21.2, "verify": 2.9},
        peak_memory_bytes=812_000_000,
    )


def pareto_report() -> OptimizeReport:
    """What `--pareto 3` says: three models, the last of which is the result."""
    report = optimize_report()
    shares = ((1, 0.85, 0.004, 0.7631), (2, 0.65, 0.018, 0.7615))
    before = before_totals()
    points = [
        FrontierPoint(
            file=model_file(f"vgg8.opt.{number}.onnx", int(before.file_bytes * share), "c"),
            after=replace(
                report.after,
                macs=int(before.macs * share),
                file_bytes=int(before.file_bytes * share),
            ),
            latency=tuple(latency(batch, share, share - 0.02, share + 0.02) for batch in (1, 8)),
            error=error,
            metric_before=0.7632,
            metric_after=metric,
            approximated=2 * number,
        )
        for number, share, error, metric in shares
    ]
    file = model_file("vgg8.opt.3.onnx", report.after.file_bytes, "b")
    last = FrontierPoint(file, report.after, report.latency, 0.032, 0.7632, 0.7598, 5)
    return replace(report, output=file, frontier=(*points, last))


def lossless_report() -> OptimizeReport:
    """What `graphopt optimize` says without data and without a budget."""
    report = optimize_report()
    rewrites = (_identity(), *_fusions())
    outputs = tuple(
        replace(check, relative_l2=2.1e-7, max_abs=1.4e-6, sqnr_db=133.5, cosine=1.0)
        for check in checks()[:2]
    )
    return replace(
        report,
        command="graphopt optimize models/vgg8.onnx",
        budget=BudgetUsed(),
        rewrites=rewrites,
        after=after_totals(rewrites),
        latency=(latency(1, 0.985, 0.961, 1.012),),
        available=(Estimate(0.01, 0.6), Estimate(0.05, 0.45)),
        verification=Verification(
            True, 1e-4, Samples("synthetic", "normal distribution, seed 0", 0, 8), outputs
        ),
    )


def hostile_report() -> OptimizeReport:
    """Every name, path and note is chosen by someone who wishes the reader ill."""
    report = optimize_report()
    proof = verification()
    return replace(
        report,
        command=HOSTILE,
        target=HOSTILE,
        versions={HOSTILE: HOSTILE},
        input=replace(report.input, path=HOSTILE),
        rewrites=tuple(
            replace(entry, name=HOSTILE, site=(HOSTILE,), options={HOSTILE: HOSTILE})
            for entry in report.rewrites
        ),
        declined=(Declined(HOSTILE, (HOSTILE,), HOSTILE),),
        verification=replace(
            proof,
            metric=HOSTILE,
            samples=replace(proof.samples, description=HOSTILE),
            outputs=tuple(replace(check, name=HOSTILE) for check in proof.outputs),
            rolled_back=(Declined(HOSTILE, (HOSTILE,), HOSTILE),),
        ),
        notes=(HOSTILE,),
        seconds={HOSTILE: 1.0},
        frontier=tuple(
            replace(point, file=replace(point.file, path=HOSTILE))
            for point in pareto_report().frontier
        ),
    )


def audit_report() -> AuditReport:
    layers = []
    for name, channels, outputs, side, rank in CONVOLUTIONS:
        cost = _convolution(channels, outputs, side)
        savings = tuple(
            Saving(
                rewrite=rewrite,
                kind="approximate",
                options={"rank": rank},
                saved_macs=int(cost.macs * share),
                saved_parameters=int(cost.parameters * share),
                predicted_error=error,
                latency_ratio=1.05 - share,
            )
            for rewrite, share, error in (
                ("input-bottleneck", 0.32, 0.008),
                ("spatial", 0.25, 0.031),
                ("two-sided", 0.61, 0.044),
                ("decoupled", 0.8, 0.19),
            )
            if rank
        )
        shape = (1, outputs, side, side)
        timed = replace(cost, latency_us=cost.macs / 50_000)
        layers.append(LayerAudit(name, "Conv", shape, timed, savings))
    totals = before_totals()
    return AuditReport(
        tool="graphopt 0.1.0",
        versions=VERSIONS,
        command="graphopt audit models/vgg8.onnx",
        input=model_file("vgg8.onnx", totals.file_bytes, "a"),
        threads=1,
        totals=totals,
        layers=tuple(layers),
        exact=(_identity(), *_fusions()),
        declined=declined(),
        notes=("errors are of the weights only: give --data for errors of the responses",),
    )
