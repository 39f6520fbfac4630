"""Cells of the benchmark: one task under one setting, each on disk as soon as it is done."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import __version__
from ...api import Positions
from ...policies import Policy, make_policy
from .. import cells, minivlm
from ..asking import Sample, Setting, answer, right
from . import tasks
from .downsample import Downsampled

#: What every policy is compared with, run whether asked for or not.
BASELINES = ("random", "grid", "downsample")
BATCH = 50


@dataclass(frozen=True)
class Plan:
    """What a benchmark runs.

    Attributes:
        model: which embedded model.
        settings: the full model first.
        tasks: of `tasks.TASKS`.
        samples: questions per task.
        split: `"test"` or `"validation"`.
        against: a policy that every other is compared with, besides the baselines; None: none.
    """

    model: minivlm.Name
    settings: tuple[Setting, ...]
    tasks: tuple[str, ...]
    samples: int
    split: str = "test"
    against: str | None = None

    def cells(self) -> list[Cell]:
        return [Cell(self, setting, task) for setting in self.settings for task in self.tasks]


def settings(
    policies: Sequence[str], keeps: Sequence[float | int], positions: Sequence[Positions]
) -> tuple[Setting, ...]:
    """The full model, and at every budget the baselines and the policies, positions in turn."""
    names = dict.fromkeys(("random", "grid", *policies))
    out: list[Setting] = [Setting()]
    for keep in keeps:
        out.append(Downsampled(keep=keep))
        out += [Setting(_policy(name), keep, p) for p in positions for name in names if name != "downsample"]
    return tuple(out)


def _policy(name: str) -> Policy | tuple[Policy, ...]:
    """The policy of a name, or those of names joined by `+`."""
    stages = tuple(map(make_policy, name.split("+")))
    return stages[0] if len(stages) == 1 else stages


def allowed(
    model: minivlm.Name, settings: Sequence[Setting], note: Callable[[str], None] = lambda text: None
) -> tuple[Setting, ...]:
    """The settings that a model allows; `note` is told of the others, and why."""
    loaded, out, told = minivlm.load(model)[0], [], set()
    for setting in settings:
        try:
            with setting.context(loaded):
                out.append(setting)
        except ValueError as error:
            if setting.name not in told:
                note(f"left out: {error}")
            told.add(setting.name)
    return tuple(out)


@functools.cache
def _weights(model: minivlm.Name) -> str:
    return hashlib.sha256((minivlm.WEIGHTS[model] / "model.safetensors").read_bytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Cell:
    """One task under one setting."""

    plan: Plan
    setting: Setting
    task: str

    @property
    def key(self) -> tuple[str, float | int, Positions, str]:
        return self.setting.name, self.setting.keep, self.setting.positions, self.task

    def path(self, out: Path) -> Path:
        s = self.setting
        name = s.name if s.name == "full" else f"{s.name}-{s.keep:g}-{s.positions}"
        return out / "cells" / self.plan.model / self.plan.split / name / f"{self.task}.json"

    def identity(self) -> dict[str, Any]:
        """All that the answers depend on."""
        return {
            "model": self.plan.model,
            "weights": _weights(self.plan.model),
            "policy": repr(self.setting.policy or self.setting.name),
            "keep": self.setting.keep,
            "positions": self.setting.positions,
            "task": self.task,
            "split": self.plan.split,
            "samples": self.plan.samples,
            "tokenprune": __version__,
            "transformers": importlib.metadata.version("transformers"),
        }

    def finished(self, out: Path) -> bool:
        """Whether this very cell has been run: with fewer samples, say, it has not."""
        return cells.finished(self.path(out), self.identity())


def run(
    plan: Plan, out: Path, tick: Callable[[int], None] = lambda n: None, note: Callable[[str], None] = lambda text: None
) -> dict[tuple, dict[str, Any]]:
    """Run the cells that are not there yet.

    Args:
        plan: what to run.
        out: folder of results; one that holds some is gone on with.
        tick: told of every few questions answered, or found to be.
        note: told how much is there already.

    Returns:
        By `Cell.key`: `identity`, and per question `right`, `texts`, `answers` (the right ones) and `kept`.
    """
    sizes = minivlm.family(plan.model).SIZES
    draw = functools.cache(lambda task: tasks.samples(task, plan.samples, sizes, plan.split))
    load = functools.cache(lambda: minivlm.load(plan.model))
    every = plan.cells()
    todo = [cell for cell in every if not cell.finished(out)]
    there = len(every) - len(todo)
    if there:
        note(f"{there} of {len(every)} cells are there already")
        tick(there * plan.samples)
    for cell in todo:
        results = _evaluate(*load(), draw(cell.task), cell.setting, tick)
        cells.write(cell.path(out), {"identity": cell.identity()} | results)
    return {cell.key: json.loads(cell.path(out).read_text()) for cell in every}


def _evaluate(model: Any, processor: Any, samples: list[Sample], setting: Setting, tick: Callable) -> dict[str, Any]:
    answers = answer(model, processor, samples, setting, tick, BATCH)
    return {
        "right": right(samples, answers).astype(int).tolist(),
        "texts": [text.strip() for text in answers.texts],
        "answers": [s.question.answer for s in samples],
        "kept": answers.kept,
    }
