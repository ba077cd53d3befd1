"""A ranking as one JSON object, and back."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from graphprune.errors import LoadError
from graphprune.importance.criteria import CRITERIA
from graphprune.importance.results import Ranked, Ranking, ranks_of, values_of

FORMAT = 1


def to_json(ranking: Ranking) -> dict[str, Any]:
    """What `rank --json` prints: the ranking, what its criteria are, and the place of each block and layer.

    Format 1: scripts read it, so keys may be added, never changed or taken away.
    """
    told = asdict(ranking)
    for name, ranked in (("blocks", ranking.blocks), ("layers", ranking.layers)):
        for criterion in ranking.by:
            ranks = ranks_of(ranked, criterion)
            for one in told[name]:
                one["found"][criterion]["rank"] = ranks.get(one["id"])
    best = [asdict(one) for one in ranking.best_stretches]
    for one in told["stretches"]:
        one["best"] = one in best
    criteria = [asdict(CRITERIA[name]) for name in ranking.by]
    return {"format": FORMAT, "criteria": criteria, **told}


def read_ranking(path: str | Path) -> Ranking:
    """The ranking in a file that holds what `rank --json` printed. Raises `LoadError`."""
    from pydantic import TypeAdapter, ValidationError

    try:
        ranking = TypeAdapter(Ranking).validate_json(Path(path).read_bytes())
    except OSError as error:
        raise LoadError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise _unlike(path, f"{where}: {first['msg']}" if where else first["msg"]) from error
    _require_sense(path, ranking)
    return ranking


def _require_sense(path: str | Path, ranking: Ranking) -> None:
    unknown = next((name for name in (*ranking.by, *ranking.scales) if name not in CRITERIA), None)
    if unknown is not None:
        raise _unlike(path, f"there is no criterion {unknown!r}")
    for one in (*ranking.blocks, *ranking.layers):
        if any(name not in one.found for name in ranking.by):
            raise _unlike(path, f"{one.id} lacks one of {', '.join(ranking.by)}")
    numbers = [value for name in ranking.by for value in _values(ranking, name)]
    numbers += [one.distance for one in ranking.stretches if one.distance is not None]
    if not all(map(math.isfinite, numbers)):
        raise _unlike(path, "a value is not finite")


def _values(ranking: Ranking, criterion: str) -> list[float]:
    ranked: tuple[Ranked, ...] = (*ranking.blocks, *ranking.layers)
    return list(values_of(ranked, criterion).values())


def _unlike(path: str | Path, what: str) -> LoadError:
    return LoadError(f"{path}: not what `graphprune rank --json` prints: {what}")
