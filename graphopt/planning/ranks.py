"""What `--ranks` says: which layers a designer wants factored, how, and at which ranks.

    conv1=64,/features/3/Conv=two-sided:64x64,fc=output-bottleneck:32

Names of layers may hold `=`, `:` and `,`: an entry is read from its right end, where `=`, perhaps
a scheme and `:`, and the ranks stand; what comes before is the name. Only a name with something
like `=64,` inside cannot be written so: then that of the layer's output value can.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from graphopt.errors import InputError
from graphopt.graph.scope import Scope, site_of
from graphopt.planning.workshop import Workshop, identity_moments
from graphopt.rewrites.approximate.decoupled import Decoupled
from graphopt.rewrites.approximate.decoupled_pointwise_first import DecoupledPointwiseFirst
from graphopt.rewrites.approximate.input_bottleneck import InputBottleneck
from graphopt.rewrites.approximate.kernel_chain import KernelChain
from graphopt.rewrites.approximate.layer import Layer
from graphopt.rewrites.approximate.output_bottleneck import OutputBottleneck
from graphopt.rewrites.approximate.scheme import Ranks, Scheme
from graphopt.rewrites.approximate.spatial import Spatial
from graphopt.rewrites.approximate.two_sided import TwoSided
from graphopt.rewrites.ledger import Applied

_ENTRY = re.compile(
    r"(?P<layer>.+?)\s*=\s*(?:(?P<scheme>[^=:,]+):)?(?P<ranks>[0-9]{1,9}(?:[xX][0-9]{1,9})*)",
    re.DOTALL,
)

_FORM = "layer=rank or layer=scheme:rank (conv1=64,conv2=two-sided:64x64)"

_SHOWN = 6
"""Layers that an error lists."""


@dataclass(frozen=True)
class Request:
    """One entry. layer: by node or output name. scheme: None for the usual one of such a layer."""

    layer: str
    scheme: str | None
    ranks: Ranks


@dataclass(frozen=True)
class Structure:
    """A layer and what it is to become."""

    layer: Layer
    scheme: Scheme
    ranks: Ranks


def parse(text: str) -> tuple[Request, ...]:
    """The entries of a `--ranks` text, in its order.

    Raises:
        InputError: It is not of the form.
    """
    requests: list[Request] = []
    pending: list[str] = []
    for piece in text.split(","):
        if not pending and not piece.strip():
            continue
        pending.append(piece)
        found = _ENTRY.fullmatch(",".join(pending).strip())
        if found is not None:
            scheme = found["scheme"]
            ranks = tuple(int(rank) for rank in found["ranks"].lower().split("x"))
            requests.append(Request(found["layer"], scheme and scheme.strip(), ranks))
            pending = []
    if pending:
        raise InputError(f"--ranks {','.join(pending).strip()!r} is not of the form {_FORM}")
    if not requests:
        raise InputError(f"--ranks names no layer: it is of the form {_FORM}")
    return tuple(requests)


def check_schemes(requests: Sequence[Request], known: Sequence[str]) -> None:
    """Raise InputError for a scheme that does not exist, before anything is read."""
    for request in requests:
        if request.scheme is not None and request.scheme not in known:
            near = difflib.get_close_matches(request.scheme, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise InputError(f"--ranks {request.layer}: no scheme {request.scheme!r}: {hint}")


def structures(
    requests: Sequence[Request],
    scope: Scope,
    schemes: Sequence[Scheme],
    original: ir.Graph,
    applied: Sequence[Applied] = (),
) -> list[Structure]:
    """What is asked for, in topological order.

    scope: the exactly rewritten model. schemes: those that may be used. original: the graph in the
    file, whose names count as well. applied: what the exact rewrites did.

    Raises:
        InputError: A layer that does not exist, cannot be factored or is named twice; a scheme that
            does not apply; ranks out of range.
    """
    found: dict[str, Structure] = {}
    called: dict[str, str] = {}
    for request in requests:
        layer = _layer(request.layer, scope, original, applied)
        if layer.name in found:
            other = called[layer.name]
            also = "" if other == request.layer else f" (also called {other!r})"
            raise InputError(f"--ranks names the layer {request.layer!r}{also} twice")
        scheme = _scheme(request, layer, schemes)
        _check(request, scheme, layer)
        found[layer.name] = Structure(layer, scheme, request.ranks)
        called[layer.name] = request.layer
    order = {node: index for index, node in enumerate(scope.graph)}
    return sorted(found.values(), key=lambda structure: order[structure.layer.node])


def usual(layer: Layer) -> str:
    """The scheme of a layer for which only a rank is given.

    A 1x1 reducer in front of a k x k convolution (GoogLeNet); two thin layers where there is no
    neighbourhood to look at: 1x1, fully connected, also as a convolution over the whole map.
    """
    whole_map = not layer.transposed and layer.kernel == layer.input_size and not any(layer.pads)
    return "output-bottleneck" if layer.taps == 1 or whole_map else "input-bottleneck"


def largest(scheme: Scheme, layer: Layer) -> Ranks:
    """The largest ranks that make sense, per group: where the scheme is exact or never will be."""
    inner = min(layer.inputs, layer.apart * layer.outputs * layer.taps)
    outer = min(layer.outputs, layer.inputs * layer.taps)
    match scheme:
        case InputBottleneck():
            return (inner,)
        case OutputBottleneck():
            return (outer,)
        case TwoSided():
            return inner, outer
        case Spatial(first_axis=axis):
            along, across = layer.kernel[axis], layer.kernel[1 - axis]
            return (min(layer.inputs * along, layer.outputs * across),)
        case KernelChain():
            return (2 * max(layer.inputs, layer.outputs),)
        case Decoupled():
            return (layer.taps,)
        case DecoupledPointwiseFirst():
            return (min(layer.inputs, layer.taps - 1),)
    # A scheme of an installed package: what it would offer itself, were all ranks equally good.
    offered = (
        Workshop({layer.name: identity_moments(layer)}, 1).decomposition(layer, scheme).offered
    )
    return tuple(max(ranks) for ranks in zip(*offered, strict=True))


def _layer(name: str, scope: Scope, original: ir.Graph, applied: Sequence[Applied]) -> Layer:
    seen: ir.Node | None = None
    for nodes in _matches(name, scope, original):
        layers = {node: found for node in nodes if (found := Layer.of(node, scope)) is not None}
        if len(layers) > 1:
            outputs = ", ".join(node.outputs[0].name or "" for node in layers)
            raise InputError(
                f"--ranks {name}: {len(layers)} layers have this name: call them by their outputs "
                f"({outputs})"
            )
        for layer in layers.values():
            if isinstance(layer, Layer):
                return layer
            raise InputError(f"--ranks {name}: the layer cannot be factored: {layer}")
        seen = seen or next(iter(nodes), None)
    raise InputError(_unknown(name, seen, scope, applied))


def _matches(name: str, scope: Scope, original: ir.Graph) -> Iterator[list[ir.Node]]:
    """Nodes of that name; those with such an output; those that in the file had such an output."""
    yield [node for node in scope.graph if node.name == name]
    yield [node for node in scope.graph if _gives(node, name)]
    before = {node.name for node in original if node.name and _gives(node, name)}
    yield [node for node in scope.graph if node.name in before]


def _gives(node: ir.Node, name: str) -> bool:
    return any(output.name == name for output in node.outputs)


def _unknown(name: str, seen: ir.Node | None, scope: Scope, applied: Sequence[Applied]) -> str:
    gone = next((change for change in reversed(applied) if name in change.site), None)
    why = "" if seen is None else f" (it is a {seen.op_type})"
    if seen is None and gone is not None:
        why = (
            f" any more ({gone.name} took up {' + '.join(gone.site)}; --skip {gone.name} keeps it)"
        )
    names = [site_of(node)[0] for node in scope.graph if Layer.of(node, scope) is not None]
    if not names:
        return f"--ranks: there is no layer {name!r}{why}, nor any other"
    names.sort(key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio())
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    near = f"{', '.join(names[:_SHOWN])}{rest}"
    hint = "; every layer needs a rank of its own (a=64,b=64)" if "," in name else ""
    return f"--ranks: there is no layer {name!r}{why}; there are, nearest first: {near}{hint}"


def _scheme(request: Request, layer: Layer, schemes: Sequence[Scheme]) -> Scheme:
    wanted = request.scheme or usual(layer)
    for scheme in schemes:
        if scheme.name == wanted:
            if isinstance(scheme, DecoupledPointwiseFirst):  # makes no more terms than it offers
                return replace(scheme, most_terms=max(request.ranks))
            return scheme
    raise InputError(f"--ranks {request.layer} needs {wanted}, which --passes or --skip leaves out")


def _check(request: Request, scheme: Scheme, layer: Layer) -> None:
    reason = scheme.applies(layer)
    if reason is not None:
        raise InputError(f"--ranks {request.layer}: {scheme.name} does not apply: {reason}")
    names, given = scheme.rank_names, len(request.ranks)
    if given != len(names):
        wants = "one rank" if len(names) == 1 else f"{len(names)} ranks ({' x '.join(names)})"
        raise InputError(f"--ranks {request.layer}: {scheme.name} takes {wants}, not {given}")
    group = " a group" if layer.group > 1 else ""
    for name, rank, most in zip(names, request.ranks, largest(scheme, layer), strict=True):
        if not 1 <= rank <= most:
            raise InputError(
                f"--ranks {request.layer}: {scheme.name} takes {name} 1 to {most}{group} here, "
                f"not {rank}"
            )
    if isinstance(scheme, InputBottleneck | TwoSided) and request.ranks[0] % layer.apart:
        raise InputError(
            f"--ranks {request.layer}: its offset groups are not mixed, so the {names[0]} of "
            f"{scheme.name} is a multiple of {layer.apart}, not {request.ranks[0]}"
        )
