"""What is kept of a menu: nothing that another candidate clearly beats."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from graphopt.planning.menus import front, layers_of, menus
from graphopt.planning.workshop import Workshop, identity_moments
from graphopt.rewrites import APPROXIMATE
from graphopt.rewrites.approximate.kernel_chain import KernelChain

grid = st.integers(0, 40).map(lambda n: n / 40)
close = st.integers(80, 120).map(lambda n: n / 100)
points = st.lists(
    st.builds(lambda m, e: SimpleNamespace(macs_ratio=m, error=e), grid, grid | close), max_size=25
)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(candidates=points)
def test_the_front(candidates):
    kept = front(candidates)
    assert {id(one) for one in kept} <= {id(one) for one in candidates}
    assert len({id(one) for one in kept}) == len(kept)
    order = [(one.macs_ratio, one.error) for one in kept]
    assert order == sorted(order)
    for one in candidates:
        rivals = [o for o in candidates if o.macs_ratio <= one.macs_ratio and o.error < one.error]
        if any(one is other for other in kept):
            assert all(rival.error * 1.05 >= one.error for rival in rivals)
        else:
            assert any(any(rival is other for other in kept) for rival in rivals)
            assert any(rival.error * 1.05 < one.error for rival in rivals)
    if candidates:
        assert min(c.macs_ratio for c in candidates) == kept[0].macs_ratio
        assert min(c.error for c in candidates) == min(c.error for c in kept)


def test_equals_are_both_kept():
    twins = [SimpleNamespace(macs_ratio=0.5, error=0.1) for _ in range(2)]
    assert len(front(twins)) == 2


def test_menus_of_a_model(kit):
    rng = np.random.default_rng(0)
    arrays = {
        "big": rng.standard_normal((16, 16, 3, 3)),
        "shallow": rng.standard_normal((16, 16, 1, 1)),
        "depthwise": rng.standard_normal((16, 1, 3, 3)),
    }
    nodes, value = [], "x"
    for name in arrays:
        group = 16 if name == "depthwise" else 1
        inputs, output = [value, f"{name}_w"], f"{name}_y"
        nodes.append(helper.make_node("Conv", inputs, [output], name=name, group=group))
        nodes.append(helper.make_node("Relu", [output], [f"{name}_z"]))
        value = f"{name}_z"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 16, 12, 12])],
        [helper.make_tensor_value_info(value, 1, None)],
        [numpy_helper.from_array(a.astype(np.float32), f"{n}_w") for n, a in arrays.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    scope = kit.scope_of(proto)
    layers, declined = layers_of(scope, APPROXIMATE)
    assert [layer.node.name for layer in layers] == ["big", "shallow"]
    assert [(d.site, d.reason) for d in declined] == [
        (("depthwise",), "depthwise: one input channel a group")
    ]
    workshop = Workshop({layer.name: identity_moments(layer) for layer in layers}, 4)
    found = {menu.layer: menu.candidates for menu in menus(layers, APPROXIMATE, workshop)}
    assert list(found) == ["big_y", "shallow_y"]
    assert {c.rewrite for c in found["shallow_y"]} == {"output-bottleneck"}
    offered, _ = workshop.menu(layers[0], APPROXIMATE)
    kept = [(c.rewrite, c.ranks) for c in found["big_y"]]
    assert 1 < len(kept) < len(offered)
    assert kept == [(c.rewrite, c.ranks) for c in front(offered)]
    assert layers_of(scope, [KernelChain()])[0] == []
