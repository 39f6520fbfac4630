"""What an interrupted training goes on from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .curve import Curve
from .optimizer import Optimizer


class Checkpoint:
    """The state of a training in a file: finished stages, and every `EVERY` steps that of the stage it is in.

    The file is written beside the former one and then takes its place, so that it is whole whenever training stops.

    Args:
        path: of the file.
        modules: what is trained in all stages, by name.
    """

    EVERY = 200  # steps

    def __init__(self, path: Path, **modules: nn.Module):
        self.path, self.modules = path, modules
        self.done: dict[str, Any] = {"stages": 0, "curve": [], "seconds": 0.0}
        self.stage: dict[str, Any] = {}
        if path.exists():
            self.done = torch.load(path)
            self.stage = self.done.pop("stage")
            for name, state in self.done.pop("modules").items():
                modules[name].load_state_dict(state)

    def finish(self, curve: Curve) -> None:
        """Save the end of a stage."""
        self.done["curve"] += curve.rows
        self.done["seconds"] += curve.seconds()
        self.done["stages"] += 1
        self.stage = {}
        self._write({})

    def resume(self, curve: Curve, optimizer: Optimizer, own: nn.Module) -> int:
        """Restore the state of a stage, if there is one; returns the number of its steps that are done.

        Args:
            curve: of the stage.
            optimizer: likewise.
            own: what is trained in this stage only.
        """
        if self.stage:
            curve.load_state_dict(self.stage["curve"])
            optimizer.load_state_dict(self.stage["optimizer"])
            own.load_state_dict(self.stage["own"])
        return int(self.stage.get("steps", 0))

    def step(self, steps: int, curve: Curve, optimizer: Optimizer, own: nn.Module) -> None:
        """Save the state of a stage after every `EVERY` steps.

        Args:
            steps: of the stage that are done.
            curve: of the stage.
            optimizer: likewise.
            own: what is trained in this stage only.
        """
        if steps % self.EVERY == 0:
            stage = {"curve": curve.state_dict(), "optimizer": optimizer.state_dict(), "own": own.state_dict()}
            self._write({"steps": steps, **stage})

    def remove(self) -> None:
        """Remove the file, when training has ended."""
        self.path.unlink(missing_ok=True)

    def _write(self, stage: dict[str, Any]) -> None:
        modules = {name: module.state_dict() for name, module in self.modules.items()}
        new = self.path.with_suffix(".new")
        torch.save({**self.done, "modules": modules, "stage": stage}, new)
        os.replace(new, self.path)
