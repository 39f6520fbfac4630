"""lmms-eval itself: whether it is installed, and its tasks."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import CommandError
from . import tasks_path
from .datasets import fetch


class NoHarness(CommandError):
    """lmms-eval is not installed."""


def check_installed() -> None:
    """Check that the harness is there.

    Raises:
        NoHarness: it is not.
    """
    if importlib.util.find_spec("lmms_eval") is None:
        raise NoHarness("lmms-eval is not installed; in a checkout of this repository: pip install '.[eval]'")


def silence() -> None:
    """Let the harness tell warnings only."""
    from loguru import logger

    logger.remove()
    logger.add(sys.stderr, level="WARNING")


def task_manager(tasks: Iterable[str], model: str, include: str | None = None) -> Any:
    """The harness's manager of its tasks and ours.

    Args:
        tasks: names of tasks or groups that it must know.
        model: whose prompts are wanted, by the harness's name of it.
        include: a folder with further tasks.

    Raises:
        ValueError: there is no such task.
    """
    manager = _manager(model, include)
    for task in tasks:
        if task not in manager.task_index:
            close = difflib.get_close_matches(task, manager.all_tasks, 3)
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise ValueError(f"the harness has no task {task!r}{hint}")
    return manager


@functools.lru_cache(maxsize=2)
def _manager(model: str, include: str | None) -> Any:
    """A manager; to make one takes seconds."""
    from lmms_eval.tasks import TaskManager

    return TaskManager("WARNING", include_path=[tasks_path(), *filter(None, [include])], model_name=model)


def load_tasks(name: str, model: str = "tokenprune_hf") -> list[Any]:
    """A task, or all tasks of a group, with their data.

    Args:
        name: of the task or group.
        model: as in `task_manager`.

    Raises:
        NoHarness: the harness is not installed.
        ValueError: there is no such task.
        CommandError: its data cannot be fetched.
    """
    check_installed()
    silence()
    return [task for loaded in fetch([name], task_manager([name], model), "chat") for task in _flat(loaded)]


def _flat(tasks: Any) -> Iterator[Any]:
    """The tasks of nested groups."""
    for each in tasks.values():
        if isinstance(each, dict):
            yield from _flat(each)
        else:
            yield each
