"""Where a model spends its time, block by block.

ONNX Runtime's own profiler times the kernels of the graph that its optimizer made. Every kernel is
followed back to the nodes that it was made from, and by them to the blocks that recovery found in
the original.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graphprune.errors import RunError
from graphprune.play import Source, play
from graphprune.settings import Settings

if TYPE_CHECKING:
    from graphprune.phases import PartTime, Phase
    from graphprune.profiled import Profiled

# Events that one profile may hold: ONNX Runtime drops what comes after a million, and they take memory.
_EVENTS = 200_000


@dataclass(frozen=True)
class Profile:
    """What `profile` found: the phases of one pass over all files, in the order in which they run."""

    settings: Settings
    phases: tuple[Phase, ...]

    @property
    def total_us(self) -> float:
        """The kernels' time in one pass over all calls."""
        return sum(phase.kernel_us * phase.calls for phase in self.phases)

    @property
    def attributed(self) -> float:
        """The share of it that has a named place."""
        us = sum(phase.attributed * phase.kernel_us * phase.calls for phase in self.phases)
        return us / self.total_us if self.total_us else 0.0

    @property
    def blocks(self) -> tuple[PartTime, ...]:
        """The blocks of all phases in one pass over all calls."""
        from graphprune.phases import merged

        return merged(self.phases, "blocks")

    @property
    def outside(self) -> tuple[PartTime, ...]:
        """What is around the blocks, in the same pass."""
        from graphprune.phases import merged

        return merged(self.phases, "outside")


def profile(
    path: str | Path,
    source: Source | None = None,
    *,
    rounds: int = 20,
    steps: int = 0,
    settings: Settings | None = None,
) -> Profile:
    """Time every kernel of all files of a bundle, and say which block it serves.

    After a warm-up, every call of `play` runs `rounds` times (fewer where the profile would become too
    large) on the inputs that it had; `steps` are further tokens for models that take a cache.
    `settings` say on what and how it is run; one thread on the CPU by default. Everything is written to a
    temporary folder. Raises `LoadError`, `RunError`.
    """
    from tempfile import TemporaryDirectory

    from graphprune.bundle import load
    from graphprune.profiled import open_profiled
    from graphprune.survey import inspect

    settings = settings or Settings(threads=1)
    if rounds < 1 or steps < 0:
        raise RunError("a profile takes 1 round at least, and no negative steps")
    bundle = load(path)
    surveys = {survey.name: survey.architecture for survey in inspect(bundle)}
    try:
        with TemporaryDirectory(prefix="graphprune.", ignore_cleanup_errors=True) as folder:
            files = [
                open_profiled(file, surveys[file.name], Path(folder) / str(i), settings)
                for i, file in enumerate(bundle.files)
            ]
            return _profiled(files, source or Source(), rounds, steps, settings)
    except OSError as error:
        raise RunError(
            f"cannot write temporary files to profile {path}: {error.strerror or error}"
        ) from error


def _profiled(
    files: Sequence[Profiled], source: Source, rounds: int, steps: int, settings: Settings
) -> Profile:
    from graphprune.phases import WARMUP, phases_of
    from graphprune.session import in_turn

    by_name = {file.session.name: file for file in files}
    with _original_names(files):
        calls = play(in_turn(file.session for file in files), source, steps=steps)
        rounds = max(1, min(rounds, _EVENTS // max(1, sum(by_name[c.session.name].size for c in calls))))
        for _ in range(rounds + WARMUP - 1):  # the play was a round, too
            for call in calls:
                call.session.run(call.feeds)
    phases: list[Phase] = []
    for name in dict.fromkeys(call.session.name for call in calls):
        phases += phases_of(by_name[name], [call for call in calls if call.session.name == name], rounds)
    return Profile(settings, tuple(phases))


@contextmanager
def _original_names(files: Sequence[Profiled]) -> Iterator[None]:
    """The runtime's errors, with the names that the nodes have in the file."""
    try:
        yield
    except RunError as error:
        text = str(error)
        file = next((file for file in files if text.startswith(f"{file.session.name}: ")), None)
        raise RunError(file.trail.readable(text) if file else text) from error
