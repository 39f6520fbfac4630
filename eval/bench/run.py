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
from ..reachable import refusal
from ..setting import FULL, PruningSetting, format_keep, own_keep
from . import tasks
from .downsample import Downsampled

#: Baselines that every policy is compared with. They always run.
BASELINES = ("random", "grid", "downsample")
BATCH = 50

#: Of a cell's identity, what may differ within a table: the setting and task, and the model.
OF_A_SETTING = ("policy", "keep", "positions", "task")
MODEL_OF_A_RUN = ("model", "weights")


@dataclass(frozen=True)
class Plan:
    """What a benchmark runs.

    Attributes:
        model: which embedded model.
        settings: the full model first.
        tasks: of `tasks_of(model)`.
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
    policies: Sequence[str], keeps: Sequence[float | int | str | None], positions: Sequence[Positions]
) -> tuple[PruningSetting, ...]:
    """The full model, then per keep ratio the downsampled images, and per positions the baselines and the policies.

    The keep ratio None is for policies that find their own count.
    """
    names = [name for name in dict.fromkeys(("random", "grid", *policies)) if name != "downsample"]
    out: list[PruningSetting] = [PruningSetting()]
    own = {name: own_keep(name) for name in names}
    for keep in keeps:
        if keep is None:
            found = [PruningSetting(name, positions=each) for each in positions for name in names if own[name] is None]
            out += [setting for setting in found if all(policy.adaptive for policy in setting.policies)]
            continue
        if not isinstance(keep, str):  # there is no number to resize to
            out.append(Downsampled(keep=keep))
        out += [PruningSetting(name, keep, each) for each in positions for name in names if own[name] is None]
    return (*out, *(PruningSetting(name) for name in names if own[name] is not None))


def allowed(
    model: minivlm.Name, settings: Sequence[PruningSetting], note: Callable[[str], None] = lambda text: None
) -> tuple[PruningSetting, ...]:
    """The settings that a model supports; `note` receives, once per reason, why one is left out."""
    loaded = minivlm.load(model)[0]
    refusals = [refusal(loaded, setting) for setting in settings]
    for reason in dict.fromkeys(str(error) for error in refusals if error is not None):
        note(f"left out: {reason}")
    return tuple(setting for setting, error in zip(settings, refusals, strict=True) if error is None)


@functools.cache
def weights(model: minivlm.Name) -> str:
    """A hash of an embedded model's weights."""
    return hashlib.sha256((minivlm.WEIGHTS[model] / "model.safetensors").read_bytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Cell(runs.Cell):
    """One task under one setting."""

    plan: Plan
    setting: PruningSetting
    task: str

    def parts(self) -> tuple[str, ...]:
        s = self.setting
        name = FULL if s.is_full else f"{s.name}-{format_keep(s.keep)}-{s.positions}"
        return self.plan.model, self.plan.split, name, self.task

    def names(self) -> dict[str, Any]:
        s = self.setting
        return {
            "model": self.plan.model,
            "policy": s.name,
            "keep": s.keep,
            "positions": s.positions,
            "task": self.task,
        }

    def identity(self) -> dict[str, Any]:
        return {
            "model": self.plan.model,
            "weights": weights(self.plan.model),
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
    command: str,
    tick: Callable[[int], None] = lambda count: None,
    note: Callable[[str], None] = lambda text: None,
) -> None:
    """Run the cells that are not finished, and write of each per question `right` (0 or 1), `texts`, `answers` (the
    right ones) and `kept`.

    Args:
        plan: what to run.
        out: folder of results; cells finished there earlier are not run again.
        command: the command line that does this, which is written with the results.
        tick: receives the number of questions answered, after each batch, or found answered.
        note: receives messages on progress.
    """
    draw = functools.cache(lambda task: tasks.asked(plan.model, task, plan.samples, plan.split))
    load = functools.cache(lambda: minivlm.load(plan.model))
    evaluate = lambda cell: {"command": command} | _evaluate(*load(), draw(cell.task), cell.setting, tick)
    runs.run(plan.cells(), out, evaluate, note, lambda count: tick(count * plan.samples))


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
