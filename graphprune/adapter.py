"""A pruning pass as an onnx_ir pass, to stand in an `onnx_ir.passes.Sequential`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from graphprune import surgery
from graphprune.outcomes import ask, edits_in_order
from graphprune.recover import recover
from graphprune.survey import SurveyedFile

if TYPE_CHECKING:
    from graphprune.prunepass import PrunePass


class IrPass(ir.passes.InPlacePass):
    """One or more pruning passes over one model, in place.

    `Sequential(IrPass(DropFfn(blocks="3")), IdentityEliminationPass())`. All of them see the
    model as it is when the step begins. Raises `SelectionError` and `EditError`.
    """

    def __init__(self, *passes: PrunePass) -> None:
        super().__init__()
        self.passes = passes

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Recover, plan, edit, sweep."""
        files = [SurveyedFile(model.graph.name or "model", recover(model))]
        edits = edits_in_order(ask(self.passes, files), files)
        for edit in edits:
            edit.apply()
        if edits:
            surgery.sweep(model)
        return ir.passes.PassResult(model, modified=bool(edits))
