"""Pictures and questions of easy-VQA, read from the package `easy-vqa`."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import CommandError
from ..data import split
from ..questions import Question
from .words import COLOURS

#: Tasks, which are the kinds of questions.
TASKS = ("colour", "shape", "existence", "absence")
#: Right answers that a task's questions go through in turn, so that a constant guess scores no better than another.
BALANCED = {"existence": ("yes", "no"), "absence": ("yes", "no")}


@dataclass(frozen=True)
class Picture:
    """A picture of the data set: `image`, uint8 (64, 64, 3)."""

    image: np.ndarray


def kind(text: str, answer: str) -> str:
    """The task of a question: `existence` asks whether something is there, `absence` whether it is not."""
    words = split(text)
    if answer in ("yes", "no"):
        return "absence" if "no" in words or "not" in words else "existence"
    return "colour" if answer in COLOURS else "shape"


def folder() -> Path:
    """The folder of the data in the package.

    Raises:
        CommandError: the package is not installed.
    """
    found = find_spec("easy_vqa")
    if found is None or found.origin is None:
        raise CommandError("easy-VQA needs the package easy-vqa, which is not installed: pip install easy-vqa")
    return Path(found.origin).parent / "data"


@functools.cache
def questions(part: str) -> list[tuple[Question, int]]:
    """All questions of a part, `"train"` or `"test"`, each with the number of its picture."""
    rows = json.loads((folder() / part / "questions.json").read_text())
    return [(Question(kind(text, answer), text, answer), number) for text, answer, number in rows]


def picture(part: str, number: int) -> Picture:
    """A picture of a part, by its number."""
    return Picture(np.asarray(Image.open(folder() / part / "images" / f"{number}.png").convert("RGB")))


def drawn(task: str, n: int) -> list[tuple[Question, int]]:
    """The first `n` test questions of a task in a random order that is always the same, with numbers of pictures.

    Args:
        task: of `TASKS`.
        n: how many.

    Raises:
        CommandError: the package is not installed, or there are not as many.
    """
    answers: Sequence[str | None] = BALANCED.get(task, (None,))
    asked = [row for row in questions("test") if row[0].type == task]
    order = np.random.default_rng(TASKS.index(task)).permutation(len(asked))
    pools = [[asked[i] for i in order if answer in (None, asked[i][0].answer)] for answer in answers]
    most = len(answers) * min(map(len, pools))
    if n > most:
        raise CommandError(f"--samples {n}: of {task}, easy-VQA has {most} test questions")
    return [pools[i % len(pools)][i // len(pools)] for i in range(n)]
