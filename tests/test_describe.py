from __future__ import annotations

import json
from dataclasses import replace

import onnx_ir as ir

from graphprune.architecture import Cache, Declined
from graphprune.describe import survey_to_json, to_json
from graphprune.survey import SurveyedFile
from tests.tiny import architecture


def test_the_object_of_a_model() -> None:
    read = architecture([("encoder", [["attention"], ["ffn"]])])
    nameless = ir.Node("", "Mul", [], name=None)
    nameless.outputs[0].name = "product"
    read = replace(read, declined=(Declined((nameless,), "a gate"),))
    attention = read.stacks[0].layers[0].blocks[0]
    shown = to_json(read)
    assert json.loads(json.dumps(shown)) == shown
    assert shown["format"] == 1
    assert shown["declined"] == [{"nodes": ["product"], "reason": "a gate"}]
    (stack,) = shown["stacks"]
    assert (stack["name"], stack["graph"]) == ("encoder", "")
    assert [layer["index"] for layer in stack["layers"]] == [0, 1]
    assert stack["layers"][0]["blocks"] == [
        {
            "id": "encoder.0.attention",
            "kind": "attention",
            "branches": [branch.kind for branch in attention.branches],
            "join": attention.join.name,
            "norm": "pre",
            "parameters": 10,
            "macs": "batch*sequence*3",
            "droppable": True,
            "reason": "",
            "nodes": 1,
            "caches": [],
        }
    ]


def test_caches_are_named() -> None:
    read = architecture([("decoder", [["attention"]])])
    stack = read.stacks[0]
    block = stack.layers[0].blocks[0]
    values = (ir.val("inner"),), (ir.val("outer"),)
    cache = Cache("self", *values, input_names=("past.0.key",), output_names=("present.0.key",))
    layer = replace(stack.layers[0], blocks=(replace(block, caches=(cache,)),))
    shown = to_json(replace(read, stacks=(replace(stack, layers=(layer,)),)))
    assert shown["stacks"][0]["layers"][0]["blocks"][0]["caches"] == [
        {"kind": "self", "inputs": ["past.0.key"], "outputs": ["present.0.key"]}
    ]


def test_files_of_a_bundle_are_named_only_where_there_are_several() -> None:
    one, two = (SurveyedFile(f"{n}.onnx", architecture([(n, [["ffn"]])])) for n in ("encoder", "decoder"))
    assert "file" not in survey_to_json([one])["stacks"][0]
    assert [stack["file"] for stack in survey_to_json([one, two])["stacks"]] == [
        "encoder.onnx",
        "decoder.onnx",
    ]
