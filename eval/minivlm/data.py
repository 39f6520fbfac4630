"""Encoded training scenes: pictures, patch labels, and questions as token ids."""

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
IGNORE = -100
_MORE = {"table": 4, "relation": 3, "where": 2, "exists": 4}
ABSENT = len(ROWS) * len(COLUMNS)  # instead of a cell of the raster, for a shape that is not there


def split(text: str) -> list[str]:
    """The words of a question or an answer, as the tokenizer splits it."""
    return text.replace("?", " ?").split()


def encode(text: str, ids: dict[str, int]) -> list[int]:
    """What the tokenizer makes of a question or an answer."""
    return [ids[word] for word in split(text)]


def encode_question(family: ModuleType, text: str, answer: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a question with its answer, and the same with only the answer left, (QA_LEN,) each."""
    asked = encode(text, family.IDS) + family.framing(0, 0, 0)[1]
    told = [*encode(answer, family.IDS), family.IDS[family.END]]
    ids = np.zeros(QA_LEN, np.int16)
    targets = np.full(QA_LEN, IGNORE, np.int16)
    ids[: len(asked) + len(told)] = asked + told
    targets[len(asked) : len(asked) + len(told)] = told
    return ids, targets


def shapes_named(text: str, scene: Scene) -> np.ndarray:
    """Of up to two shapes that a question names, (2, 2): position of the name's last word, and its cell; or -1."""
    cells = {(s.colour, s.kind): s.cell for s in scene.shapes}
    named = [
        (i + 1, cells.get((colour, kind), ABSENT))
        for i, (colour, kind) in enumerate(itertools.pairwise(split(text)))
        if colour in COLOUR_NAMES and kind in SHAPES
    ]
    return np.array([*named, (-1, -1), (-1, -1)][:2], np.int8)


@dataclass
class Data:
    """Scenes of one size, encoded."""

    images: Tensor  # (n, H, W, 3) uint8
    labels: Tensor  # (n, 5, H / 8 * W / 8) int8: `drawing.LABELS`
    ids: Tensor  # (n, QUESTIONS_PER_IMAGE, QA_LEN) int16
    targets: Tensor  # likewise, IGNORE where there is no loss
    types: Tensor  # (n, QUESTIONS_PER_IMAGE) int8, index into TYPES, -1 for an empty slot
    named: Tensor  # (n, QUESTIONS_PER_IMAGE, 2, 2) int8: `shapes_named`
    contents: Tensor  # (n, n_contents) uint8: what the picture holds
    kinds: Tensor  # (n, 6) bool: which kinds of shape

    @property
    def size(self) -> tuple[int, int]:
        return self.images.shape[1], self.images.shape[2]


#: Shapes, tiles, letters of the sign, rows of the table, the dot: what each is told apart by.
_CONTENTS = (
    (len(COLOUR_NAMES), len(SHAPES)),
    (len(COLOUR_NAMES), len(LETTERS)),
    (WORD_LENGTH, len(LETTERS)),
    (len(LETTERS), len(DIGITS)),
    (len(COLOUR_NAMES),),
)
N_CONTENTS = sum(map(math.prod, _CONTENTS))


def contents(scene: Scene) -> np.ndarray:
    """What a picture holds: shapes, tiles, letters of the sign by slot, rows of the table, the dot."""
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
    family = importlib.import_module(name)  # a module does not travel to another process
    scene = draw_scene(seed, height, width, alike)
    # What is learnt last is asked most: what tells the rows of a table apart, places, and what is there.
    more = [q for kind, n in _MORE.items() for q in ask(scene, seed, n, (kind,))]
    asked = list(dict.fromkeys([*ask(scene, seed, len(QUESTION_TYPES)), *more]))[:QUESTIONS_PER_IMAGE]
    ids = np.zeros((QUESTIONS_PER_IMAGE, QA_LEN), np.int16)
    targets = np.full_like(ids, IGNORE)
    types = np.full(QUESTIONS_PER_IMAGE, -1, np.int8)
    named = np.full((QUESTIONS_PER_IMAGE, 2, 2), -1, np.int8)
    for i, q in enumerate(asked):
        ids[i], targets[i] = encode_question(family, q.text, q.answer)
        types[i] = TYPES.index(q.type)
        named[i] = shapes_named(q.text, scene)
    kinds = np.isin(SHAPES, [s.kind for s in scene.shapes])
    labels = scene.labels.reshape(len(scene.labels), -1)
    return scene.image, labels, ids, targets, types, named, contents(scene), kinds


def make_data(family: ModuleType, split: str, n: int, workers: int = 2) -> list[Data]:
    """Draw and encode the first `n` scenes of a split, dealt out over the family's sizes."""
    out = []
    for k, size in enumerate(family.SIZES):
        seeds = range(SEEDS[split] + k, SEEDS[split] + n, len(family.SIZES))
        with ProcessPoolExecutor(workers) as pool:
            # Every other scene to train on has shapes alike: of others, colour alone names most.
            jobs = [(family.__name__, seed, *size, split == "train" and i % 2 == 1) for i, seed in enumerate(seeds)]
            drawn = pool.map(_encode, jobs, chunksize=64)
            rows = list(tqdm(drawn, total=len(jobs), desc=f"drawing {split} {size[0]}x{size[1]}"))
        out.append(Data(*(torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))))
    return out


def batches(data: list[Data], size: int, generator: torch.Generator) -> Iterator[tuple[int, Tensor]]:
    """For ever: the number of a size, and indices of scenes of that size."""
    while True:
        rounds = []
        for k, part in enumerate(data):
            n = len(part.images)
            rounds += [(k, i) for i in torch.randperm(n, generator=generator)[: n // size * size].view(-1, size)]
        for i in torch.randperm(len(rounds), generator=generator).tolist():
            yield rounds[i]


def pair_questions(family: ModuleType, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and targets of the questions about pairs of pictures, one for each kind of shape.

    Args:
        family: the model family.
        first: bool (B, 6), kinds of shape on the first picture of each pair.
        second: likewise.
    """
    asked = _pair_table(family)[range(len(SHAPES)), first.int(), second.int()]
    return asked[..., 0, :], asked[..., 1, :]


@functools.cache
def _pair_table(family: ModuleType) -> Tensor:
    """Ids and targets of every question about a pair and its answer: (kind, in first, in second, 2, QA_LEN)."""
    table = [
        [[encode_question(family, ask_pair(kind), pair_answer(a, b)) for b in (False, True)] for a in (False, True)]
        for kind in SHAPES
    ]
    return torch.from_numpy(np.array(table))
