"""How long graphprune takes to start: to import, to show its help, to look into a small model.

    python -m tools.bench_startup [--rounds N]

Every run is a process of its own, in turns, after a first round that is not counted. Writes
docs/benchmarks/startup.md.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.bench_latency import export_minilm
from tools.measuring import GRAPHPRUNE, Run, command_line, environment, measure, spread, write_page

LIMITS = {"import graphprune": 0.3, "graphprune --help": 0.5}
SHOWN = ("sympy", "numpy", "onnx", "onnx_ir", "onnxruntime", "pydantic", "typer", "rich", "graphprune")


def compare(
    commands: Mapping[str, Sequence[str | Path]], rounds: int, bytecode: Path
) -> dict[str, list[Run]]:
    """Each command `rounds` times, in turns; all but the first round count."""
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            run = measure(command, bytecode)
            if number:
                runs[name].append(run)
    return runs


def imports(code: str) -> dict[str, float]:
    """Milliseconds that the modules of each package in `SHOWN` take to import while `code` runs."""
    command = [sys.executable, "-X", "importtime", "-c", code]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    times = dict.fromkeys(SHOWN, 0.0)
    for line in re.findall(r"^import time: +(\d+) \| +\d+ \| +([\w.]+)$", log, re.MULTILINE):
        package = line[1].partition(".")[0]
        if package in times:
            times[package] += int(line[0]) / 1000
    return times


def row(name: str, runs: Sequence[Run]) -> str:
    """One line of the table."""
    limit = f"{LIMITS[name]}" if name in LIMITS else ""
    seconds, cpu = spread(run.seconds for run in runs), spread(run.cpu for run in runs)
    return f"| `{name}` | {seconds} | {cpu} | {limit} | {max(run.megabytes for run in runs):.0f} |"


def main() -> None:
    """Measure, and write the page."""
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    rounds: int = parser.parse_args().rounds
    about = environment("onnx", "onnx-ir", "typer")
    with tempfile.TemporaryDirectory(prefix="startup.") as name:
        folder = Path(name)
        model = export_minilm(folder / "minilm")
        commands: dict[str, list[str | Path]] = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "import graphprune": [sys.executable, "-c", "import graphprune"],
            "graphprune --help": [GRAPHPRUNE, "--help"],
            "graphprune inspect MINILM": [GRAPHPRUNE, "inspect", model],
            "graphprune inspect MINILM --json": [GRAPHPRUNE, "inspect", model, "--json"],
        }
        runs = compare(commands, rounds, folder / "bytecode")
        inspect = f"from graphprune.cli import run_line; run_line(['inspect', {str(model)!r}])"
        shares = sorted(imports(inspect).items(), key=lambda item: -item[1])
    lines = [
        "# Start",
        "",
        f"`python -m tools.bench_startup --rounds {rounds}` on {about}.",
        f"Medians of {rounds} runs in turns, lowest and highest in brackets, Python's own start included.",
        "",
        "| | seconds | CPU seconds | limit, s | peak memory, MB |",
        "|---|--:|--:|--:|--:|",
        *(row(name, measured) for name, measured in runs.items()),
        "",
        "What `inspect` imports, in milliseconds by `-X importtime`: "
        + ", ".join(f"{package} {time:.0f}" for package, time in shares if time >= 1)
        + ". sympy comes with onnx-ir, which uses it for arithmetic on symbolic dimensions.",
    ]
    write_page("startup.md", lines)


if __name__ == "__main__":
    main()
