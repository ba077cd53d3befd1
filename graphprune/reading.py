"""Read one ONNX file into `onnx_ir`: refuse what is invalid, mend what ONNX Runtime would read.

The specification is <https://github.com/onnx/onnx/blob/main/docs/IR.md>. Weights stay where
they are: external tensors are mapped into memory when they are used, and not before.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes.common import InlinePass

from graphprune.errors import GraphError, LoadError
from graphprune.weights import check_tensors, rebase_weights

_DEFAULT_DOMAINS = ("", "ai.onnx")


def read_model(path: Path) -> tuple[ir.Model, tuple[str, ...]]:
    """The model in `path`, local functions inlined, and what had to be mended in it.

    Mended is only what ONNX Runtime reads too: constants that are declared twice (the last
    one counts), operator domains without an import, nodes that stand before their inputs.

    Raises `LoadError` where the file or its weights cannot be read, `GraphError` where what
    it holds is not valid ONNX or too new.
    """
    proto = _parse(path)
    scan = _Scan(path)
    scan.model(proto)
    check_tensors(proto, path)
    model = _to_ir(proto, path)
    if model.functions:
        model = _inline(model, path)
    rebase_weights(model, path)
    return model, (*scan.repairs, *_sort(model, path))


def _parse(path: Path) -> onnx.ModelProto:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LoadError(f"cannot read {path}: {error.strerror}") from error
    if data.startswith(b"version https://git-lfs"):
        raise LoadError(f"{path} is a Git LFS pointer, not the model: run `git lfs pull`")
    try:
        proto = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise LoadError(f"{path} is not an ONNX model, or it is truncated or damaged") from error
    if not proto.HasField("graph") or not proto.ir_version:
        raise LoadError(f"{path} is not an ONNX model: it has no graph or no IR version")
    if not proto.graph.node and not proto.graph.output:
        raise LoadError(f"{path}: its graph is empty: it has no nodes and no outputs")
    return proto


@dataclass
class _Scan:
    """One walk over the protobuf message, before `onnx_ir` sees it: names, scopes, opsets."""

    path: Path
    repairs: list[str] = field(default_factory=list)

    def model(self, proto: onnx.ModelProto) -> None:
        """Check the main graph and the local functions; mend what can be."""
        self._opsets(proto)
        for entry in proto.metadata_props:
            for text in (entry.key, entry.value):
                self._text(text, "the metadata")
        used = set(self._graph(proto.graph, frozenset()))
        for function in proto.functions:
            known = frozenset(function.input) | {o for n in function.node for o in n.output}
            for node in function.node:
                used |= set(self._node(node, known))
        imports = [*proto.opset_import, *(o for f in proto.functions for o in f.opset_import)]
        imported = {opset.domain for opset in imports} | {f.domain for f in proto.functions}
        for domain in sorted(used - imported):
            if domain in _DEFAULT_DOMAINS:
                raise GraphError(f"{self.path}: no opset is imported for the standard operators")
            proto.opset_import.add(domain=domain, version=1)
            self.repairs.append(f"imported {domain} version 1, which nodes use")

    def _opsets(self, proto: onnx.ModelProto) -> None:
        newest = onnx.defs.onnx_opset_version()
        if proto.ir_version > onnx.IR_VERSION:
            raise GraphError(
                f"{self.path}: IR version {proto.ir_version} is newer than {onnx.IR_VERSION}, "
                "the newest that the installed onnx reads: update onnx"
            )
        for opset in proto.opset_import:
            self._text(opset.domain, "an opset import")
            opset.domain = "" if opset.domain in _DEFAULT_DOMAINS else opset.domain
            if opset.domain == "" and not 1 <= opset.version <= newest:
                raise GraphError(
                    f"{self.path}: opset {opset.version} is not one of 1 to {newest}, "
                    "which the installed onnx knows: update onnx"
                )

    def _graph(self, graph: onnx.GraphProto, outer: frozenset[str]) -> Iterator[str]:
        """Check one graph, whose nodes may read `outer` names; yields the domains it uses."""
        if graph.sparse_initializer:
            raise GraphError(f"{self.path}: graph {graph.name!r} has sparse initializers: not supported")
        self._drop_redeclared(graph)
        inputs = [value.name for value in graph.input]
        if len(set(inputs)) < len(inputs):
            raise GraphError(f"{self.path}: graph {graph.name!r} declares an input twice: {inputs}")
        known = outer.union(inputs, (i.name for i in graph.initializer), *(n.output for n in graph.node))
        for values in (graph.input, graph.output, graph.value_info):
            for value in values:
                self._text(value.name, f"a value of graph {graph.name!r}")
        for tensor in graph.initializer:
            self._text(tensor.name, f"an initializer of graph {graph.name!r}")
        for value in graph.output:
            if value.name not in known:
                raise GraphError(f"{self.path}: nothing computes {value.name!r}, an output of the graph")
        for node in graph.node:
            yield from self._node(node, known)

    def _node(self, node: onnx.NodeProto, known: frozenset[str]) -> Iterator[str]:
        for text in (node.name, node.op_type, node.domain, *node.input, *node.output):
            self._text(text, f"node {node.name!r} ({node.op_type!r})")
        for name in node.input:
            if name and name not in known:
                raise GraphError(f"{self.path}: {_label(node)} reads {name!r}, which nothing computes")
        yield "" if node.domain in _DEFAULT_DOMAINS else node.domain
        for attribute in node.attribute:
            self._text(attribute.name, f"an attribute of {_label(node)}")
            if attribute.HasField("g"):
                yield from self._graph(attribute.g, known)
            for graph in attribute.graphs:
                yield from self._graph(graph, known)

    def _drop_redeclared(self, graph: onnx.GraphProto) -> None:
        """Keep the last of several Constants with one output name, as ONNX Runtime does."""
        counts = Counter(name for node in graph.node for name in node.output if name)
        repeated = {name for name, count in counts.items() if count > 1}
        if not repeated:
            return
        last = {name: i for i, node in enumerate(graph.node) for name in node.output}
        kept = []
        for i, node in enumerate(graph.node):
            if not repeated.intersection(node.output):
                kept.append(node)
            elif node.op_type != "Constant":
                raise GraphError(f"{self.path}: {_label(node)} computes {node.output[0]!r} once more")
            elif last[node.output[0]] == i:
                kept.append(node)
        self.repairs.append(f"kept the last of {len(repeated)} constants that are declared more than once")
        del graph.node[:]
        graph.node.extend(kept)

    def _text(self, text: Any, where: str) -> None:
        """Protobuf hands out bytes where a string is not UTF-8."""
        if not isinstance(text, str):
            raise GraphError(f"{self.path}: the name {text!r} in {where} is not UTF-8 text")


def _to_ir(proto: onnx.ModelProto, path: Path) -> ir.Model:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of keys beside location, offset and length, for one
            return ir.serde.deserialize_model(proto)
    except Exception as error:  # whatever else a damaged message makes the deserializer raise
        logging.getLogger(__name__).debug("deserializing %s", path, exc_info=True)
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        raise GraphError(f"{path} is not valid ONNX: {_one_line(root)}") from error


def _inline(model: ir.Model, path: Path) -> ir.Model:
    """The model without local functions: recovery reads plain graphs."""
    try:
        return InlinePass()(model).model
    except Exception as error:  # a PreconditionError (functions that call each other), or its kin
        raise GraphError(f"{path}: its local functions cannot be inlined: {_one_line(error)}") from error


def _sort(model: ir.Model, path: Path) -> tuple[str, ...]:
    """Put the nodes in topological order where they are not."""
    before = list(ir.traversal.RecursiveGraphIterator(model.graph))
    try:
        model.graph.sort()
    except ValueError as error:
        names = ", ".join(f"{n.name or '(no name)'} ({n.op_type})" for n in _cycle(before))
        raise GraphError(f"{path}: the graph has a cycle: {names}") from error
    after = list(ir.traversal.RecursiveGraphIterator(model.graph))
    return ("sorted the nodes, which stood before their inputs",) if after != before else ()


def _cycle(nodes: list[ir.Node]) -> list[ir.Node]:
    """One cycle among the nodes, for the error message."""
    producers = {n: {p for v in n.inputs if v is not None and (p := v.producer())} for n in nodes}
    try:
        TopologicalSorter(producers).prepare()
    except CycleError as error:
        return list(error.args[1])[:-1]
    return []


def _label(node: onnx.NodeProto) -> str:
    return f"node {node.name!r} ({node.op_type})"


def _one_line(error: BaseException, limit: int = 200) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
