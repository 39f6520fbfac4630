"""Cells of the benchmark: one task under one setting each."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import __version__
from ...api import Positions
from .. import minivlm, runs
from ..answers import Sample, answer, exact_matches
from ..setting import PruningSetting, format_keep
from . import tasks
from .downsample import Downsampled

#: Baselines that every policy is compared with. They always run.
BASELINES = ("random", "grid", "downsample")
BATCH = 50

#: Policy, keep ratio, positions and task of a cell.
Key = tuple[str, float | int | None, Positions, str]


@dataclass(frozen=True)
class Plan:
    """What a benchmark runs.

    Attributes:
        model: which embedded model.
        settings: the full model first.
        tasks: of `tasks.TASKS`.
        samples: questions per task.
        split: of the scenes, `"test"` or `"validation"`.
        against: a policy that every other is compared with, besides the baselines; None: none.
    """

    model: minivlm.Name
    settings: tuple[PruningSetting, ...]
    tasks: tuple[str, ...]
    samples: int
    split: str = "test"
    against: str | None = None

    def cells(self) -> list[Cell]:
        """Every task under every setting, setting by setting."""
        return [Cell(self, setting, task) for setting in self.settings for task in self.tasks]


def settings(
    policies: Sequence[str], keeps: Sequence[float | int], positions: Sequence[Positions]
) -> tuple[PruningSetting, ...]:
    """The full model, then per keep ratio the downsampled images, and per positions the baselines and the policies."""
    names = [name for name in dict.fromkeys(("random", "grid", *policies)) if name != "downsample"]
    out: list[PruningSetting] = [PruningSetting()]
    for keep in keeps:
        out.append(Downsampled(keep=keep))
        out += [PruningSetting(name, keep, each) for each in positions for name in names]
    return tuple(out)


def allowed(
    model: minivlm.Name, settings: Sequence[PruningSetting], note: Callable[[str], None] = lambda text: None
) -> tuple[PruningSetting, ...]:
    """The settings that a model supports; `note` receives, once per policy, why it is left out."""
    loaded = minivlm.load(model)[0]
    supported: list[PruningSetting] = []
    reported: set[str] = set()
    for setting in settings:
        try:
            with setting.context(loaded):
                supported.append(setting)
        except ValueError as error:
            if setting.name not in reported:
                note(f"left out: {error}")
            reported.add(setting.name)
    return tuple(supported)


@functools.cache
def _weights(model: minivlm.Name) -> str:
    """A hash of an embedded model's weights."""
    return hashlib.sha256((minivlm.WEIGHTS[model] / "model.safetensors").read_bytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Cell(runs.Cell):
    """One task under one setting."""

    plan: Plan
    setting: PruningSetting
    task: str

    @property
    def key(self) -> Key:
        return self.setting.name, self.setting.keep, self.setting.positions, self.task

    def path(self, out: Path) -> Path:
        s = self.setting
        name = s.name if s.is_full else f"{s.name}-{format_keep(s.keep)}-{s.positions}"
        return out / "cells" / self.plan.model / self.plan.split / name / f"{self.task}.json"

    def identity(self) -> dict[str, Any]:
        return {
            "model": self.plan.model,
            "weights": _weights(self.plan.model),
            **self.setting.identity(),
            "task": self.task,
            "split": self.plan.split,
            "samples": self.plan.samples,
            "tokenprune": __version__,
            "transformers": importlib.metadata.version("transformers"),
        }


def run(
    plan: Plan,
    out: Path,
    tick: Callable[[int], None] = lambda count: None,
    note: Callable[[str], None] = lambda text: None,
) -> dict[Key, dict[str, Any]]:
    """Run the cells that are not finished.

    Args:
        plan: what to run.
        out: folder of results; cells finished there earlier are not run again.
        tick: receives the number of questions answered, after each batch, or found answered.
        note: receives messages on progress.

    Returns:
        By `Cell.key`: `identity`, and per question `right` (0 or 1), `texts`, `answers` (the right ones) and `kept`.
    """
    sizes = minivlm.family(plan.model).SIZES
    draw = functools.cache(lambda task: tasks.samples(task, plan.samples, sizes, plan.split))
    load = functools.cache(lambda: minivlm.load(plan.model))
    cells = plan.cells()
    evaluate = lambda cell: _evaluate(*load(), draw(cell.task), cell.setting, tick)
    runs.run(cells, out, evaluate, note, lambda count: tick(count * plan.samples))
    return {cell.key: cell.read(out) for cell in cells}


def _evaluate(
    model: Any, processor: Any, samples: list[Sample], setting: PruningSetting, tick: Callable[[int], None]
) -> dict[str, Any]:
    answers = answer(model, processor, samples, setting, tick, BATCH)
    return {
        "right": exact_matches(samples, answers).astype(int).tolist(),
        "texts": [text.strip() for text in answers.texts],
        "answers": [s.question.answer for s in samples],
        "kept": answers.kept,
    }
