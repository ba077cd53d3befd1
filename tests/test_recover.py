"""From a graph to an architecture: names, copies, sharing, caches, costs and reasons."""

from __future__ import annotations

import math
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from graphprune.architecture import Architecture, Block
from graphprune.bundle import load
from graphprune.recover import recover
from tests.graphs import STREAM, attention, ffn, in_words, norm, proto, written
from tools.zoo import Entry, entries

SHARED = Path(__file__).resolve().parents[2] / "shared" / "models"
needs_shared = pytest.mark.skipif(
    not SHARED.exists(), reason="the shared models are not beside this repository"
)


def layer(stream: str, out: str) -> str:
    """A pre-norm layer."""
    body = norm(stream, f"{out}n") + attention(f"{out}n", f"{out}a") + f"{out}h = Add ({stream}, {out}a)\n"
    return body + norm(f"{out}h", f"{out}m") + ffn(f"{out}m", f"{out}f") + f"{out} = Add ({out}h, {out}f)\n"


def entry(family: str) -> Entry:
    return next(iter(entries(family, fast=True)))


def exported(family: str, stem: str = "model") -> Architecture:
    (file,) = (file for file in entry(family).files() if file.stem == stem)
    return recover(load(file).files[0].model)


def test_ids_layers_and_the_stream() -> None:
    architecture = recover(written(layer("x", "l0") + layer("l0", "y")))
    (stack,) = architecture.stacks
    assert (stack.name, stack.path, [len(one.blocks) for one in stack.layers]) == ("encoder", "", [2, 2])
    assert [block.id for block in stack.blocks] == [
        "encoder.0.attention", "encoder.0.ffn", "encoder.1.attention", "encoder.1.ffn",
    ]  # fmt: skip
    assert [(b.stream_in.name, b.stream_out.name) for b in stack.blocks] == [
        ("x", "l0h"), ("l0h", "l0"), ("l0", "yh"), ("yh", "y"),
    ]  # fmt: skip
    owners = [node for block in stack.blocks for node in block.nodes]
    assert len(owners) == len(set(owners)) == len(list(architecture.model.graph))


