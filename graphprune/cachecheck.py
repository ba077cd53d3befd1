"""Check that a written bundle goes on from its caches as it would from all tokens at once.

A cache in the wrong place, or a mask that takes its length from one that is gone, is invisible
to a check of shapes and finite numbers. So a prompt and some further tokens go through the
decoder step by step, and once whole: the scores after the last token must be the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from graphprune.bundle import ModelFile, load
from graphprune.errors import CheckError, GraphpruneError, RunError
from graphprune.gates import without_rules
from graphprune.genconfig import GenerationRules
from graphprune.hints import read_hint
from graphprune.inputs import make_inputs
from graphprune.language import Decoder, LanguageModel, find_encoder
from graphprune.ports import Ports, read_padding, read_ports
from graphprune.prompting import Group
from graphprune.session import open_session
from graphprune.settings import Settings
from graphprune.slots import cache_slot

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from graphprune.lane import Lane

    Ids = NDArray[np.int64]
    Scores = NDArray[np.float32]

# Tokens of the first text (each further one has one less), those that follow, and those of an encoder.
PROMPT, STEPS, SOURCE = 5, 2, 6
# Rows to try in turn: some files take only one.
ROWS = (2, 1)
# How far the scores may be apart, over max(1, the largest); where the source's own are further
# apart (half precision, activations quantized as they come), so many times as far as those.
TOLERANCE = 1e-4
SLACK = 4.0
# Where activations are rounded to 8 bits as they come, a difference in the last bit of a float may
# move one by a step, or may not: what the source shows in a few tokens is no bound.
ROUNDED = 0.1


@dataclass(frozen=True, eq=False)
class _Route:
    """A file that reads prompts, one that goes on from its cache (maybe the same), and the encoder before."""

    first: ModelFile
    step: ModelFile
    encoder: ModelFile | None


def has_cache(files: Sequence[ModelFile]) -> bool:
    """Whether any of these files takes a KV cache."""
    return any(cache_slot(value.name or "", "past") for file in files for value in file.model.graph.inputs)


def check_steps(path: Path, source: Path) -> None:
    """Check every decoder with a cache in the bundle at `path`, which was made from the one at `source`.

    The source is asked only where something is found: what it cannot run either is passed over,
    and where its own scores differ, the bundle's may differ as much. Raises `CheckError`.
    """
    for route in _routes(load(path).files):
        found = _gaps(route)
        if isinstance(found, str) or not max(found) <= TOLERANCE:
            _compare(route, found, _source_gaps(source, route.step.name))


def _compare(route: _Route, found: list[float] | str, before: list[float] | str) -> None:
    """Raise `CheckError` where the bundle fails, and the source does not fail in the same way."""
    name = " after ".join(dict.fromkeys((route.step.name, route.first.name)))
    if isinstance(before, str):
        return
    if isinstance(found, str):
        raise CheckError(f"{name} fails with its cache: {found}; nothing was written")
    allowed = max(TOLERANCE, SLACK * max(before), ROUNDED * _rounds(route.step))
    for step, gap in enumerate(found):
        if not gap <= allowed:
            raise CheckError(
                f"{name}: at step {step} after a prompt of {PROMPT} tokens, the scores with the cache are "
                f"{gap:.2g} off those of one pass over all tokens (over the largest); nothing was written"
            )


def _rounds(file: ModelFile) -> bool:
    """Whether the model quantizes activations by what they happen to be."""

    def one(node: ir.Node) -> bool:
        level = node.attributes.get("accuracy_level")
        return node.op_type.startswith("DynamicQuantize") or (level is not None and level.as_int() == 4)

    return any(map(one, file.model.graph.all_nodes()))


def _source_gaps(source: Path, name: str) -> list[float] | str:
    """The gaps of the source's file of that name, as graphprune reads and writes the source."""
    with TemporaryDirectory(prefix="graphprune.") as folder:
        bundle = load(source)
        copy = bundle.save(Path(folder) / ("source" if bundle.folder else name))
        same = (route for route in _routes(load(copy).files) if route.step.name == name)
        return next(map(_gaps, same), [0.0])


