"""Put the bodies of model-local functions in the place of their calls."""

from __future__ import annotations

import graphlib
import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from graphopt.graph.scope import STANDARD_DOMAINS
from graphopt.rewrites.base import OptionValue, WholeModelPass

Identifier = ir.OperatorIdentifier
Marks = dict[str, tuple[str, ir.Value]]

_WITH_KERNELS = ("ai.onnx", "com.microsoft", "com.ms")
"""Domains (and what they begin with) whose operators runtimes know: a function in one of them is
for those runtimes that have no kernel."""

_MOST_BYTES = 1 << 16
_MOST_SHARE = 0.02


@dataclass(frozen=True)
class InlineFunctions(WholeModelPass):
    """A call of a model-local function  ==>  the nodes of the function.

    Nothing sees into a function, so a convolution in one and a normalization in another never meet.
    onnxruntime does the same when it loads a model: a function costs nothing and saves nothing
    at run time, only in the file. So all are inlined, whatever they hold, but for those

    - whose operators are others in the operator set of the function than in that of the model,
    - in a domain of which runtimes have kernels (the function is there for those that have not),
    - with a graph as a parameter,
    - that are called so often that the file would grow by more than 64 kB and 2 % of the weights.

    Calls and functions may hold bodies (If, Loop, Scan) and one another. The inlining itself is
    onnx-ir's. Names of what calls produce stay; inner ones are made unique in the whole model.
    """

    name = "inline-functions"

    def run(self, model: ir.Model) -> Mapping[str, OptionValue]:
        """Inline what can be; tells how many functions went, and why others stayed."""
        calls = _calls(model)
        if not calls:
            return {}
        reasons = kept(model)
        chosen = {key: f for key, f in model.functions.items() if key in calls.keys() - reasons}
        if not chosen:
            return {}
        for function in chosen.values():
            _prepare(function, model)
        _inline(model, chosen)
        options: dict[str, OptionValue] = {"functions": len(chosen)}
        left = [f"{key[0]}.{key[1]}: {reason}" for key, reason in sorted(reasons.items())]
        return {**options, "kept": "; ".join(left)} if left else options


def kept(model: ir.Model) -> dict[Identifier, str]:
    """The functions that are called but must stay, and why."""
    reasons: dict[Identifier, str] = {}
    imports = dict(model.opset_imports)
    order = _callers_first(model)
    if order is None:
        return dict.fromkeys(model.functions, "functions call one another in a circle")
    calls = _calls(model)
    for key in order:
        if key in calls:
            reason = _reason(model.functions[key], calls[key], model, imports)
            if reason is not None:
                reasons[key] = reason
    weights = sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )
    sizes = {key: _bytes(function) for key, function in model.functions.items()}
    while True:
        times = _expansions(model, order, reasons.keys())
        growth = {key: (times[key] - 1) * sizes[key] for key in order if key not in reasons}
        growth = {key: size for key, size in growth.items() if size > 0}
        if sum(growth.values()) <= max(_MOST_BYTES, _MOST_SHARE * weights):
            return reasons
        largest = max(growth, key=lambda key: (growth[key], key))
        reasons[largest] = f"inlined in {times[largest]} places it would make the file bigger"


def _reason(
    function: ir.Function, calls: Sequence[ir.Node], model: ir.Model, imports: dict[str, int]
) -> str | None:
    """Why a function cannot be inlined, whatever the others; else its domains join `imports`."""
    if not function.domain or function.domain.startswith(_WITH_KERNELS):
        return f"runtimes may have a kernel of the domain {function.domain or 'ai.onnx'}"
    attributes = [*function.attributes.values(), *(a for c in calls for a in c.attributes.values())]
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in attributes):
        return "it takes a graph as a parameter"
    if any(len(call.inputs) > len(function.inputs) for call in calls):
        return "it is called with more inputs than it has"
    wanted: dict[str, int] = {}
    for node in function.all_nodes():
        if node.op_identifier() in model.functions:
            continue
        own, other = _version(function.opset_imports, node), _version(imports, node)
        if own is None:
            return f"it does not say which {node.domain or 'ai.onnx'} it means"
        if other is None:
            wanted[node.domain] = own
        elif own != other and not _is_same_operator(node, own, other):
            return f"its {node.op_type} is of opset {own}, the model of opset {other}"
    imports.update(wanted)
    return None


def _version(imports: Mapping[str, int], node: ir.Node) -> int | None:
    domains = STANDARD_DOMAINS if node.domain in STANDARD_DOMAINS else (node.domain,)
    return max((imports[domain] for domain in domains if domain in imports), default=None)