def test_the_model_is_not_changed() -> None:
    model = written(layer("x", "y"))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    recover(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_the_norm_after_the_last_block_is_the_final_one() -> None:
    architecture = recover(written(layer("x", "l0") + layer("l0", "l1") + norm("l1", "y")))
    assert [block.placement for block in architecture.blocks] == ["pre"] * 4
    assert [n.output.name for n in architecture.final_norms] == ["y"]


def test_an_empty_graph_and_one_without_blocks() -> None:
    assert recover(ir.Model(ir.Graph([], [], nodes=[]), ir_version=10)).stacks == ()
    assert recover(written("a = Relu (x)\ny = MatMul (a, w_8x8)")).stacks == ()


def test_shared_weights_and_shared_nodes() -> None:
    body = layer("x", "l0") + layer("l0", "y").replace("y_up_8x24", "l0f_up_8x24")
    body = body.replace("MatMul (ym, yf_up_8x24)", "MatMul (ym, l0f_up_8x24)")
    for name in ("l0a", "ya"):
        body = body.replace(f"Softmax <axis = -1> ({name}_scores)", f"Softmax <axis = -1> ({name}_masked)")
        body = body.replace(f"{name}_p =", f"{name}_masked = Add ({name}_scores, bias)\n{name}_p =")
    body = "bias = Log (mask)\n" + body
    architecture = recover(written(body, inputs=f"{STREAM} x, float[1, sequence, sequence] mask"))
    assert [value.name for value in architecture.shared_weights] == ["l0f_up_8x24"]
    assert [node.op_type for node in architecture.shared_nodes] == ["Log"]
    assert len(list(architecture.blocks)) == 4


@needs_shared
def test_weights_shared_through_aliases() -> None:
    """Both layers read one set of initializers, each through Identity nodes of its own."""
    architecture = recover(load(SHARED / "vespa_enc_2l_sharedw.onnx").files[0].model)
    weights = {
        v for b in architecture.blocks for branch in b.branches for one in branch.linears for v in one.weights
    }
    assert len(architecture.shared_weights) == 4 < len(weights)


def test_the_copies_in_a_merged_decoder_carry_one_name() -> None:
    stacks = exported("t5", "decoder_model_merged").stacks
    assert {stack.name for stack in stacks} == {"decoder"}
    assert sorted(stack.path.rsplit("/", 1)[1] for stack in stacks) == ["else_branch", "then_branch"]
    first, second = ([block.id for block in stack.blocks] for stack in stacks)
    assert first == second


def test_caches_belong_to_their_blocks() -> None:
    architecture = exported("llama")
    for index, block in enumerate(b for b in architecture.blocks if b.kind == "attention"):
        (cache,) = block.caches
        assert [v.name for v in cache.inputs] == [
            f"past_key_values.{index}.{one}" for one in ("key", "value")
        ]
        assert [v.name for v in cache.outputs] == [f"present.{index}.{one}" for one in ("key", "value")]
        assert cache.kind == "self"


def test_a_cached_decoder_has_self_and_cross_caches() -> None:
    (stack,) = exported("t5", "decoder_with_past_model").stacks
    kinds = [
        (b.kind, [(c.kind, len(c.inputs), len(c.outputs)) for c in b.caches]) for b in stack.layers[0].blocks
    ]
    assert kinds == [("attention", [("self", 2, 2)]), ("cross_attention", [("cross", 2, 0)]), ("ffn", [])]


@needs_shared
def test_a_stacked_cache_is_one_input_and_one_output() -> None:
    model = load(SHARED / "gpt2_past_12l.onnx").files[0].model
    attention_blocks = [b for b in recover(model).blocks if b.kind == "attention"]
    names = [
        ([v.name for v in c.inputs], [v.name for v in c.outputs]) for b in attention_blocks for c in b.caches
    ]
    assert names == [([f"past_{i}"], [f"present_{i}"]) for i in range(12)]


def test_masks_and_encoder_states_are_no_caches() -> None:
    """In a model of one layer, they too are read by one block alone."""
    body = attention("x", "a").replace("MatMul (x, a_k_8x8)", "MatMul (z, a_k_8x8)")
    body = body.replace("MatMul (x, a_v_8x8)", "MatMul (z, a_v_8x8)")
    body = body.replace("Softmax <axis = -1> (a_scores)", "Softmax <axis = -1> (a_masked)")
    body = body.replace("a_p =", "a_masked = Add (a_scores, mask)\na_p =") + "y = Add (x, a)"
    inputs = f"{STREAM} x, float[batch, encoded, 8] z, float[batch, sequence, encoded] mask"
    (block,) = recover(written(body, inputs=inputs)).blocks
    assert (block.kind, block.caches) == ("cross_attention", ())


def test_a_block_whose_inside_is_put_out_is_not_droppable() -> None:
    body = attention("x", "a") + "y = Add (x, a)"
    model = proto(body, outputs=f"{STREAM} y, float[batch, sequence, sequence] a_p")
    (block,) = recover(ir.from_proto(model)).blocks
    assert not block.droppable and "'a_p'" in block.reason


def test_declined_regions_name_their_nodes() -> None:
    body = "[up] u = MatMul (x, u_8x24)\nr = Relu (u)\nd = MatMul (r, d_24x8)\n"
    body += "[join] y = Add (x, d)\n[spy] z = Neg (r)"
    (declined,) = recover(written(body, outputs=f"{STREAM} y, float[batch, sequence, 24] z")).declined
    assert [node.name for node in declined.nodes] == ["join"]
    assert "'spy'" in declined.reason


# -- costs ---------------------------------------------------------------------------------------


def test_macs_by_hand() -> None:
    attend, feed = recover(written(layer("x", "y"))).blocks
    assert str(attend.macs) == "batch*sequence*256 + batch*sequence*sequence*16"
    assert str(feed.macs) == "batch*sequence*384"
    assert (attend.parameters, feed.parameters) == (4 * 64 + 16, 2 * 8 * 24 + 16)


def torch_macs(family: str, inputs: dict[str, torch.Tensor]) -> dict[str, int]:
    """Multiply-accumulates by module path, counted by torch while the model runs."""
    model = entry(family).torch_model().eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(**inputs)
    counts = counter.get_flop_counts()
    return {path.split(".", 1)[-1]: sum(by_op.values()) // 2 for path, by_op in counts.items()}


def total(blocks: list[Block], **sizes: int) -> int:
    return sum(block.macs.at(**{name: sizes[name] for name in block.macs.names}) for block in blocks)


def test_macs_of_bert_are_torchs() -> None:
    counted = torch_macs("bert", {"input_ids": torch.ones(2, 7, dtype=torch.long)})
    blocks = list(exported("bert").blocks)
    assert total(blocks, batch_size=2, sequence_length=7) == counted["encoder"]
    assert total(blocks[:2], batch_size=2, sequence_length=7) == counted["encoder.layer.0"]


def test_macs_of_llama_are_torchs() -> None:
    counted = torch_macs(
        "llama", {"input_ids": torch.ones(2, 7, dtype=torch.long), "use_cache": torch.tensor(False)}
    )
    blocks = list(exported("llama").blocks)
    sizes = dict(batch_size=2, sequence_length=7, past_sequence_length=0)
    layers = [counted[path] for path in counted if path.endswith(tuple(f"layers.{i}" for i in range(4)))]
    assert total(blocks, **sizes) == sum(layers)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_macs_of_convolutions_are_torchs(tmp_path: Path) -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Conv2d(8, 16, 3, stride=1, padding=1)
            self.depthwise = torch.nn.Conv2d(16, 16, 5, padding=2, groups=16)
            self.last = torch.nn.Conv2d(16, 8, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.last(torch.relu(self.depthwise(self.first(x))))

    module, x = Block().eval(), torch.zeros(2, 8, 12, 10)
    torch.onnx.export(module, (x,), tmp_path / "conv.onnx", dynamo=False)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module(x)
    (block,) = recover(ir.load(tmp_path / "conv.onnx")).blocks
    assert (block.kind, block.macs.at()) == ("conv", counter.get_total_flops() // 2)
    assert block.parameters == sum(math.prod(p.shape) for p in module.parameters())


def test_macs_of_an_image_model_are_a_formula_of_height_and_width() -> None:
    same = "kernel_shape = [3, 3], pads = [1, 1, 1, 1]"
    body = f"s = Conv <{same}, strides = [2, 2]> (x, s_8x8x3x3)\na = Conv <{same}> (s, a_8x8x3x3)\n"
    body += f"r = Relu (a)\nb = Conv <{same}> (r, b_8x8x3x3)\ny = Add (s, b)"
    image = "float[batch, 8, height, width]"
    (block,) = recover(written(body, inputs=f"{image} x", outputs="float[batch, 8, h, w] y")).blocks
    assert str(block.macs) == f"batch*height*width*{2 * 8 * 8 * 9 // 4}"
    assert block.macs.at(batch=2, height=32, width=16) == 2 * (8 * 8 * 9) * 2 * 16 * 8


@needs_shared
def test_macs_and_parameters_of_resnet_50() -> None:
    """The 16 blocks of ResNet-50 at 224 × 224, by hand: widths 64 to 512, shortcuts left out."""
    architecture = recover(load(SHARED / "light_resnet50_sum.onnx").files[0].model)
    expected = []
    for width, count, size in ((64, 3, 56), (128, 4, 28), (256, 6, 14), (512, 3, 7)):
        for index in range(count):
            before = 4 * width if index else 2 * width if width > 64 else 64
            stride = 2 if width > 64 and not index else 1  # in the 3×3 convolution
            first, rest = before * width, 9 * width**2 + 4 * width**2
            macs = first * (stride * size) ** 2 + rest * size**2
            normalization = 4 * (width + width + 4 * width)
            expected.append((macs, first + rest + normalization))
    assert [(b.macs.at(), b.parameters) for b in architecture.blocks] == expected
    assert in_words(architecture).count("conv:none!") == 4
