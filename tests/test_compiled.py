from __future__ import annotations

from types import SimpleNamespace as Of

import pytest

from graphprune.attribution import COMPILED, Place, attribute
from graphprune.compiled import Regions
from graphprune.recover import recover
from graphprune.scopes import Scope
from graphprune.tagging import Trail, tag
from tests import graphs

BODY = f"""
    {graphs.ffn("x", "f")}
    s = Add (x, f)
    {graphs.ffn("s", "g")}
    y = Add (s, g)
"""
KERNEL = "OpenVINOExecutionProvider_OpenVINO-EP-subgraph_7_"


def regions(*parts: tuple[str, ...]) -> Regions:
    """What is recorded of a small model of which a provider compiles these parts, by outputs."""
    model = graphs.written(BODY)
    scope = Scope.of(model)
    places = attribute(recover(model), scope)
    tagged = model.clone()
    names = {node.outputs[0].name: node for node in tagged.graph}
    tag(tagged)
    recorded = [
        Of(ep_name="OpenVINOExecutionProvider", get_nodes=lambda p=p: [Of(name=names[n].name) for n in p])
        for p in parts
    ]
    cpu = Of(ep_name="CPUExecutionProvider", get_nodes=lambda: [Of(name=names["y"].name)])
    runtime = Of(get_provider_graph_assignment_info=lambda: [cpu, *recorded])
    return Regions.of(runtime, Trail.of(scope), places)


def test_a_kernel_compiled_of_one_blocks_nodes_is_of_the_block() -> None:
    found = regions(("f_up", "f_act", "f"), ("g_up",))
    assert found.place(f"{KERNEL}0") == Place("encoder.0.ffn", "fused", True)
    assert found.place(f"{KERNEL}1") == Place("encoder.1.ffn", "up", True)
    assert found.described(f"{KERNEL}0") == f"{KERNEL}0 (3 nodes of encoder.0.ffn)"


@pytest.mark.parametrize("number", [0, 5])
def test_one_of_several_blocks_or_of_unknown_nodes_is_of_none(number: int) -> None:
    found = regions(("f", "s", "g_up", "g_act"))
    assert found.place(f"{KERNEL}{number}") == Place(COMPILED)
    shown = " (4 nodes of encoder.0.ffn, encoder.1.ffn)" if not number else ""
    assert found.described(f"{KERNEL}{number}") == f"{KERNEL}{number}{shown}"


def test_other_kernels_are_not_compiled() -> None:
    assert regions(("f",)).place("gp.3.") is None
    assert Regions.of(object(), Trail.of(Scope(())), {}).place(f"{KERNEL}0") == Place(COMPILED)
