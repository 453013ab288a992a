"""How plans are fitted and chosen: everything on by default, each part removable to see what it is worth."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """The parts of the approximate engine. Benchmarks switch them off one at a time.

    activation_aware: fit in the metric of what a layer sees, not of its weight alone.
    asymmetric: fit every layer to the input that it will really see, in topological order.
    residual: where a response is added to another branch, fit the sum: the branch's errors too.
    output_metric: weigh a layer's response by how much the outputs care about each direction.
    global_choice: scheme and rank layer by layer; off, every layer gets the same share of its MACs.
    shrinkage: move noisy second moments towards their diagonal, as the number of samples warrants.
    polish: descend on both factors of the chosen plan together, where no closed form is optimal.
    """

    activation_aware: bool = True
    asymmetric: bool = True
    residual: bool = True
    output_metric: bool = True
    global_choice: bool = True
    shrinkage: bool = True
    polish: bool = True
