"""Graphprune: depth and block surgery for exported ONNX models.

```python
import graphprune as gp

model = gp.load("model.onnx")  # or a folder
gp.prune(model, drop_ffn=[3, 5]).save("pruned.onnx")
```
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphprune.adapter import IrPass
    from graphprune.architecture import Architecture
    from graphprune.bundle import Bundle, load
    from graphprune.compare import Verification, verify
    from graphprune.data.dataset import Data, read_data
    from graphprune.draftsearch import Draft, find_draft
    from graphprune.errors import (
        CheckError,
        EditError,
        GraphError,
        GraphpruneError,
        LoadError,
        MissingExtraError,
        RecipeError,
        RunError,
        SaveError,
        SelectionError,
    )
    from graphprune.exits.asked import Exits, fit_exits
    from graphprune.exporter import export
    from graphprune.generator import Completion, Generation, Step, Steps, generate, generate_steps
    from graphprune.healing.asked import Healed, heal
    from graphprune.healing.repairs import Repairs
    from graphprune.importance.results import Measured, Ranked, Ranking, Scale, Stretch
    from graphprune.influence import Influence, Influences, block_influence
    from graphprune.language import LanguageModel, open_model
    from graphprune.ortformat import Conversion
    from graphprune.packaging_ort import Package, package_ort
    from graphprune.phases import KernelTime, PartTime, Phase
    from graphprune.pipeline import Plan, Pruned, plan, prune
    from graphprune.play import Call, Source, run
    from graphprune.profiler import Profile, profile
    from graphprune.ranking import rank
    from graphprune.recipe import Recipe
    from graphprune.report.subject import Section, Subject
    from graphprune.report.writing import write_report
    from graphprune.sampling import Sampling
    from graphprune.searching.flow import search
    from graphprune.searching.found import Search
    from graphprune.settings import Settings
    from graphprune.skipping.asked import Skipping, fit_skips
    from graphprune.speculation import Drafting, Drafts
    from graphprune.survey import SurveyedFile, inspect
    from graphprune.timing import Bench, LeftOut, ModelCost, Timing, bench
    from graphprune.tracing import write_trace

__all__ = [
    "Architecture",
    "Bench",
    "Bundle",
    "Call",
    "CheckError",
    "Completion",
    "Conversion",
    "Data",
    "Draft",
    "Drafting",
    "Drafts",
    "EditError",
    "Exits",
    "Generation",
    "GraphError",
    "GraphpruneError",
    "Healed",
    "Influence",
    "Influences",
    "IrPass",
    "KernelTime",
    "LanguageModel",
    "LeftOut",
    "LoadError",
    "Measured",
    "MissingExtraError",
    "ModelCost",
    "Package",
    "PartTime",
    "Phase",
    "Plan",
    "Profile",
    "Pruned",
    "Ranked",
    "Ranking",
    "Recipe",
    "RecipeError",
    "Repairs",
    "RunError",
    "Sampling",
    "SaveError",
    "Scale",
    "Search",
    "Section",
    "SelectionError",
    "Settings",
    "Skipping",
    "Source",
    "Step",
    "Steps",
    "Stretch",
    "Subject",
    "SurveyedFile",
    "Timing",
    "Verification",
    "bench",
    "block_influence",
    "export",
    "find_draft",
    "fit_exits",
    "fit_skips",
    "generate",
    "generate_steps",
    "heal",
    "inspect",
    "load",
    "open_model",
    "package_ort",
    "plan",
    "profile",
    "prune",
    "rank",
    "read_data",
    "run",
    "search",
    "verify",
    "write_report",
    "write_trace",
]

# Where the names live. No module is called like a public function: importing a submodule sets
# its name in the package, and would hide the function.
_HOMES = {
    "adapter": ("IrPass",),
    "architecture": ("Architecture",),
    "bundle": ("Bundle", "load"),
    "compare": ("Verification", "verify"),
    "data.dataset": ("Data", "read_data"),
    "exits.asked": ("Exits", "fit_exits"),
    "draftsearch": ("Draft", "find_draft"),
    "exporter": ("export",),
    "generator": ("Completion", "Generation", "Step", "Steps", "generate", "generate_steps"),
    "healing.asked": ("Healed", "heal"),
    "healing.repairs": ("Repairs",),
    "importance.results": ("Measured", "Ranked", "Ranking", "Scale", "Stretch"),
    "influence": ("Influence", "Influences", "block_influence"),
    "language": ("LanguageModel", "open_model"),
    "phases": ("KernelTime", "PartTime", "Phase"),
    "ortformat": ("Conversion",),
    "packaging_ort": ("Package", "package_ort"),
    "pipeline": ("Plan", "Pruned", "plan", "prune"),
    "play": ("Call", "Source", "run"),
    "profiler": ("Profile", "profile"),
    "ranking": ("rank",),
    "recipe": ("Recipe",),
    "report.subject": ("Section", "Subject"),
    "report.writing": ("write_report",),
    "sampling": ("Sampling",),
    "searching.flow": ("search",),
    "searching.found": ("Search",),
    "settings": ("Settings",),
    "skipping.asked": ("Skipping", "fit_skips"),
    "speculation": ("Drafting", "Drafts"),
    "survey": ("SurveyedFile", "inspect"),
    "timing": ("Bench", "LeftOut", "ModelCost", "Timing", "bench"),
    "tracing": ("write_trace",),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562): `import graphprune` itself is free."""
    if name not in __all__:
        raise AttributeError(f"module 'graphprune' has no attribute {name!r}")
    home = next((module for module, names in _HOMES.items() if name in names), "errors")
    globals()[name] = value = getattr(import_module(f"graphprune.{home}"), name)
    return value


def __dir__() -> list[str]:
    return __all__
