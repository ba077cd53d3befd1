"""The chain of exits: an `If` around the layers from one exit to the next, for the samples that stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, islice

import onnx_ir as ir

from graphprune.surgery.branching import set_branches
from graphprune.surgery.excerpt import Excerpt
from graphprune.surgery.exitfile import ExitHead
from graphprune.surgery.exitjudge import judge, result_of
from graphprune.surgery.exitsite import Site
from graphprune.surgery.writing import Writer

# From so many nodes on, it is asked whether any sample has left before they run again.
_FEW = 8
_Pairs = list[tuple[ir.Value, ir.Value]]


@dataclass(frozen=True, eq=False)
class State:
    """What there is behind a boundary, of the samples that are left.

    `stream` [n, tokens, d]; `rows` int64 [n], their numbers, None while all are there; `sure` float [n], and
    `carried`, what the criterion compares with next. Of all samples of the batch: `depth` int64, and
    `result`, what each has left with: a stream or scores. `whole` is the stream of each as it left, or is
    now, where keys and values are made of it. `running` says whether any sample is left.
    """

    stream: ir.Value
    rows: ir.Value | None
    depth: ir.Value
    result: ir.Value
    sure: ir.Value
    carried: tuple[ir.Value, ...] = ()
    whole: ir.Value | None = None
    running: ir.Value | None = None


@dataclass(frozen=True, eq=False)
class _Part:
    """The layers from one exit to the next, `following`; None where the model's own end follows.

    `presents` are the keys and values that they make of the stream, each with the number of its layer.
    """

    after: int
    until: int
    following: ExitHead | None
    presents: tuple[tuple[int, ir.Value], ...]

    @property
    def name(self) -> str:
        return f"exits/after.{self.after}"


@dataclass(frozen=True, eq=False)
class Chain:
    """Writes the exits of a site into its main graph, part after part.

    `presents` are the keys and values to put out in place of those that layers behind an exit have put out;
    `moved` are the nodes that are in branches then.
    """

    site: Site
    presents: dict[ir.Value, ir.Value] = field(default_factory=dict)
    moved: set[ir.Node] = field(default_factory=set)

    def build(self, thresholds: ir.Value) -> State:
        """Write all exits; what there is behind the last layer. Raises `EditError`."""
        heads, write = self.site.heads, self.site.main
        state = self._start(heads.exits[0])
        following = (*heads.exits[1:], heads.last)
        for place, (head, then) in enumerate(zip(heads.exits, following, strict=True)):
            threshold = write("Gather", thresholds, write.constant(place))
            if self.site.heads.guarded:
                state = self._guard(state, head, threshold)
            until = then.after if then is not None else self.site.layers
            made = (one for one in self.site.presents(head.after, until) if one[1] in self._behind)
            state = self._run(state, _Part(head.after, until, then, tuple(made)), threshold)
        return state

    @property
    def _counts(self) -> bool:
        """Whether the criterion compares with exits before, so that none of them can be left out."""
        return self.site.heads.criterion in {"patience", "saturation"}

    @cached_property
    def _behind(self) -> set[ir.Value]:
        """All that is computed from the stream at the first exit."""
        first = self.site.heads.exits[0].after
        return self.site.excerpt(self.site.writer(), first, self.site.streams[first], None).changed

    def _start(self, head: ExitHead) -> State:
        site, write = self.site, self.site.main
        stream = site.streams[head.after]
        depth = write("Expand", write.constant([head.after]), write.sizes(stream, 0, 1))
        cached = site.by_rows and site.heads.kind != "own" and site.presents(head.after, site.layers)
        state = State(stream, None, depth, stream, stream, whole=stream if cached else None)
        if self.site.heads.guarded:
            return state
        said = judge(site, site.excerpt(write, head.after, stream, None), head, stream, ())
        return replace(state, sure=said.sure, carried=said.carried, result=said.result)

    def _guard(self, state: State, head: ExitHead, threshold: ir.Value) -> State:
        """Judge in an If of its own: only where anybody could leave and anybody stay, or where it counts."""
        site = self.site
        conditions = [] if state.running is None else [state.running]
        if not self._counts:
            conditions.append(self._is_open(threshold))
        inner = site.writer() if conditions else site.main
        said = judge(
            site, site.excerpt(inner, head.after, state.stream, state.rows), head, state.stream, state.carried
        )
        result = said.result
        if site.heads.kind == "own":
            result = state.result
        elif state.rows is not None:
            result = inner.placed(state.result, inner.shaped(state.rows, -1, 1), result)
        if not conditions:
            return replace(state, sure=said.sure, carried=said.carried, result=result)
        otherwise = site.writer()
        zero = otherwise.constant([0], "float32")
        unsure = otherwise("Expand", zero, otherwise.sizes(state.stream, 0, 1))
        pairs = [(said.sure, unsure), *zip(said.carried, state.carried, strict=True)]
        pairs += [(result, state.result)] if result is not state.result else []
        made = self._if(conditions, inner, otherwise, pairs, f"exits/after.{head.after}/sure")
        result = made.pop() if result is not state.result else result
        return replace(state, sure=made[0], carried=tuple(made[1:]), result=result)

    def _is_open(self, threshold: ir.Value) -> ir.Value:
        """Whether it depends on the sample if it leaves; that all leave is no reason not to translate."""
        write = self.site.main
        reachable = write("Not", write("Greater", threshold, write.constant(1, "float32")))
        if self.site.heads.kind == "translator":
            return reachable
        return write("And", reachable, write("Greater", threshold, write.constant(-1, "float32")))

    def _run(self, state: State, part: _Part, threshold: ir.Value) -> State:
        """The layers of one part in an If, for the samples that stay."""
        site, write = self.site, self.site.main
        stay = write("Not", write.at_least(state.sure, threshold))
        before = replace(state, rows=self._rows(state, stay))
        many = before.rows if before.rows is not None else write("NonZero", stay)
        conditions = [write("Greater", write("Size", many), write.constant(0))]
        if state.running is not None and before.rows is None:
            conditions.append(state.running)

        def left(one: ir.Value, to: Writer) -> ir.Value:
            return to("Compress", one, stay, axis=0) if before.rows is not None else one

        inner, otherwise = site.writer(), site.writer()
        then, presents = self._run_on(inner, before, part, lambda one: left(one, inner))
        gone = site.passed(otherwise, self._left_with(before), part.presents)
        pairs = self._pairs(before, then, part, lambda one: left(one, otherwise))
        pairs["presents"] = list(zip(presents, gone, strict=True))
        made = iter(self._if(conditions, inner, otherwise, [*chain.from_iterable(pairs.values())], part.name))
        found = {name: tuple(islice(made, len(group))) for name, group in pairs.items()}
        running = write.nodes[-1].inputs[0]
        self._keep(found.pop("presents"), replace(before, running=running), part)
        carried = found.pop("carried", tuple(left(one, write) for one in before.carried))
        one = {name: next(iter(values)) for name, values in found.items()}
        return State(
            one.get("stream", before.stream), before.rows, one["depth"], one.get("result", before.result),
            one.get("sure", before.sure), carried, one.get("whole", before.whole), running,
        )  # fmt: skip

    def _rows(self, state: State, stay: ir.Value) -> ir.Value | None:
        """The numbers of the samples that stay; None where they leave together."""
        write = self.site.main
        if not self.site.by_rows:
            return None
        if state.rows is not None:
            return write("Compress", state.rows, stay)
        return write.shaped(write("NonZero", stay), -1)

    def _pairs(
        self, before: State, then: State, part: _Part, left: Callable[[ir.Value], ir.Value]
    ) -> dict[str, _Pairs]:
        """What an If puts out where its layers run, and where they do not, by the fields of `State`."""
        pairs: dict[str, _Pairs] = {"depth": [(then.depth, before.depth)]}
        if then.result is not before.result:
            pairs["result"] = [(then.result, before.result)]
        if then.whole is not None and before.whole is not None:
            pairs["whole"] = [(then.whole, before.whole)]
        if part.following is not None and part.following is not self.site.heads.last:
            pairs["stream"] = [(then.stream, left(before.stream))]
            if not self.site.heads.guarded:
                pairs["sure"] = [(then.sure, left(before.sure))]
                kept = (left(one) for one in before.carried)
                pairs["carried"] = list(zip(then.carried, kept, strict=True))
        return pairs

    def _left_with(self, state: State) -> ir.Value:
        """The stream of all samples as they left, or as it is now."""
        if not self.site.by_rows:
            return state.stream
        return state.whole if state.whole is not None else state.result

    def _keep(self, values: Sequence[ir.Value], state: State, part: _Part) -> None:
        """Remember keys and values to put out, those of samples that have left beside those of the rest."""
        write = self.site.main
        if part.presents and state.rows is not None and state.running is not None:
            inner, whole = self.site.writer(), self.site.writer()
            column = inner.shaped(state.rows, -1, 1)
            passed = self.site.passed(inner, self._left_with(state), part.presents)
            placed = [inner.placed(old, column, new) for old, new in zip(passed, values, strict=True)]
            fewer = write("Less", write("Size", state.rows), write("Size", state.depth))
            pairs = list(zip(placed, values, strict=True))
            values = self._if([fewer, state.running], inner, whole, pairs, f"{part.name}/caches")
        self.presents.update(zip((value for _, value in part.presents), values, strict=True))

    def _run_on(
        self, inner: Writer, state: State, part: _Part, left: Callable[[ir.Value], ir.Value]
    ) -> tuple[State, list[ir.Value]]:
        """The layers of a part, the head of the next exit where it has no If of its own; keys and values."""
        site, following = self.site, part.following
        excerpt = site.excerpt(inner, part.after, left(state.stream), state.rows)
        wanted = [site.streams[part.until], *(value for _, value in part.presents)]
        self._share(excerpt, wanted, state, f"{part.name}/rows")
        stream, *presents = excerpt(*wanted)
        self.moved.update(node for node in excerpt.copied if not self._behind.isdisjoint(node.outputs))
        column = inner.shaped(state.rows, -1, 1) if state.rows is not None else None

        def put(whole: ir.Value, new: ir.Value) -> ir.Value:
            return new if column is None else inner.placed(whole, column, new)

        many = inner("Shape", state.rows if state.rows is not None else state.depth)
        depth = put(state.depth, inner("Expand", inner.constant([part.until]), many))
        whole = put(state.whole, stream) if state.whole is not None else None
        then = replace(state, stream=stream, depth=depth, whole=whole)
        if following is None or (self.site.heads.guarded and site.heads.kind == "own"):
            return replace(then, result=put(state.result, stream)), presents
        if self.site.heads.guarded:
            return then, presents
        behind = site.excerpt(inner, part.until, stream, state.rows)
        if following is site.heads.last:
            return replace(
                then, result=put(state.result, result_of(site, behind, following, stream))
            ), presents
        said = judge(site, behind, following, stream, [left(one) for one in state.carried])
        result = put(state.result, said.result)
        return replace(then, sure=said.sure, carried=said.carried, result=result), presents

    def _share(self, excerpt: Excerpt, wanted: Sequence[ir.Value], state: State, name: str) -> None:
        """Take what layers read besides the stream as it is while all samples are there."""
        values = excerpt.read_besides(excerpt.needed(wanted), self._behind)
        if excerpt.rows is None or not values:
            return
        write, fewer, all_there = excerpt.write, self.site.writer(), self.site.writer()
        part = replace(excerpt, write=fewer, known=dict(excerpt.known), copied={}, constants={})
        pairs = list(zip(part(*values), values, strict=True))
        if len(fewer.nodes) < _FEW:
            return
        condition = write("Less", write("Size", excerpt.rows), write("Size", state.depth))
        node = self._if_node(condition, fewer, all_there, pairs, name)
        write.nodes.append(node)
        excerpt.known.update(zip(values, node.outputs, strict=True))

    def _if(
        self, conditions: Sequence[ir.Value], then: Writer, otherwise: Writer, pairs: _Pairs, name: str
    ) -> list[ir.Value]:
        """An If in the main graph that all conditions must hold for; what it puts out for each pair."""
        condition = conditions[0]
        for another in conditions[1:]:
            condition = self.site.main("And", condition, another)
        node = self._if_node(condition, then, otherwise, pairs, name)
        self.site.main.nodes.append(node)
        return list(node.outputs)

    def _if_node(
        self, condition: ir.Value, then: Writer, otherwise: Writer, pairs: _Pairs, name: str
    ) -> ir.Node:
        """An If that puts out the first value of each pair, else the second."""
        on = then.graph(f"{name}/on", [one for one, _ in pairs], self.site.graph)
        off = otherwise.graph(f"{name}/off", [other for _, other in pairs], self.site.graph)
        node = ir.node("If", [condition], num_outputs=len(pairs))
        set_branches(node, on, off)
        for value, (one, _) in zip(node.outputs, pairs, strict=True):
            value.type = one.type
        return node
