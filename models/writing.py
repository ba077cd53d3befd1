"""How a trained model is written: a transformers folder of fp16 weights that load as fp32."""

from __future__ import annotations

import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Clock:
    """The wall and the CPU clock, in seconds, as something began."""

    wall: float
    cpu: float

    @staticmethod
    def start() -> Clock:
        """The clock of what begins now."""
        return Clock(time.perf_counter(), time.process_time())

    def spent(self, threads: int) -> dict[str, Any]:
        """For metrics.json: the minutes since then, and the machine they were spent on."""
        return {
            "wall_minutes": round((time.perf_counter() - self.wall) / 60, 1),
            "cpu_minutes": round((time.process_time() - self.cpu) / 60, 1),
            "machine": f"{processor()}, {threads} thread{'s' * (threads > 1)}, torch {torch.__version__}",
        }


def processor() -> str:
    """The processor by its name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def save(model: Any, folder: Path) -> None:
    """Write the weights as fp16; who loads them without naming a dtype gets fp32. `model` is left in fp16."""
    model.half().save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    save_json(path, config | dict.fromkeys({"dtype", "torch_dtype"} & set(config), "float32"))


def save_image_processor(folder: Path, size: int) -> None:
    """Write how images become inputs: `size` pixels squared, from −1 to 1."""
    import transformers

    transformers.ViTImageProcessor(
        size={"height": size, "width": size}, image_mean=[0.5], image_std=[0.5]
    ).save_pretrained(folder)


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON as people read it."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