def _routes(files: Sequence[ModelFile]) -> Iterator[_Route]:
    """The ways in which these files make text with a cache."""
    found = [(file, ports) for file in files if (ports := _ports(file)) is not None]
    for file, ports in found:
        first = _first(file, ports, found) if ports.pasts else None
        if first is not None:
            yield _Route(first, file, find_encoder(files) if ports.reads_encoder else None)


def _ports(file: ModelFile) -> Ports | None:
    try:
        return read_ports(file)
    except RunError:
        return None


def _first(step: ModelFile, ports: Ports, files: Sequence[tuple[ModelFile, Ports]]) -> ModelFile | None:
    """The file that reads the prompt and puts out all that `step` takes of a cache."""
    if ports.branch:
        return step
    plain = (f for f, p in files if not p.pasts and not p.branch and not set(ports.pasts) - set(p.presents))
    return next(plain, step if ports.begins else None)


def _gaps(route: _Route) -> list[float] | str:
    """How far the scores step by step are from those of one pass, a step each; or why they cannot be had."""
    problem = ""
    try:
        model = _open(route)
    except GraphpruneError as error:
        return str(error)
    for rows in ROWS:
        try:
            return _gaps_of(model, _texts(route.first, rows))
        except RunError as error:
            problem = problem or str(error)
    return problem


def _open(route: _Route) -> LanguageModel:
    files = {file.name: file for file in (route.first, route.step, route.encoder) if file is not None}
    opened = {name: open_session(file.path, name, Settings(threads=1)) for name, file in files.items()}
    sessions = {name: replace(one, given=without_rules(one.optional)) for name, one in opened.items()}
    first, step = (Decoder(sessions[file.name], read_ports(file)) for file in (route.first, route.step))
    encoder = sessions[route.encoder.name] if route.encoder else None
    padding = read_padding(route.first, first.ports)
    return LanguageModel(route.first.path, encoder, first, step, padding, None, GenerationRules(), None)


def _gaps_of(model: LanguageModel, texts: Ids) -> list[float]:
    """The same texts with the cache and without; of different lengths where the model pads."""
    lengths = [PROMPT - (row if model.padding != "none" else 0) for row in range(len(texts))]

    def begin(step: int) -> tuple[Lane, Scores]:
        cut = [tuple(text[: length + step]) for text, length in zip(texts, lengths, strict=True)]
        lane = _group(model, cut).open(model)
        return lane, lane.begin()

    lane, scores = begin(0)
    with_cache = [scores]
    for step in range(STEPS):
        tokens = [int(text[length + step]) for text, length in zip(texts, lengths, strict=True)]
        with_cache.append(lane.advance(tokens))
    gaps = [_apart(with_cache[-1], begin(STEPS)[1])]
    if gaps[0] <= TOLERANCE:
        return gaps
    return [0.0, *(_apart(with_cache[step], begin(step)[1]) for step in range(1, STEPS)), *gaps]


def _texts(file: ModelFile, rows: int) -> Ids:
    """Valid ids [rows, tokens]."""
    import numpy as np

    name = read_ports(file).ids
    limit = next(read_hint(value).limit for value in file.model.graph.inputs if value.name == name)
    return np.random.default_rng(0).integers(0, limit or 2, (rows, PROMPT + STEPS))


def _group(model: LanguageModel, begins: Sequence[tuple[int, ...]]) -> Group:
    """Texts that begin so, with valid random values for all other inputs, the encoder's among them."""
    rows = len(begins)
    feeds = make_inputs(model.encoder.runtime, batch=rows, sequence=SOURCE) if model.encoder else {}
    others: dict[str, NDArray[Any]] = {}
    for one in filter(None, (model.step, model.first)):
        made = make_inputs(one.session.runtime, batch=rows, sequence=SOURCE)
        others |= {name: made[name] for name in one.ports.others}
    return Group(tuple(range(rows)), tuple(begins), feeds, others)


def _apart(scores: Scores, whole: Scores) -> float:
    """The largest difference over max(1, the largest score); infinite where one is not finite."""
    import numpy as np

    if scores.shape != whole.shape or not np.isfinite(scores).all():
        return float("inf")
    return float(np.abs(scores - whole).max() / max(1.0, np.abs(whole).max()))