def _is_same_operator(node: ir.Node, own: int, other: int) -> bool:
    """Whether an operator did not change between two versions of its set."""
    try:
        a, b = (onnx.defs.get_schema(node.op_type, v, node.domain) for v in (own, other))
    except onnx.defs.SchemaError:
        return False
    return bool(a.since_version == b.since_version)


def _calls(model: ir.Model) -> dict[Identifier, list[ir.Node]]:
    """The nodes that call each function, in the graph, in bodies and in functions."""
    found: dict[Identifier, list[ir.Node]] = {}
    holders: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for holder in holders:
        for node in holder.all_nodes():
            if node.op_identifier() in model.functions:
                found.setdefault(node.op_identifier(), []).append(node)
    return found


def _called(holder: ir.Graph | ir.Function, model: ir.Model) -> Counter[Identifier]:
    return Counter(
        key for node in holder.all_nodes() if (key := node.op_identifier()) in model.functions
    )


def _callers_first(model: ir.Model) -> list[Identifier] | None:
    """The functions, each before those it calls; None if there is a circle."""
    called = {key: set(_called(function, model)) for key, function in model.functions.items()}
    try:
        return list(graphlib.TopologicalSorter(called).static_order())[::-1]
    except graphlib.CycleError:
        return None


def _expansions(
    model: ir.Model, order: Sequence[Identifier], stay: Collection[Identifier]
) -> Counter[Identifier]:
    """How often the body of each function would be there if all but those that stay were inlined."""
    times = _called(model.graph, model)
    for key in order:
        copies = min(times[key], 1) if key in stay else times[key]
        for callee, count in _called(model.functions[key], model).items():
            times[callee] += copies * count
    return times


def _bytes(function: ir.Function) -> int:
    return sum(len(ir.serde.serialize_node(node).SerializeToString()) for node in function)


def _prepare(function: ir.Function, model: ir.Model) -> None:
    """Make a function such that onnx-ir can inline it.

    Its outputs become values of their own (not an input, not one value twice), its nodes get names
    that say where they come from, and its operator sets are called by the model's versions.
    """
    seen: set[ir.Value] = set()
    for index, value in enumerate(function.outputs):
        if value in seen or value.producer() is None:
            handed_on = ir.node("Identity", [value])
            function.append(handed_on)
            function.outputs[index] = handed_on.outputs[0]
            handed_on.outputs[0].name = f"{value.name}_out"
        seen.add(function.outputs[index])
    for node in function.all_nodes():
        node.name = node.name or f"{function.name}_{node.op_type}"
    for domain in function.opset_imports:
        if domain in model.opset_imports:
            function.opset_imports[domain] = model.opset_imports[domain]


def _inline(model: ir.Model, chosen: Mapping[Identifier, ir.Function]) -> None:
    before = set(_values(model))
    domains = set(model.opset_imports)
    marked: Marks = {}
    staying = [f for key, f in model.functions.items() if key not in chosen]
    holders: list[ir.Graph | ir.Function] = [model.graph, *staying]
    seen = {node for holder in holders for node in holder.all_nodes()}
    for key, calls in _calls(model).items():
        for call in calls if key in chosen else ():
            call.resize_outputs(len(chosen[key].outputs))
            for output in call.outputs:
                if output.name and call in seen:  # a mark to know what takes its place by
                    mark = f"\0{len(marked)}"
                    marked[mark], output.name = (output.name, output), mark
    common_passes.InlinePass(criteria=lambda function: function.identifier() in chosen)(model)
    _rename(model, before, marked)
    used = {node.domain for node in model.graph.all_nodes()}
    for domain in [d for d in model.opset_imports if d not in domains and d not in used]:
        del model.opset_imports[domain]
    common_passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)


def _rename(model: ir.Model, before: Collection[ir.Value], marked: Marks) -> None:
    """Give what the calls produced its names back, and new values names of their own.

    What functions say of the shapes of their values is forgotten: it need not hold for this call.
    """
    taken = {v.name for v in _values(model) if v in before} | {name for name, _ in marked.values()}
    for value in _values(model):
        if value.name is not None and value.name in marked:
            value.name, old = marked[value.name]
            value.metadata_props.update(old.metadata_props)
        elif value not in before:
            base = value.name or "inlined"
            numbered = itertools.chain([base], (f"{base}_{i}" for i in itertools.count(2)))
            value.name = next(name for name in numbered if name not in taken)
            taken.add(value.name)
            if value.producer() is not None and not value.is_graph_output():
                value.shape = value.type = None


def _values(model: ir.Model) -> Iterator[ir.Value]:
    """Every value that a graph, a body or a function defines."""
    for graph in model.graphs():
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs
    for function in model.functions.values():
        yield from function.inputs
        for node in function.all_nodes():
            yield from node.outputs
