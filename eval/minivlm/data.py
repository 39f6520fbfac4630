"""Encoded training scenes: images, patch labels, and questions as token ids."""

from __future__ import annotations

import functools
import importlib
import itertools
import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from .drawing import COLOUR_NAMES, DIGITS, LETTERS, SHAPES, WORD_LENGTH
from .questions import PAIR, QUESTION_TYPES, ask, ask_pair, pair_answer
from .scenes import COLUMNS, ROWS, SEEDS, Scene, draw_scene

TYPES = (*QUESTION_TYPES, PAIR)
QUESTIONS_PER_IMAGE = 16
QA_LEN = 15  # longest question with its answer, in tokens
IGNORE = -100  # target without a loss
_MORE = {"table": 4, "relation": 3, "where": 2, "exists": 4}  # additional questions by type
ABSENT = len(ROWS) * len(COLUMNS)  # the cell of a shape that is absent


def split(text: str) -> list[str]:
    """The words of a question or an answer, split as by the tokenizer."""
    return text.replace("?", " ?").replace(".", " .").split()


def encode(text: str, ids: dict[str, int]) -> list[int]:
    """Token ids of a question or an answer."""
    return [ids[word] for word in split(text)]


def encode_question(family: ModuleType, text: str, answer: str, length: int = QA_LEN) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of a question with its answer, and targets, those of the answer and `IGNORE` elsewhere.

    Args:
        family: module of the embedded model.
        text: of the question.
        answer: its answer.
        length: of the arrays; what is left of it is filled up.

    Returns:
        int16 (length,) each.
    """
    question_ids = encode(text, family.IDS) + family.framing(0, 0, 0)[1]
    answer_ids = [*encode(answer, family.IDS), family.IDS[family.END]]
    ids = np.zeros(length, np.int16)
    targets = np.full(length, IGNORE, np.int16)
    start, end = len(question_ids), len(question_ids) + len(answer_ids)
    ids[:end] = question_ids + answer_ids
    targets[start:end] = answer_ids
    return ids, targets


def shapes_named(text: str, scene: Scene) -> np.ndarray:
    """The shapes that a question names, int8 (2, 2).

    Per shape, the index of its name's last word in the question, and its cell; -1 for both where there is none.
    """
    cells = {(s.colour, s.kind): s.cell for s in scene.shapes}
    named = [
        (i + 1, cells.get((colour, kind), ABSENT))
        for i, (colour, kind) in enumerate(itertools.pairwise(split(text)))
        if colour in COLOUR_NAMES and kind in SHAPES
    ]
    return np.array([*named, (-1, -1), (-1, -1)][:2], np.int8)


@dataclass
class Data:
    """Encoded scenes of one image size."""

    images: Tensor  # (n, H, W, 3) uint8
    labels: Tensor  # (n, 5, H / 8 * W / 8) int8: `drawing.LABELS`
    ids: Tensor  # (n, QUESTIONS_PER_IMAGE, QA_LEN) int16
    targets: Tensor  # likewise, IGNORE without a loss
    types: Tensor  # (n, QUESTIONS_PER_IMAGE) int8, index into TYPES, -1 for an empty slot
    named: Tensor  # (n, QUESTIONS_PER_IMAGE, 2, 2) int8: `shapes_named`
    contents: Tensor  # (n, N_CONTENTS) uint8: `contents`
    kinds: Tensor  # (n, 6) bool: kinds of shape in the image

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return self.images.shape[1], self.images.shape[2]


#: Attributes that identify each object: shapes, tiles, letters of the sign, rows of the table, the dot.
_CONTENTS = (
    (len(COLOUR_NAMES), len(SHAPES)),
    (len(COLOUR_NAMES), len(LETTERS)),
    (WORD_LENGTH, len(LETTERS)),
    (len(LETTERS), len(DIGITS)),
    (len(COLOUR_NAMES),),
)
N_CONTENTS = sum(map(math.prod, _CONTENTS))


def contents(scene: Scene) -> np.ndarray:
    """The objects of an image, uint8 (N_CONTENTS,) of 0 and 1: shapes, tiles, letters of the sign by slot, rows of the
    table, the dot."""
    parts = [np.zeros(shape, np.uint8) for shape in _CONTENTS]
    shapes, tiles, word, table, dot = parts
    for s in scene.shapes:
        shapes[COLOUR_NAMES.index(s.colour), SHAPES.index(s.kind)] = 1
    for t in scene.tiles:
        tiles[COLOUR_NAMES.index(t.colour), LETTERS.index(t.letter)] = 1
    for slot, letter in enumerate(scene.word):
        word[slot, LETTERS.index(letter)] = 1
    for key, value in scene.table:
        table[LETTERS.index(key), DIGITS.index(value)] = 1
    if scene.dot:
        dot[COLOUR_NAMES.index(scene.dot)] = 1
    return np.concatenate([part.ravel() for part in parts])


def _encode(job: tuple[str, int, int, int, bool]) -> tuple[np.ndarray, ...]:
    name, seed, height, width, alike = job
    family = importlib.import_module(name)  # modules cannot be pickled
    scene = draw_scene(seed, height, width, alike)
    # More questions of the types that are learnt last.
    more = [q for kind, n in _MORE.items() for q in ask(scene, seed, n, (kind,))]
    questions = list(dict.fromkeys([*ask(scene, seed, len(QUESTION_TYPES)), *more]))[:QUESTIONS_PER_IMAGE]
    ids = np.zeros((QUESTIONS_PER_IMAGE, QA_LEN), np.int16)
    targets = np.full_like(ids, IGNORE)
    types = np.full(QUESTIONS_PER_IMAGE, -1, np.int8)
    named = np.full((QUESTIONS_PER_IMAGE, 2, 2), -1, np.int8)
    for i, q in enumerate(questions):
        ids[i], targets[i] = encode_question(family, q.text, q.answer)
        types[i] = TYPES.index(q.type)
        named[i] = shapes_named(q.text, scene)
    kinds = np.isin(SHAPES, [s.kind for s in scene.shapes])
    labels = scene.labels.reshape(len(scene.labels), -1)
    return scene.image, labels, ids, targets, types, named, contents(scene), kinds


def make_data(family: ModuleType, split: str, n: int, workers: int = 2) -> list[Data]:
    """Draw and encode the first `n` scenes of a split.

    Args:
        family: module of the embedded model.
        split: of `SEEDS`.
        n: scenes, whose image sizes are the family's in turn.
        workers: processes that draw.

    Returns:
        The scenes of each size.
    """
    out = []
    for k, size in enumerate(family.SIZES):
        seeds = range(SEEDS[split] + k, SEEDS[split] + n, len(family.SIZES))
        with ProcessPoolExecutor(workers) as pool:
            # Every other training scene has similar shapes; in the rest the colour alone identifies most of them.
            jobs = [(family.__name__, seed, *size, split == "train" and i % 2 == 1) for i, seed in enumerate(seeds)]
            drawn = pool.map(_encode, jobs, chunksize=64)
            rows = list(tqdm(drawn, total=len(jobs), desc=f"drawing {split} {size[0]}x{size[1]}"))
        out.append(Data(*(torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))))
    return out


def batches(data: list[Data], size: int, generator: torch.Generator) -> Iterator[tuple[int, Tensor]]:
    """Batches without end: the index of a size in `data`, and indices (size,) of scenes of that size."""
    while True:
        rounds = []
        for k, part in enumerate(data):
            n = len(part.images)
            rounds += [(k, i) for i in torch.randperm(n, generator=generator)[: n // size * size].view(-1, size)]
        for i in torch.randperm(len(rounds), generator=generator).tolist():
            yield rounds[i]


def pair_questions(family: ModuleType, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids and targets of the questions about pairs of images, one for each kind of shape: (B, 6, QA_LEN) each.

    Args:
        family: module of the embedded model.
        first: bool (B, 6), kinds of shape in the first image of each pair.
        second: likewise, in the second.
    """
    pairs = _pair_table(family)[range(len(SHAPES)), first.int(), second.int()]
    return pairs[..., 0, :], pairs[..., 1, :]


@functools.cache
def _pair_table(family: ModuleType) -> Tensor:
    """Token ids and targets of every question about a pair with its answer: (kind, in first, in second, 2, QA_LEN)."""
    table = [
        [[encode_question(family, ask_pair(kind), pair_answer(a, b)) for b in (False, True)] for a in (False, True)]
        for kind in SHAPES
    ]
    return torch.from_numpy(np.array(table))
