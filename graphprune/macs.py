"""Multiply-accumulates as a polynomial in the model's symbolic dimensions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Macs:
    """A sum of `coefficient × product of named dims`, such as `batch*sequence*1769472`.

    `terms` maps a sorted tuple of dimension names (repeated for powers) to its coefficient.
    """

    terms: tuple[tuple[tuple[str, ...], int], ...] = ()

    @staticmethod
    def of(coefficient: int, *dims: str | int) -> Macs:
        """One term: `coefficient` times each of `dims`, which are names or numbers."""
        names = []
        for dim in dims:
            if isinstance(dim, int):
                coefficient *= dim
            else:
                names.append(dim)
        return Macs(((tuple(sorted(names)), coefficient),)) if coefficient else Macs()

    def __add__(self, other: Macs) -> Macs:
        total: dict[tuple[str, ...], int] = {}
        for names, coefficient in (*self.terms, *other.terms):
            total[names] = total.get(names, 0) + coefficient
        return Macs(tuple(sorted((n, c) for n, c in total.items() if c)))

    def __sub__(self, other: Macs) -> Macs:
        return self + Macs(tuple((names, -coefficient) for names, coefficient in other.terms))

    @property
    def names(self) -> tuple[str, ...]:
        """The dimensions that the count depends on, sorted."""
        return tuple(sorted({name for names, _ in self.terms for name in names}))

    def at(self, **sizes: int) -> int:
        """The count for given sizes; `KeyError` names a dimension that was not given."""
        total = 0
        for names, coefficient in self.terms:
            for name in names:
                coefficient *= sizes[name]
            total += coefficient
        return total

    def __str__(self) -> str:
        return " + ".join("*".join((*names, str(c))) for names, c in self.terms) or "0"
