"""The tasks: held-out questions, one per scene or pair of scenes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .. import minivlm
from ..answers import Sample
from ..errors import CommandError
from ..minivlm.questions import Question, all_questions, compare
from ..minivlm.scenes import SEEDS, Scene, draw_scene
from . import TASKS as TASKS
from . import tasks_of

#: Name of all tasks together.
ALL = "all"
#: Right answers that a task's questions go through in turn, so that a constant guess scores no better than another.
_BALANCED = {"existence": ("yes", "no"), "pair": ("first", "second", "both", "neither")}


def check(model: str, n: int, split: str, tasks: Sequence[str]) -> None:
    """Check that an embedded model can be asked.

    Args:
        model: its name.
        n: questions per task.
        split: of the scenes.
        tasks: what it is to be asked.

    Raises:
        CommandError: it has no such task or split or not as many questions, or easy-VQA is not installed.
    """
    accepted = tasks_of(model)
    for task in tasks:
        if task not in accepted:
            raise CommandError(f"--tasks {task}: {model} has {', '.join(accepted)}")
    if model == "easy-vqa":
        if split != "test":
            raise CommandError(f"--split {split}: easy-vqa has test questions only")
        for task in tasks:
            asked(model, task, n)


def asked(model: str, task: str, n: int, split: str = "test") -> list[Sample]:
    """The first `n` questions that an embedded model is asked of a task, always the same.

    Args:
        model: its name.
        task: of `tasks_of(model)`.
        n: how many.
        split: of the scenes.

    Raises:
        CommandError: easy-VQA is not installed, or has not as many.
    """
    if model == "qwen-pages":
        from . import page_tasks

        return page_tasks.samples(task, n, split)
    if model != "easy-vqa":
        return samples(task, n, minivlm.family(model).SIZES, split)
    from ..minivlm.easy_vqa.data import drawn, picture

    return [Sample((picture("test", number),), question) for question, number in drawn(task, n)]


def samples(task: str, n: int, sizes: Sequence[tuple[int, int]], split: str = "test") -> list[Sample]:
    """The first `n` questions of a task, always the same.

    Args:
        task: one of `TASKS`.
        n: how many.
        sizes: (height, width) of the images in pixels, used in turn.
        split: of the scenes: `"test"`, or `"validation"` for choosing hyper-parameters.
    """
    out: list[Sample] = []
    seed = SEEDS[split]
    while len(out) < n:
        height, width = sizes[len(out) % len(sizes)]
        scenes = tuple(draw_scene(seed + i, height, width) for i in range(2 if task == "pair" else 1))
        rng = np.random.default_rng((seed, 11))
        pool = _pool(task, len(out), scenes, rng)
        if pool:
            out.append(Sample(scenes, pool[rng.integers(len(pool))]))
        seed += len(scenes)
    return out


def _pool(task: str, turn: int, scenes: tuple[Scene, ...], rng: np.random.Generator) -> list[Question]:
    """The questions about scenes that have the type and the answer whose turn it is."""
    types, answers = TASKS[task], _BALANCED.get(task)
    questions = compare(*scenes) if task == "pair" else all_questions(scenes[0], rng)
    return [
        q
        for q in questions
        if q.type == types[turn % len(types)] and (answers is None or q.answer == answers[turn % len(answers)])
    ]
