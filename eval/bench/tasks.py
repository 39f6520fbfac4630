"""The tasks: held-out questions about test scenes, one per scene or pair of scenes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..asking import Sample
from ..minivlm.questions import Question, all_questions, compare
from ..minivlm.scenes import SEEDS, Scene, draw_scene

#: Types of questions in each task; they take turns.
TASKS = {
    "attribute": ("colour", "shape"),
    "existence": ("exists",),
    "counting": ("count",),
    "spatial": ("where", "relation"),
    "letter": ("letter",),
    "word": ("word",),
    "table": ("table",),
    "pair": ("pair",),
    "small": ("small",),
}
#: What stands for all of them together.
ALL = "all"
#: Answers that take turns, so that none can be guessed.
_BALANCED = {"existence": ("yes", "no"), "pair": ("first", "second", "both", "neither")}


def samples(task: str, n: int, sizes: Sequence[tuple[int, int]], split: str = "test") -> list[Sample]:
    """The first `n` questions of a task, always the same.

    Args:
        task: one of `TASKS`.
        n: how many.
        sizes: height and width of the pictures in pixels, which take turns.
        split: of the scenes, `"test"` or `"validation"`, which is for choosing hyper-parameters.
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
    """What of a task can be asked about some scenes when it is this turn's."""
    types, answers = TASKS[task], _BALANCED.get(task)
    asked = compare(*scenes) if task == "pair" else all_questions(scenes[0], rng)
    return [
        q
        for q in asked
        if q.type == types[turn % len(types)] and (answers is None or q.answer == answers[turn % len(answers)])
    ]
