"""A resumable grid of settings and tasks, run by lmms-eval."""

from __future__ import annotations

import importlib.metadata
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from .. import runs
from ..machine import pick_device
from ..setting import PruningSetting
from .datasets import fetch
from .harness import NoHarness as NoHarness
from .harness import check_installed, silence, task_manager
from .options import model_args

BACKENDS = ("tokenprune_hf", "tokenprune_llava_hf", "tokenprune_qwen2_5_vl", "tokenprune_qwen3_vl")


@dataclass(frozen=True)
class Plan:
    """What a grid runs.

    Attributes:
        model: path or id of a checkpoint, or the name of an embedded model, as `embedded-qwen`.
        settings: with or without the full model.
        tasks: names of tasks or groups of the harness.
        backend: one of `BACKENDS`.
        arguments: further `--model_args`, `name=value` by comma.
        limit: samples per task; None: all.
        batch_size: samples in one call of the model.
        device: as in the harness; None: the GPU if there is one.
        generation: the harness's `--gen_kwargs`.
        include: a folder with further tasks.
    """

    model: str
    settings: tuple[PruningSetting, ...]
    tasks: tuple[str, ...]
    backend: str = "tokenprune_hf"
    arguments: str = ""
    limit: int | None = None
    batch_size: int = 1
    device: str | None = None
    generation: str | None = None
    include: str | None = None

    def cells(self) -> list[Cell]:
        """Every task under every setting, setting by setting."""
        return [Cell(self, setting, task) for setting in self.settings for task in self.tasks]


@dataclass(frozen=True)
class Cell(runs.Cell):
    """One task under one setting."""

    INDENT: ClassVar[int | None] = 1
    ADDED: ClassVar[frozenset[str]] = frozenset({"model", "include", "device"})

    plan: Plan
    setting: PruningSetting
    task: str

    @property
    def name(self) -> str:
        """The setting as messages and folders name it."""
        return str(self.setting)

    @property
    def title(self) -> str:
        return f"{self.name}: {self.task}"

    def parts(self) -> tuple[str, ...]:
        setting = self.name if self.setting.is_full else f"{self.name}-{self.setting.positions}"
        return self.plan.model, setting, self.task

    def names(self) -> dict[str, Any]:
        return {
            "model": self.plan.model,
            "backend": self.plan.backend,
            "arguments": self.plan.arguments,
            "policy": self.setting.name,
            "keep": None if self.setting.is_full else self.setting.keep,
            "positions": self.setting.positions,
            "task": self.task,
        }

    def model_args(self) -> str:
        """The harness's `--model_args`."""
        parts = [f"pretrained={self.plan.model}", self.plan.arguments, model_args(self.setting)]
        return ",".join(part for part in parts if part)

    def identity(self) -> dict[str, Any]:
        return {
            "model": _absolute(self.plan.model),
            "model_args": self.model_args(),
            "backend": self.plan.backend,
            "task": self.task,
            "limit": self.plan.limit,
            "generation": self.plan.generation,
            "include": _absolute(self.plan.include),
            "device": pick_device(self.plan.device).type,  # the dtype follows from it
            "lmms_eval": importlib.metadata.version("lmms_eval"),
            "transformers": importlib.metadata.version("transformers"),
        }


def _absolute(path: str | None) -> str | None:
    """The absolute path of a folder, so that it means the same wherever the command is typed; else what is given."""
    return str(Path(path).resolve()) if path is not None and Path(path).is_dir() else path


def check(plan: Plan) -> Any:
    """Check a plan before any model is loaded.

    Returns:
        The harness's task manager.

    Raises:
        NoHarness: lmms-eval is not installed.
        CommandError: there is no such device.
        ValueError: no such backend or task.
        UnsupportedModelError: the checkpoint's family is not supported.
        OSError: there is no such checkpoint.
    """
    check_installed()
    pick_device(plan.device)
    if plan.backend not in BACKENDS:
        raise ValueError(f"backend {plan.backend!r} is none of {', '.join(BACKENDS)}")
    silence()
    from .model import checkpoint

    checkpoint(plan.model)
    return task_manager(plan.tasks, plan.backend, plan.include)


def run(plan: Plan, out: Path, note: Callable[[str], None] = lambda text: None) -> list[Cell]:
    """Run the cells that are not finished.

    Under torchrun or accelerate every process runs every cell, and the first one writes.

    Args:
        plan: what to run.
        out: folder of results; cells finished there earlier are not run again.
        note: receives messages on progress.

    Returns:
        All cells, now finished.

    Raises:
        NoHarness, ValueError, UnsupportedModelError, OSError: as `check`, before any model is loaded.
        CommandError: the data of a task cannot be fetched; likewise.
    """
    manager = check(plan)
    cells = plan.cells()
    fetch(dict.fromkeys(cell.task for cell in cells if not cell.finished(out)), manager)
    runs.run(cells, out, lambda cell: evaluate(cell, manager), note)
    return cells


def evaluate(cell: Cell, manager: Any) -> dict[str, Any] | None:
    """Run the harness on a cell: its standard results with all samples; None in all processes but the first."""
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
        bootstrap_iters=0,  # `grid_report` has intervals, of paired differences
        verbosity="WARNING",
        process_docs_parallel=1,
    )
    if results is None:
        return None
    from ..machine import describe

    results["seconds"] = time.perf_counter() - started
    results["machine"] = describe(plan.device)
    plain: dict[str, Any] = json.loads(json.dumps(results, default=handle_non_serializable))
    return plain
