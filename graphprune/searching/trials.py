"""Every choice that was evaluated, as an Optuna trial in a file: looked up before one is evaluated again.

There is a study for each level. Its trials have the blocks' actions as categorical parameters, the cost and
the quality as values: so Optuna's own tools (its dashboard, its plots) read the file, and a search that was
killed goes on from it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.errors import GraphpruneError, LoadError, MissingExtraError, SaveError
from graphprune.searching.evaluating import Quality

if TYPE_CHECKING:
    import optuna

    from graphprune.searching.goals import Price
    from graphprune.searching.space import Picks, Space

# Seconds after which a lock counts as left behind by a search that was killed.
_GRACE = 5
_FACTS = "search"
# How every line of such a file begins.
_JOURNAL = b'{"op_code":'


@dataclass(frozen=True, eq=False)
class Trial:
    """One evaluated choice; `number` is its place among those of its level."""

    number: int
    picks: Picks
    price: Price
    quality: Quality


@dataclass(eq=False)
class Trials:
    """The trials of a search, by level, and the facts that it found on its way."""

    space: Space
    storage: optuna.storages.BaseStorage
    _known: dict[str, dict[Picks, Trial]] = field(default_factory=dict)
    _studies: dict[str, optuna.Study] = field(default_factory=dict)

    def find(self, level: str, picks: Picks) -> Quality | None:
        """The quality of a choice, if it has been evaluated at this level."""
        known = self._of(level).get(picks)
        return None if known is None else known.quality

    def of(self, level: str) -> list[Trial]:
        """All trials of a level, in the order in which they were added."""
        return list(self._of(level).values())

    def add(self, level: str, picks: Picks, price: Price, cost: str, quality: Quality) -> None:
        """Store what was found, on the disk before this returns; `cost` is the price that Optuna sees.

        A choice that is there already stays as it is.
        """
        known = self._of(level)
        if picks in known:
            return
        self._studies[level].add_trial(_trial(self.space, picks, price, cost, quality))
        known[picks] = Trial(len(known), picks, price, quality)

    def remember(self, name: str, make: Callable[[], Any]) -> Any:
        """A fact that JSON can hold: what `make` returned when it was first asked for, in any process."""
        facts = self._study(_FACTS).user_attrs
        if name not in facts:
            self._study(_FACTS).set_user_attr(name, json.loads(json.dumps(make())))
        return self._study(_FACTS).user_attrs[name]

    def _of(self, level: str) -> dict[Picks, Trial]:
        if level not in self._known:
            stored = self._study(level).get_trials(deepcopy=False)
            read = (_read(self.space, number, one) for number, one in enumerate(stored))
            found: dict[Picks, Trial] = {}
            for trial in read:
                found.setdefault(trial.picks, trial)
            self._known[level] = found
        return self._known[level]

    def _study(self, name: str) -> optuna.Study:
        import optuna

        if name not in self._studies:
            self._studies[name] = optuna.create_study(
                storage=self.storage,
                study_name=name,
                directions=["minimize", "maximize"],
                load_if_exists=True,
            )
        return self._studies[name]


def open_trials(
    space: Space, path: Path | None, identity: Mapping[str, Any], *, resume: bool = False
) -> Trials:
    """The trials in a file, or none yet; without a path they are kept in memory.

    `identity` says what a quality depends on. Raises `MissingExtraError` without the extra `search`;
    `SaveError` where the file holds trials and they are not to be used (`resume`), or it cannot be
    written; `LoadError` where it is no such file, or holds another search.
    """
    optuna = require_optuna()
    if path is None:
        return Trials(space, optuna.storages.InMemoryStorage())
    try:
        _mend(path)
        trials = Trials(space, _journal(path))
        if not resume and _any_trials(trials.storage):
            raise SaveError(f"{path} holds the trials of a search: go on with it by --resume, or remove it")
        if not resume:
            path.unlink()
            trials = Trials(space, _journal(path))
        found = trials.remember("identity", lambda: dict(identity))
    except OSError as error:
        raise SaveError(f"{path} cannot be written: {error.strerror or error}") from error
    except GraphpruneError:
        raise
    except Exception as error:  # Optuna lets json's, KeyErrors and its own out
        raise LoadError(f"{path} is no file of a search: {type(error).__name__}: {error}") from error
    _require_same(path, found, json.loads(json.dumps(dict(identity))))
    return trials


def require_optuna() -> Any:
    """Optuna, silent. Raises `MissingExtraError`."""
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("a search needs Optuna: pip install 'graphprune[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _journal(path: Path) -> optuna.storages.BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    lock = JournalFileOpenLock(str(path), grace_period=_GRACE)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def _any_trials(storage: optuna.storages.BaseStorage) -> bool:
    import optuna

    return any(study.n_trials for study in optuna.get_all_study_summaries(storage))


def _mend(path: Path) -> None:
    """Cut a last line off that a kill left without its end: Optuna would write on behind it.

    Raises `LoadError` where the file is no journal of Optuna's.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return
    with path.open("r+b") as file:
        content = file.read()
        if content and not content.startswith(_JOURNAL[: len(content)]):
            raise LoadError(f"{path} is no file of a search: it does not begin as one")
        file.truncate(content.rfind(b"\n") + 1)


def _require_same(path: Path, found: object, wanted: Mapping[str, Any]) -> None:
    if not isinstance(found, dict):
        raise LoadError(f"{path} is no file of a search: it does not say what it is about")
    for key in dict.fromkeys((*found, *wanted)):
        if found.get(key) != wanted.get(key):
            raise LoadError(
                f"{path} holds another search: its {key} is {_short(found.get(key))}, "
                f"not {_short(wanted.get(key))}"
            )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _trial(space: Space, picks: Picks, price: Price, cost: str, quality: Quality) -> optuna.trial.FrozenTrial:
    from optuna.distributions import BaseDistribution, CategoricalDistribution
    from optuna.trial import TrialState, create_trial

    columns: dict[str, BaseDistribution] = {
        block: CategoricalDistribution(("keep", *space.actions[block])) for block in space.blocks
    }
    sound = math.isfinite(quality.kept)
    return create_trial(
        state=TrialState.COMPLETE if sound else TrialState.FAIL,
        params=dict(zip(space.blocks, picks, strict=True)),
        distributions=columns,
        values=[price[cost], quality.kept] if sound else None,
        user_attrs={"price": dict(price)} | {name: _told(value) for name, value in vars(quality).items()},
    )


def _told(value: Any) -> Any:
    """A number as JSON can hold it: not-a-number is None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read(space: Space, number: int, trial: optuna.trial.FrozenTrial) -> Trial:
    attrs = trial.user_attrs
    score, kept, error = (_number(attrs[name]) for name in ("score", "kept", "error"))
    picks = tuple(trial.params[block] for block in space.blocks)
    return Trial(number, picks, attrs["price"], Quality(score, kept, error, attrs["reason"]))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def unmet(trials: Sequence[Trial]) -> Iterator[str]:
    """Why choices could not be evaluated, each reason once."""
    return iter(dict.fromkeys(one.quality.reason for one in trials if one.quality.reason))
