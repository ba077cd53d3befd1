"""Package a bundle for the edge: `.ort` files, the operators that they need, and what they take to run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune import storage
from graphprune.bundle import Bundle, ModelFile, load, with_provenance
from graphprune.errors import GraphError, LoadError, RunError, SaveError
from graphprune.fileset import require_set
from graphprune.fixedsizes import FixedSizes, fix_sizes, open_axes, parse_sizes
from graphprune.footprint import Usage, disk_bytes, usage
from graphprune.mobile import Partitions, partitions
from graphprune.ortformat import LIMIT, SUFFIX, Conversion, convert, noted_inputs, write_operators
from graphprune.play import Source
from graphprune.sameness import gap
from graphprune.session import open_session
from graphprune.settings import Settings
from graphprune.weights import weight_bytes

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphprune.settings import Level

log = logging.getLogger(__name__)

_GENAI = "genai_config.json"
_LONG = 2000.0  # ms
_SMALL = ("INT4", "UINT4", "INT2", "UINT2", "FLOAT4E2M1")


@dataclass(frozen=True)
class PackagedFile:
    """One `.ort` file of `bytes`, the file that it was made from, and what accelerators could take of it.

    `unchecked` says why `partitions` are empty, where their check fails.
    """

    name: str
    source: str
    bytes: int
    partitions: tuple[Partitions, ...]
    unchecked: str = ""


@dataclass(frozen=True)
class Package:
    """What was written to `out`.

    `config` is the file that lists the operators that are needed, of so many kinds (`operators`).
    `bytes_before` is what the source's models and weights take on the disk. `open_axes` are the axes of
    inputs that still have no size. `gap` is how far outputs are from the source's: the largest difference
    over the largest value, or over 1. It is None where the source does not run, as `uncompared` says.
    `before` and `after` are what the source (with the sizes fixed) and the package take to load and to run,
    None where they were not measured.
    """

    out: Path
    files: tuple[PackagedFile, ...]
    config: str
    operators: int
    bytes_before: int
    open_axes: tuple[str, ...]
    gap: float | None = None
    uncompared: str = ""
    before: Usage | None = None
    after: Usage | None = None

    @property
    def bytes_after(self) -> int:
        """What the packaged models take on the disk."""
        return sum(file.bytes for file in self.files)


def package_ort(
    path: str | Path,
    out: str | Path,
    *,
    conversion: Conversion | None = None,
    fix: Sequence[str] = (),
    types: bool = False,
    source: Source | None = None,
    measure: bool = True,
    overwrite: bool = False,
) -> Package:
    """Package the bundle at `path` in ONNX Runtime's format: a file to a `.ort` file, a folder to a folder.

    Configs and tokenizers go along, and a list of the operators (with `types` also of the types of their
    tensors) for a reduced build of the runtime. `fix` gives axes of inputs a size (see `fixedsizes`). The
    package is run on `source` and must put out what its source does. With `measure` both are also loaded and
    run in processes of their own, to see what they take.

    Raises `LoadError`; `GraphError` where a size cannot be fixed; `SaveError` where the format cannot
    hold a model, or `out` is the source, exists (unless `overwrite`) or cannot be written; `CheckError` where
    outputs differ; `RunError` where the models do not run on `source`. Nothing is written then.
    """
    how, target, sizes = conversion or Conversion(), Path(out), parse_sizes(fix)
    bundle = load(path)
    require_set(bundle)
    config = f"required_operators{'_and_types' if types else ''}.config"
    config = config if bundle.folder else f"{target.stem}.{config}"
    _check_target(bundle, target, config, overwrite=overwrite)
    work = _prepared(bundle, sizes)
    with storage.replacing(target, overwrite=overwrite) as folder:
        scratch = folder.parent / "onnx"
        written = _write(work, target, how, folder, scratch)
        made = Package(
            target,
            tuple(_described(file, model, folder, scratch) for file, model in written.items()),
            config,
            write_operators(written, folder / config, how, types=types),
            disk_bytes(path),
            tuple(dict.fromkeys(name for file in work.files for name in open_axes(file.model))),
        )
        work.write_beside(folder)
        ours, theirs = (folder, scratch) if bundle.folder else next(iter(written.items()))
        made = _compared(made, theirs, ours, source, steps=0 if sizes else 1, level=how.level)
        return _measured(made, theirs, ours, source, steps=0 if sizes else 1) if measure else made


def _compared(
    made: Package, theirs: Path, ours: Path, source: Source | None, *, steps: int, level: Level
) -> Package:
    """`made`, with how far its outputs are from the source's. Raises `CheckError`, `RunError`."""
    apart = gap(theirs, ours, source or Source(), steps=steps, level=level, lenient=source is None)
    return replace(made, gap=apart) if isinstance(apart, float) else replace(made, uncompared=apart)


