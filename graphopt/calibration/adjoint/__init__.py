"""Gradients without a gradient framework: the adjoint of a network is itself an ONNX graph.

The adjoint model is a clone of the network with the vector-Jacobian products appended node by node,
last node first (Conv -> Conv with the flipped weight, Relu -> mask, Concat -> Split, ...), so that
onnxruntime runs forward and backward in one go. `build.py` walks the network, `rules.py` names the
rule of every operator, `tape.py` is what the rules write to.

Sizes of all axes but the first are taken as in the scope; the first may be open. Many rules hold for
any size (pooling, resizing that repeats elements, whatever works element by element).
"""

from graphopt.calibration.adjoint.build import Adjoint, adjoint

__all__ = ["Adjoint", "adjoint"]
