from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphprune.errors import SelectionError
from graphprune.passes.drop_layers import DropLayers
from graphprune.passes.merge_layers import MergeLayers
from tests.graphs import ffn, norm, written
from tests.passes.test_drop_layers import THREE, layer
from tests.passes.written import answers, pruned, text
from tests.tiny import architecture


def weights(model: ir.Model) -> dict[str, np.ndarray]:
    """All stored weights by name."""
    found = {name: value.const_value for name, value in model.graph.initializers.items()}
    return {name: tensor.numpy() for name, tensor in found.items() if tensor is not None}


def expected(merged: dict[str, np.ndarray], into: str, others: str) -> list[np.ndarray]:
    """θ + Σ (θ_k − θ) of every weight of a layer of `THREE`, layers by their letters."""
    own = {name: array for name, array in merged.items() if name.startswith(into)}
    return [a + sum(merged[other + name[1:]] - a for other in others) for name, a in own.items()]


@pytest.mark.parametrize(
    ("layers", "into", "letters", "left"),
    [
        ("1-2", "", "p qr", layer("x", "p") + norm("p", "y")),
        ("1", "", "p q", layer("x", "p") + layer("p", "r") + norm("r", "y")),
        ("2", "", "q r", layer("x", "p") + layer("p", "q") + norm("q", "y")),
        ("0", "2", "r p", layer("x", "q") + layer("q", "r") + norm("r", "y")),
    ],
)
def test_what_sets_layers_apart_is_added(layers: str, into: str, letters: str, left: str) -> None:
    model = pruned(THREE, MergeLayers(layers, into))
    plain = pruned(THREE, DropLayers(layers))
    assert [line.rpartition(" (")[0] for line in text(model)] == [
        line.rpartition(" (")[0] for line in text(written(left))
    ]
    own, others = letters.split()
    wanted = expected(weights(written(THREE)), own, others)
    found = [array for name, array in weights(model).items() if "merged" in name]
    assert len(found) == len(wanted) and len(weights(model)) == len(weights(plain))
    for array in wanted:
        assert any(a.shape == array.shape and np.allclose(a, array, atol=1e-6) for a in found)


def test_runs_of_layers_go_into_the_layer_before_each() -> None:
    body = THREE.replace(norm("r", "y"), "") + layer("r", "s") + norm("s", "y")
    said = answers(body, MergeLayers("1,3"))
    assert said == {
        "encoder.1": "merge the layer into layer 0: 15 nodes, 672 parameters",
        "encoder.3": "merge the layer into layer 2: 15 nodes, 672 parameters",
    }


def test_the_first_layer_has_none_before_it() -> None:
    assert answers(THREE, MergeLayers("0")) == {
        "encoder.0": "(there is no layer of its stack that it could be merged into)"
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "0-1", "into": "1"}, "layer 1 cannot be merged into itself"),
        ({"layers": "0", "into": "1-2"}, "names several layers to merge into"),
        ({"layers": "0", "into": "7"}, "7"),
    ],
)
def test_what_cannot_be_asked(options: dict[str, str], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        answers(THREE, MergeLayers(**options))


def ffn_layer(stream: str, out: str, weights: str, width: int = 24) -> str:
    """A pre-norm FFN, its weights named after `weights`."""
    inside = f"{norm(stream, f'{out}n')} {ffn(f'{out}n', f'{out}f')} {out} = Add ({stream}, {out}f) "
    for end in ("n_gamma_8", "n_beta_8", "f_up_8x24", "f_down_24x8"):
        inside = inside.replace(f"{out}{end}", f"{weights}{end.replace('24', str(width))}")
    return inside


def test_layers_that_share_weights_have_nothing_to_merge() -> None:
    body = ffn_layer("x", "p", "p") + ffn_layer("p", "y", "p")
    assert answers(body, MergeLayers("1")) == {
        "encoder.1": "(it cannot be merged into layer 0: encoder.0.ffn and encoder.1.ffn share weights)"
    }


def test_layers_of_other_sizes_are_declined() -> None:
    body = ffn_layer("x", "p", "p") + ffn_layer("p", "q", "q", 16) + ffn_layer("q", "y", "y", 16)
    (said,) = [s for t, s in answers(body, MergeLayers("all-but:0", "0")).items() if t.endswith(".1")]
    assert said.endswith("the parameters of encoder.0.ffn and encoder.1.ffn are not of the same form)"), said


def test_other_kinds_of_blocks_are_declined() -> None:
    both = architecture([("encoder", [["attention", "ffn"], ["ffn"]])])
    (answer,) = MergeLayers("1").plan(both)
    assert "its blocks are not of the same kinds" in str(answer)


def test_quantized_weights_are_declined() -> None:
    def quantized(stream: str, out: str) -> str:
        return f"""
        {out}w = DequantizeLinear ({out}i, scale) {out}u = MatMul ({stream}, {out}w) {out}r = Relu ({out}u)
        {out}d = MatMul ({out}r, {out}down_24x8) {out} = Add ({stream}, {out}d)
        """

    constants = {name: np.full((8, 24), 3, np.int8) for name in ("pi", "yi")} | {"scale": np.float32(0.1)}
    said = answers(quantized("x", "p") + quantized("p", "y"), MergeLayers("1"), constants=constants)
    assert "is not stored as it is read: it is made by node '' (DequantizeLinear)" in said["encoder.1"]
