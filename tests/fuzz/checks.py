"""What has to hold for a rewritten network, whatever the network."""

from __future__ import annotations

import math
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx_text import LEVELS, Result, Rewrite, rewrite, structure

from fuzz.builder import Array
from fuzz.graphs import Case
from graphopt.cost.census import Tally
from graphopt.cost.totals import model_cost
from graphopt.graph.shapes import bind_inputs, infer
from graphopt.rewrites import CLEANUP, EXACT
from graphopt.rewrites.exact.composition import MOST_MORE, SPARE_BYTES

ALL: tuple[Rewrite, ...] = (*CLEANUP, *EXACT)

STAMP_BYTES = 400
"""What the model's own metadata may add to the file: version and counts of the rewrites."""

EXPANDED_BYTES = 1 << 18
"""What a weight that nodes make may add by being stored whole: past that it stays made."""

NODE_BYTES = 260
"""What one new node may add: where it comes from, its name, and those of its weights."""

FLATTENS = 1
"""Nodes that fc-to-conv may add for a chain: a Flatten restores the output (so it is gated)."""

LEAST_NORM = 1e-2
"""Outputs are of the order of 1; one that is all but zero is measured against this (RMS)."""

JITTER = 2e-7
"""Relative change of the inputs that tells how well a network is conditioned."""


FAULTS_OF_ONNXRUNTIME = ("Failed to find node output or a constant initializer",)
"""How its own fusions refuse a valid model: where two convolutions meet in an Add, one of few
channels a group and an output of the graph too, it depends on which of them stands first. A run that
is verified drops the change that brings it up (tests/pipeline/test_rollback.py)."""


class CannotRunError(Exception):
    """onnxruntime or the checker refuses the original."""


class BrokenError(AssertionError):
    """A property that does not hold. rewrites: names of those that were applied."""

    def __init__(self, what: str, detail: str, rewrites: Sequence[str] = ()) -> None:
        super().__init__(f"{what}: {detail} (applied: {', '.join(rewrites) or 'nothing'})")
        self.what = what
        self.rewrites = tuple(sorted(set(rewrites)))


@dataclass(frozen=True)
class Original:
    """A network before: its outputs at both levels and how far they can be trusted."""

    outputs: list[list[Array]]
    allowed: list[list[tuple[float, float]]]


def check(case: Case, rewrites: Sequence[Rewrite] = ALL) -> Counter[str]:
    """Rewrite the network and hold every property against it; how often each rewrite was applied.

    Raises:
        CannotRunError: The original is of no use.
        BrokenError: A property does not hold.
    """
    original = _original(case)
    shapes = {name: tuple(array.shape) for name, array in case.feeds[0].items()}
    shapes = {v.name: shapes[v.name] for v in _fed(case.model)}
    result = _rewritten(case.model, rewrites, shapes)
    _valid(case.model, result)
    _same_interface(case.model, result)
    _same_numbers(case, original, result)
    _settled(case.model, result, rewrites, shapes)
    before, after = _cost(case.model, shapes), _cost(result.proto, shapes)
    _no_dearer(case.model, result, shapes, before.macs, after.macs)
    _adds_up(case.model, result, before, after)
    return Counter(result.names)


# -- the original ------------------------------------------------------------------------------


def _fed(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def _session(model: onnx.ModelProto, level: Any) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"], enable_fallback=0
    )


def _runs(model: onnx.ModelProto, level: Any, feeds: Sequence[Mapping[str, Array]]) -> Any:
    session = _session(model, level)
    names = {value.name for value in session.get_inputs()}
    names |= {value.name for value in session.get_overridable_initializers()}
    return [
        session.run(None, {name: array for name, array in feed.items() if name in names})
        for feed in feeds
    ]


def _original(case: Case) -> Original:
    try:
        onnx.checker.check_model(case.model, full_check=True)
        plain = _runs(case.model, LEVELS[0], case.feeds)
        optimized = _optimized_by_onnxruntime(case, plain)
        jittered = _runs(case.model, LEVELS[0], [_jittered(feed) for feed in case.feeds])
    except Exception as error:
        raise CannotRunError(f"{type(error).__name__}: {error}") from error
    # Infinities too: a MaxPool pads with the least number there is, not with minus infinity.
    floats = (array for run in plain for array in run if array.dtype.kind == "f")
    if not all(np.isfinite(array).all() for array in floats):
        raise CannotRunError("it does not compute numbers")
    allowed = []
    for index, run in enumerate(plain):
        row = []
        for a, b, c in zip(run, optimized[index], jittered[index], strict=True):
            strict = max(case.tolerance, min(20 * distance(a, c), 100 * case.tolerance))
            row.append((strict, max(strict, 2 * distance(a, b))))
        allowed.append(row)
    return Original(plain, allowed)


