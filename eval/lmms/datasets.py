"""The data of tasks, fetched before any model is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import CommandError
from . import tasks_path

#: Modules whose exceptions are about the network or the hub, besides every `OSError`.
_NETWORK = ("httpx", "requests", "huggingface_hub", "urllib3", "datasets")


def fetch(tasks: Iterable[str], manager: Any, kind: str = "simple") -> list[dict[Any, Any]]:
    """Load tasks with their data, which the harness does again from its cache.

    Args:
        tasks: names of tasks or groups.
        manager: the harness's task manager.
        kind: as which the harness makes tasks, "simple" or "chat".

    Returns:
        For each name, tasks by name, in groups by group.

    Raises:
        CommandError: the data of a task cannot be fetched, without network for example.
    """
    from lmms_eval.tasks import get_task_dict

    loaded = []
    for task in tasks:
        try:
            loaded.append(get_task_dict([task], manager, kind))
        except Exception as error:
            reason = next((each for each in _causes(error) if _is_network(each)), None)
            if reason is None:
                raise
            said = str(reason).strip().partition("\n")[0].rstrip(".")
            raise CommandError(
                f"the data of task {task!r} cannot be fetched ({type(reason).__name__}: {said[:200]}); "
                f"tasks that need no network: {', '.join(offline_tasks())}"
            ) from error
    return loaded


def offline_tasks() -> list[str]:
    """Names of the tasks that ship with this package, the group of all first."""
    return sorted(path.stem for path in Path(tasks_path()).rglob("*.yaml"))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that it was raised from; the last failure of what was tried several times."""
    while error is not None:
        yield error
        attempt = getattr(error, "last_attempt", None)  # of tenacity
        error = attempt.exception() if attempt is not None else error.__cause__ or error.__context__


def _is_network(error: BaseException) -> bool:
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _NETWORK