def _measured(made: Package, theirs: Path, ours: Path, source: Source | None, *, steps: int) -> Package:
    """`made`, with what it and its source take, if they run."""
    if made.gap is None:
        return made
    before, after = (_usage(path, source or Source(), steps) for path in (theirs, ours))
    return replace(made, before=before, after=after)


def _check_target(bundle: Bundle, target: Path, config: str, *, overwrite: bool) -> None:
    """Raise `SaveError` where `target` is of the wrong sort or taken, or a model is too large."""
    if bundle.folder is None and (target.suffix != SUFFIX or target.is_dir()):
        raise SaveError(
            f"{target}: the source is one file, so the target must be a file too, named *{SUFFIX}"
        )
    if bundle.folder is not None and (target.suffix in (SUFFIX, ".onnx") or target.is_file()):
        raise SaveError(f"{target}: the source is a folder, so the target must be a folder too")
    beside = target.with_name(config)
    if bundle.folder is None and beside.exists() and not overwrite:
        raise SaveError(f"{beside} exists: name another target, or allow overwriting")
    storage.refuse_source(target, bundle.sources())
    for file in bundle.files:
        size = weight_bytes(file.model)
        if size > LIMIT:
            raise SaveError(
                f"{file.name}: its {size:,} bytes of weights do not fit into a {SUFFIX} file, which holds at "
                "most 2 GiB: quantize it, drop layers, or ship the .onnx file"
            )


def _prepared(bundle: Bundle, sizes: FixedSizes) -> Bundle:
    """A copy with these sizes, whose configs name the packaged files."""
    work = bundle.clone()
    fix_sizes([file.model for file in work.files], sizes)
    names = {Path(file.name).name: Path(file.name).with_suffix(SUFFIX).name for file in work.files}
    configs = {name: _renamed(c, names) if name == _GENAI else c for name, c in work.configs.items()}
    return replace(work, configs=configs)


def _renamed(config: Any, names: Mapping[str, str]) -> Any:
    """A part of genai's configuration with the new names of model files, which it has as `filename`."""
    if isinstance(config, list):
        return [_renamed(one, names) for one in config]
    if not isinstance(config, dict):
        return config
    return {
        key: names.get(value, value)
        if key == "filename" and isinstance(value, str)
        else _renamed(value, names)
        for key, value in config.items()
    }


def _write(work: Bundle, target: Path, how: Conversion, folder: Path, scratch: Path) -> dict[Path, Path]:
    """Write every model to `scratch`, with what its graph says of its inputs, and to `folder` packaged.

    The packaged files are mapped to those that they were made from.
    """
    written = {}
    for file in work.files:
        model = scratch / file.name
        packaged = folder / (Path(file.name).with_suffix(SUFFIX) if work.folder else target.name)
        for place in (model, packaged):
            place.parent.mkdir(parents=True, exist_ok=True)
        metadata = with_provenance(file, {"target": "ort"}) | noted_inputs(file.model)
        storage.write_model(file.model, model, external="auto", metadata=metadata)
        convert(model, packaged, how)
        _require_readable(packaged, file, how)
        written[packaged] = model
    return written


def _require_readable(packaged: Path, file: ModelFile, how: Conversion) -> None:
    """Raise `SaveError` where ONNX Runtime cannot load what it has written, as with 4-bit weights."""
    try:
        open_session(packaged, file.name, Settings(level=how.level, memory="lean"))
    except LoadError as error:
        why = str(error).partition("cannot load it: ")[2]
        bits = "; the format has no types of 4 bits or fewer" if _has_small_types(file.model) else ""
        raise SaveError(
            f"{file.name}: ONNX Runtime writes it in its own format, but cannot read that: {why}{bits}"
        ) from error


def _has_small_types(model: ir.Model) -> bool:
    values = (value for graph in model.graphs() for value in graph.initializers.values())
    return any(value.const_value is not None and value.const_value.dtype.name in _SMALL for value in values)


def _described(packaged: Path, model: Path, folder: Path, scratch: Path) -> PackagedFile:
    found: tuple[Partitions, ...] = ()
    unchecked = ""
    try:
        found = partitions(model)
    except GraphError as error:
        unchecked = str(error)
    name, source = packaged.relative_to(folder).as_posix(), model.relative_to(scratch).as_posix()
    return PackagedFile(name, source, packaged.stat().st_size, found, unchecked)


def _usage(path: Path, source: Source, steps: int) -> Usage | None:
    """What a fresh process takes; None, and a warning, where it fails.

    A short time to load is measured three times, and the one in the middle counts.
    """
    runs: list[Usage] = []
    try:
        while not runs or (len(runs) < 3 and runs[0].load_ms < _LONG):
            runs.append(usage(path, source, Settings(threads=1), steps=steps))
    except RunError as error:
        log.warning("what %s takes was not measured: %s", path.name, error)
        return None
    return sorted(runs, key=lambda one: one.load_ms)[len(runs) // 2]
