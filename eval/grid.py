"""A grid of policies, budgets and tasks through lmms-eval, cell by cell, resumable."""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import cells
from .lmms import tasks_path
from .lmms.options import PruningOptions

BACKENDS = ("tokenprune_hf", "tokenprune_llava_hf", "tokenprune_qwen2_5_vl", "tokenprune_qwen3_vl")


class NoHarness(RuntimeError):
    """lmms-eval is not installed."""


@dataclass(frozen=True)
class Plan:
    """What a grid runs.

    Attributes:
        model: path or id of a checkpoint, or `embedded`.
        settings: budgets to run, the full model (`PruningOptions()`) among them or not.
        tasks: names of tasks or groups of the harness.
        backend: one of `BACKENDS`.
        arguments: more of `--model_args`, `name=value` by comma.
        limit: samples per task; None: all.
        generation: the harness's `--gen_kwargs`.
        include: a folder with tasks of one's own.
    """

    model: str
    settings: tuple[PruningOptions, ...]
    tasks: tuple[str, ...]
    backend: str = "tokenprune_hf"
    arguments: str = ""
    limit: int | None = None
    batch_size: int = 1
    device: str | None = None
    generation: str | None = None
    include: str | None = None

    def cells(self) -> list[Cell]:
        """Setting by setting, so that a pruned model is not loaded again for each task."""
        return [Cell(self, setting, task) for setting in self.settings for task in self.tasks]


@dataclass(frozen=True)
class Cell:
    """One task under one setting."""

    plan: Plan
    setting: PruningOptions
    task: str

    @property
    def keep(self) -> str:
        return "default" if self.setting.keep is None else f"{self.setting.keep:g}"

    @property
    def name(self) -> str:
        return "full" if self.setting.policy == "none" else f"{self.setting.policy} {self.keep}"

    def path(self, out: Path) -> Path:
        return out / "cells" / self.name.replace(" ", "-") / f"{self.task}.json"

    def model_args(self) -> str:
        parts = [f"pretrained={self.plan.model}", self.plan.arguments, self.setting.arguments()]
        return ",".join(part for part in parts if part)

    def identity(self) -> dict[str, Any]:
        """All that the answers depend on."""
        return {
            "model_args": self.model_args(),
            "backend": self.plan.backend,
            "task": self.task,
            "limit": self.plan.limit,
            "generation": self.plan.generation,
            "lmms_eval": importlib.metadata.version("lmms_eval"),
            "transformers": importlib.metadata.version("transformers"),
        }

    def finished(self, out: Path) -> bool:
        """Whether this very cell has been run: under another limit, say, it has not."""
        return cells.finished(self.path(out), self.identity())


def check(plan: Plan) -> Any:
    """Finds out what would fail before any model is loaded.

    Returns:
        The harness's task manager.

    Raises:
        NoHarness: if lmms-eval is not installed.
        ValueError: for a bad budget, backend or task.
        UnsupportedModelError, OSError: for the checkpoint.
    """
    if importlib.util.find_spec("lmms_eval") is None:
        raise NoHarness("lmms-eval is not installed: pip install 'tokenprune-vlm[eval]'")
    if plan.backend not in BACKENDS:
        raise ValueError(f"backend {plan.backend!r} is none of {', '.join(BACKENDS)}")
    for setting in plan.settings:
        setting.check()
    from loguru import logger

    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    from .lmms.model import checkpoint

    checkpoint(plan.model)
    from lmms_eval.tasks import TaskManager

    folders = [tasks_path()] + ([plan.include] if plan.include else [])
    manager = TaskManager("WARNING", include_path=folders, model_name=plan.backend)
    for task in plan.tasks:
        if task not in manager.task_index:
            close = difflib.get_close_matches(task, manager.all_tasks, 3)
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise ValueError(f"the harness has no task {task!r}{hint}")
    return manager


def run(plan: Plan, out: Path, note: Callable[[str], None] = lambda text: None) -> list[Cell]:
    """Run the cells that are not finished, each written as soon as it is done.

    Under torchrun or accelerate every process runs every cell, and the first one writes.

    Args:
        plan: what to run.
        out: folder of results; one that holds some is gone on with.
        note: told what is being done.

    Returns:
        All cells, now finished.
    """
    manager = check(plan)
    every = plan.cells()
    # Once, before any is run: processes must agree on what there is to do.
    todo = [cell for cell in every if not cell.finished(out)]
    if len(todo) < len(every):
        note(f"{len(every) - len(todo)} of {len(every)} cells are there already")
    for i, cell in enumerate(todo, 1):
        note(f"[{i}/{len(todo)}] {cell.name}: {cell.task}")
        results = evaluate(cell, manager)
        if results is not None:
            cells.write(cell.path(out), results, indent=1)
    return every


def evaluate(cell: Cell, manager: Any) -> dict[str, Any] | None:
    """One run of the harness: its standard results, with all samples; None in all but the first process."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.utils import handle_non_serializable

    plan, started = cell.plan, time.perf_counter()
    results = simple_evaluate(
        model=plan.backend,
        model_args=cell.model_args(),
        tasks=[cell.task],
        task_manager=manager,
        batch_size=plan.batch_size,
        device=plan.device,
        limit=plan.limit,
        gen_kwargs=plan.generation,
        log_samples=True,
        bootstrap_iters=0,  # intervals are ours, of paired differences
        verbosity="WARNING",
        process_docs_parallel=1,
    )
    if results is None:
        return None
    from .machine import describe

    results["identity"] = cell.identity()
    results["seconds"] = time.perf_counter() - started
    results["machine"] = describe(plan.device)
    return json.loads(json.dumps(results, default=handle_non_serializable))


def settings(
    policies: Sequence[str], keeps: Sequence[float | int], positions: str, full: bool
) -> tuple[PruningOptions, ...]:
    """The full model first, then every policy at every budget."""
    pruned = tuple(PruningOptions(policy, keep, positions) for policy in policies for keep in keeps)
    return (PruningOptions(),) * full + pruned
