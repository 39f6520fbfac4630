"""The tasks of the embedded model for pages: held-out questions, one per page, short video or scene."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..answers import Sample
from ..minivlm.questions import Question
from ..minivlm.qwen_pages.clips import DIRECTIONS, FRAMES, draw_clip
from ..minivlm.qwen_pages.pages import draw_page
from ..minivlm.qwen_pages.questions import CLIP_TYPES, clip_questions, describe, page_questions
from ..minivlm.scenes import SEEDS, draw_scene

#: Right answers that a task's questions go through in turn, so that a constant guess scores no better than another.
_BALANCED = {"motion": DIRECTIONS, "frame": tuple(map(str, range(1, FRAMES + 1)))}


def samples(task: str, n: int, split: str = "test") -> list[Sample]:
    """The first `n` questions of a task, always the same.

    Args:
        task: one of `PAGES`.
        n: how many.
        split: of the pages, short videos and scenes: `"test"`, or `"validation"` for choosing hyper-parameters.
    """
    out: list[Sample] = []
    seed, answers = SEEDS[split], _BALANCED.get(task)
    while len(out) < n:
        drawn, questions = _drawn(task, seed)
        wanted = None if answers is None else answers[len(out) % len(answers)]
        pool = [q for q in questions if q.type == task and wanted in (None, q.answer)]
        if pool:
            out.append(Sample((drawn,), pool[np.random.default_rng((seed, 11)).integers(len(pool))]))
        seed += 1
    return out


def _drawn(task: str, seed: int) -> tuple[Any, list[Question]]:
    """What a task's questions are about, and all questions about it."""
    if task == "caption":
        scene = draw_scene(seed)
        return scene, [describe(scene)]
    if task in CLIP_TYPES:
        clip = draw_clip(seed)
        return clip, clip_questions(clip)
    page = draw_page(seed)
    return page, page_questions(page)