def _optimized_by_onnxruntime(case: Case, plain: Any) -> Any:
    """The outputs with onnxruntime's own fusions; where they fail on the original, the plain ones."""
    try:
        return _runs(case.model, LEVELS[1], case.feeds)
    except Exception:
        return plain


def _jittered(feed: Mapping[str, Array]) -> dict[str, Array]:
    rng = np.random.default_rng(5)
    return {
        name: np.asarray(array * (1 + JITTER * rng.standard_normal(array.shape)), array.dtype)
        if array.dtype.kind == "f"
        else array
        for name, array in feed.items()
    }


def distance(want: Array, got: Array) -> float:
    """Relative L2 distance; infinite where shapes, types, integers or infinities differ."""
    if want.shape != got.shape or want.dtype != got.dtype:
        return math.inf
    if want.dtype.kind != "f":
        return 0.0 if np.array_equal(want, got) else math.inf
    a, b = want.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite]):
        return math.inf
    a, b = a[finite], b[finite]
    floor = LEAST_NORM * math.sqrt(max(a.size, 1))
    off = float(np.linalg.norm(a - b) / max(float(np.linalg.norm(a)), floor))
    return off if math.isfinite(off) else math.inf


# -- the properties ----------------------------------------------------------------------------


def _rewritten(
    model: onnx.ModelProto, rewrites: Sequence[Rewrite], shapes: Mapping[str, tuple[int, ...]]
) -> Result:
    try:
        return rewrite(model, *rewrites, shapes=shapes)
    except Exception as error:
        raise BrokenError(f"crash {type(error).__name__} in {_place(error)}", str(error)) from error


def _place(error: Exception) -> str:
    """The innermost frame of a rewrite."""
    frames = traceback.extract_tb(error.__traceback__)
    rewriting = [frame for frame in frames if "rewrites" in Path(frame.filename).parts]
    frame = (rewriting or list(frames))[-1]
    return f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"


def _valid(original: onnx.ModelProto, result: Result) -> None:
    try:
        onnx.checker.check_model(result.proto, full_check=True)
    except Exception as error:
        raise BrokenError("not valid", " ".join(str(error).split()), result.names) from error


def _same_interface(original: onnx.ModelProto, result: Result) -> None:
    if _fed(result.proto) != _fed(original):
        raise BrokenError("inputs changed", str(_fed(result.proto)), result.names)
    if list(result.proto.graph.output) != list(original.graph.output):
        raise BrokenError("outputs changed", str(list(result.proto.graph.output)), result.names)


def _same_numbers(case: Case, original: Original, result: Result) -> None:
    for index, level in enumerate(LEVELS):
        name = ("disable all", "enable all")[index]
        try:
            runs = _runs(result.proto, level, case.feeds)
        except Exception as error:
            known = any(fault in str(error) for fault in FAULTS_OF_ONNXRUNTIME)
            if index and (known or not _loads(case.model, level)):
                continue
            raise BrokenError(f"does not run ({name})", str(error), result.names) from error
        for feed, run in enumerate(runs):
            for which, got in enumerate(run):
                off = distance(original.outputs[feed][which], got)
                if off > original.allowed[feed][which][index]:
                    output = case.model.graph.output[which].name
                    detail = f"{off:.2g} off at output {output}, feed {feed}"
                    raise BrokenError(f"wrong numbers ({name})", detail, result.names)


def _loads(model: onnx.ModelProto, level: Any) -> bool:
    try:
        _session(model, level)
    except Exception:
        return False
    return True


