"""What the benchmarks share: commands as measured processes, and a line about the machine."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

PAGES = Path(__file__).resolve().parent.parent / "docs" / "benchmarks"
GRAPHPRUNE = Path(sys.executable).with_name("graphprune")


@dataclass(frozen=True)
class Run:
    """One process: wall-clock and CPU seconds, peak resident MB."""

    seconds: float
    cpu: float
    megabytes: float


def measure(command: Sequence[str | Path], bytecode: Path) -> Run:
    """Run a command; raises where it fails.

    Python keeps compiled modules in the folder `bytecode`, so that from the second run on a
    checkout starts like an installed package, whatever the caller's environment says.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(bytecode)
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} failed with {process.returncode}")
    peak = usage.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    return Run(seconds, usage.ru_utime + usage.ru_stime, peak)


def spread(values: Iterable[float], digits: int = 2) -> str:
    """Median, and the lowest and highest in brackets."""
    ordered = sorted(values)
    low, median, high = ordered[0], statistics.median(ordered), ordered[-1]
    return f"{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def command_line(about: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the text `about`, as it stands."""
    return argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)


def environment(*libraries: str) -> str:
    """The machine, its load at this moment, Python, and the libraries with their versions."""
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{_processor()}, {os.cpu_count()} cores{load}, {platform.system()}, "
        f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in libraries)
    )


def _processor() -> str:
    """The processor's name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def write_page(name: str, lines: Iterable[str]) -> None:
    """Write a page of docs/benchmarks, and show it."""
    PAGES.mkdir(parents=True, exist_ok=True)
    text = "\n".join(lines) + "\n"
    (PAGES / name).write_text(text, encoding="utf-8")
    print(text)
