"""Encoded training batches: pages, short videos and scenes, drawn when they are needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .. import qwen_pages
from ..data import IGNORE, QA_LEN, encode_question
from ..questions import Question
from ..scenes import SEEDS, SIZE, draw_scene
from . import MOST_WORDS, clips
from .clips import draw_clip
from .pages import SIDE, draw_page
from .questions import DESCRIBE, TYPES, clip_questions, describe, page_questions

Kind = Literal["page", "clip", "scene"]
#: Height and width in pixels, for short videos the number of frames before them.
SIZES: dict[Kind, tuple[int, ...]] = {
    "page": (SIDE, SIDE),
    "clip": (clips.FRAMES, clips.SIDE, clips.SIDE),
    "scene": (SIZE, SIZE),
}
#: Questions of one sequence: a page may have more.
QUESTIONS: dict[Kind, int] = {"page": 12, "clip": 3, "scene": 1}
#: Longest question with its answer, in tokens.
LENGTHS: dict[Kind, int] = {
    "page": QA_LEN,
    "clip": QA_LEN,
    "scene": MOST_WORDS + len(DESCRIBE.replace(".", " .").split()) + 1,
}
_STREAM = 10_000_000  # seeds between those of the kinds of pictures, and of the stages of training


@dataclass(frozen=True)
class Batch:
    """Encoded pictures or videos of one kind, with questions. T is 1, and 4 for videos.

    Attributes:
        kind: what they are.
        images: uint8 (B * T, H, W, 3), and for videos (B * T, 2, H, W, 3).
        labels: int8 (B * T, 5, H / 8 * W / 8), those of `drawing.LABELS`.
        changes: int8 (B * T, H / 8 * W / 8), those of `Clip`; None without videos.
        ids: int16 (B, n_questions, length).
        targets: likewise, `IGNORE` without a loss.
        types: int8 (B, n_questions), index into `TYPES`, -1 for an empty slot.
    """

    kind: Kind
    images: Tensor
    labels: Tensor
    changes: Tensor | None
    ids: Tensor
    targets: Tensor
    types: Tensor


def _drawn(kind: Kind, seed: int) -> tuple[Any, list[Question]]:
    """A page, a short video or a scene, and its questions."""
    if kind == "page":
        page = draw_page(seed)
        return page, page_questions(page)
    if kind == "clip":
        clip = draw_clip(seed)
        return clip, clip_questions(clip)
    height, width = SIZES["scene"]
    scene = draw_scene(seed, height, width)
    return scene, [describe(scene)]


def make_batch(kind: Kind, split: str, first: int, n: int, stage: int = 0) -> Batch:
    """Draw and encode `n` pictures or videos.

    Args:
        kind: of what.
        split: of `scenes.SEEDS`.
        first: number of the first one within the split.
        n: how many.
        stage: of training; those of one are not those of another.
    """
    slots, length = QUESTIONS[kind], LENGTHS[kind]
    ids = np.zeros((n, slots, length), np.int16)
    targets = np.full_like(ids, IGNORE)
    types = np.full((n, slots), -1, np.int8)
    drawn = []
    for k in range(n):
        seed = SEEDS[split] + first + k + stage * _STREAM
        thing, questions = _drawn(kind, seed)
        drawn.append(thing)
        order = np.random.default_rng((seed, 9)).permutation(len(questions))[:slots]
        for slot, q in enumerate(questions[i] for i in order):
            ids[k, slot], targets[k, slot] = encode_question(qwen_pages, q.text, q.answer, length)
            types[k, slot] = TYPES.index(q.type)
    images = torch.from_numpy(np.stack([thing.image for thing in drawn]))
    labels = torch.from_numpy(np.stack([thing.labels for thing in drawn]))
    changes = None
    if kind == "clip":
        images = images.unflatten(1, (-1, clips.PAIR)).flatten(0, 1)
        labels = labels.flatten(0, 1)
        changes = torch.from_numpy(np.stack([thing.changes for thing in drawn])).flatten(0, 1).flatten(1)
    return Batch(kind, images, labels.flatten(2), changes, *map(torch.from_numpy, (ids, targets, types)))