def _settled(
    original: onnx.ModelProto,
    result: Result,
    rewrites: Sequence[Rewrite],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Twice the same bytes, and nothing left to do for a second run."""
    twin = _rewritten(original, rewrites, shapes)
    if twin.proto.SerializeToString(deterministic=True) != result.proto.SerializeToString(
        deterministic=True
    ):
        raise BrokenError("not deterministic", "two runs differ", result.names)
    again = _rewritten(result.proto, rewrites, shapes)
    if again.names:
        raise BrokenError("not idempotent", f"then {', '.join(again.names)}", result.names)
    if structure(_bare(again.proto)) != structure(_bare(result.proto)):
        raise BrokenError("not idempotent", "the structure changed", result.names)


def _bare(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Without the shapes declared in bodies: a second inference may know more of them."""
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    for node in _nodes(bare.graph):
        for attribute in node.attribute:
            if attribute.HasField("g"):
                del attribute.g.value_info[:]
                for output in attribute.g.output:
                    output.type.tensor_type.ClearField("shape")
    return bare


def _no_dearer(
    original: onnx.ModelProto,
    result: Result,
    shapes: Mapping[str, tuple[int, ...]],
    before: int,
    after: int,
) -> None:
    """before, after: MACs."""
    # The gate takes everything here: what compose-convs would have measured first may cost more.
    more = MOST_MORE * result.names.count("compose-convs")
    if after > before + more and not _has_bodies(original):  # theirs are not counted
        raise BrokenError("more MACs", f"{after} after {before}", result.names)
    nodes, were = _node_count(result.proto), _node_count(original)
    if nodes > were + FLATTENS * result.names.count("fc-to-conv"):
        raise BrokenError("more nodes", f"{nodes} after {were}", result.names)
    allowed = _bytes_allowed(original, result.proto, shapes)
    allowed += SPARE_BYTES * result.names.count("compose-convs")  # likewise
    size = result.proto.ByteSize()
    if size > allowed:
        raise BrokenError("a bigger file", f"{size} bytes, {allowed} allowed", result.names)


def _adds_up(original: onnx.ModelProto, result: Result, before: Tally, after: Tally) -> None:
    """The changes in the ledger, one by one, are together the difference of the totals."""
    what = ["nodes", "parameters", "weight_bytes", *["macs"] * (not _has_bodies(original))]
    for name in what:
        saved = sum(getattr(c.before, name) - getattr(c.after, name) for c in result.applied)
        wanted = getattr(before, name) - getattr(after, name)
        if saved != wanted:
            raise BrokenError("the ledger is off", f"{name}: {saved} for {wanted}", result.names)


def _has_bodies(proto: onnx.ModelProto) -> bool:
    return len(_nodes(proto.graph)) > len(proto.graph.node)


def _cost(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> Tally:
    model = ir.from_proto(proto)
    bound = bind_inputs(model.graph, shapes, batch=1, size=8)
    return model_cost(model, infer(model, bound)).tally


def _nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    found = []
    for node in graph.node:
        found.append(node)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += _nodes(attribute.g)
    return found


def _node_count(proto: onnx.ModelProto) -> int:
    return sum(node.op_type != "Constant" for node in _nodes(proto.graph))


def _bytes_allowed(
    original: onnx.ModelProto, result: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]
) -> int:
    """The original and its provenance; a weight that several nodes share may be copied for each."""
    uses = Counter(name for node in _nodes(original.graph) for name in node.input)
    uses.update(value.name for value in original.graph.output)
    copies = sum(
        (uses[tensor.name] - 1) * len(tensor.raw_data)
        for tensor in original.graph.initializer
        if uses[tensor.name] > 1
    )
    bodies = (a.g for node in original.graph.node for a in node.attribute if a.HasField("g"))
    inner = [node.op_type for body in bodies for node in _nodes(body)]
    made = EXPANDED_BYTES * (inner.count("Expand") + inner.count("ConstantOfShape"))
    made += sum(uses[name] * size for name, size in _computed(original, shapes).items())
    slack = STAMP_BYTES + NODE_BYTES * len(_nodes(result.graph))
    return original.ByteSize() + slack + copies + made


def _computed(original: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Bytes that may be stored of each value that nodes of the main graph compute from constants."""
    model = ir.from_proto(original)
    known = infer(model, bind_inputs(model.graph, shapes, batch=1, size=8))
    constants = {tensor.name for tensor in original.graph.initializer}
    found = {}
    for node in original.graph.node:
        if constants.issuperset(filter(None, node.input)):
            constants.update(node.output)
            for name in node.output:
                if name in known:
                    info = known[name]
                    size = math.prod(info.shape) * info.dtype.itemsize
                    found[name] = int(min(size, EXPANDED_BYTES))
    return found
