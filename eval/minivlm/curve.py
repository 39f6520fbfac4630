"""The curve of a stage of training."""

from __future__ import annotations

import logging
import time
from typing import Any

import numpy as np
from tqdm.auto import tqdm

logger = logging.getLogger(__name__)


class Curve:
    """Means of the logged figures over every `EVERY` steps.

    Args:
        stage: its name.
        steps: that it takes.
    """

    EVERY = 100  # steps

    def __init__(self, stage: str, steps: int):
        self.bar = tqdm(total=steps, desc=stage, mininterval=5)
        self.stage, self.start = stage, time.time()
        self.recent: list[dict[str, float]] = []
        self.rows: list[dict[str, Any]] = []

    def seconds(self) -> float:
        """Since the start of the stage, without interruptions."""
        return time.time() - self.start

    def add(self, step: int, **figures: float) -> None:
        """Add the figures of a step."""
        self.bar.update()
        self.recent.append(figures)
        if (step + 1) % self.EVERY:
            return
        names = dict.fromkeys(name for row in self.recent for name in row)
        mean = {k: np.array([row.get(k, np.nan) for row in self.recent]) for k in names}
        row = {"stage": self.stage, "step": step + 1, "seconds": round(self.seconds())}
        self.rows.append(row | {k: round(float(np.nanmean(v)), 4) for k, v in mean.items() if (v == v).any()})
        self.recent = []
        logger.info("%s", self.rows[-1])

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` goes on from."""
        return {"recent": self.recent, "rows": self.rows, "seconds": self.seconds(), "n": self.bar.n}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the state of another one."""
        self.recent, self.rows = state["recent"], state["rows"]
        self.start = time.time() - state["seconds"]
        self.bar.update(state["n"])
