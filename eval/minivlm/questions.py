"""Questions about a scene, each with one right answer, and the vocabulary they are written in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .scenes import COLOUR_NAMES, COLUMNS, LETTERS, ROWS, SHAPES, Scene, cell_name

QUESTION_TYPES = ("exists", "colour", "shape", "where", "count", "letter")


@dataclass(frozen=True)
class Question:
    type: str
    text: str
    answer: str


def _unique(values: Iterable[str]) -> set[str]:
    """The values that occur exactly once."""
    values = list(values)
    return {v for v in values if values.count(v) == 1}


def all_questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Every unambiguous question a scene allows; yes/no questions in balanced pairs."""
    shapes = scene.shapes
    present = {(s.colour, s.kind) for s in shapes}
    out = [Question("count", "How many shapes are there?", str(len(shapes)))]
    lone_kinds, lone_colours = _unique(s.kind for s in shapes), _unique(s.colour for s in shapes)
    for s in shapes:
        name = f"{s.colour} {s.kind}"
        out.append(Question("where", f"Where is the {name}?", cell_name(s.cell)))
        out.append(Question("exists", f"Is there a {name}?", "yes"))
        out.append(Question("exists", f"Is there a {_absent(s.colour, s.kind, present, rng)}?", "no"))
        if s.kind in lone_kinds:
            out.append(Question("colour", f"What colour is the {s.kind}?", s.colour))
        if s.colour in lone_colours:
            out.append(Question("shape", f"What shape is {s.colour}?", s.kind))
    for t in scene.tiles:
        out.append(Question("letter", f"Which letter is on the {t.colour} tile?", t.letter))
    return out


def _absent(colour: str, kind: str, present: set, rng: np.random.Generator) -> str:
    """An absent colour-shape pair, mostly sharing one half with a present one: a hard negative."""
    while True:
        draw = rng.random()
        other_colour = COLOUR_NAMES[rng.integers(len(COLOUR_NAMES))] if draw < 0.6 else colour
        other_kind = SHAPES[rng.integers(len(SHAPES))] if draw >= 0.4 else kind
        if (other_colour, other_kind) not in present:
            return f"{other_colour} {other_kind}"


def ask(scene: Scene, seed: int, n: int = 6) -> list[Question]:
    """`n` questions about a scene: one of each type it allows first, then more of any type.

    Fewer than `n` are returned when the scene has no more to ask.
    """
    rng = np.random.default_rng((seed, 7))
    pool = all_questions(scene, rng)
    pool = [pool[i] for i in rng.permutation(len(pool))]
    first: dict[str, Question] = {}
    rest = [q for q in pool if first.setdefault(q.type, q) is not q]
    order = [first[t] for t in QUESTION_TYPES if t in first]
    return (order + rest)[:n]


SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
VOCABULARY = (
    SPECIAL
    + ("USER", "ASSISTANT", ":", "?", "yes", "no", "1", "2", "3", "4")
    + ("What", "Where", "Which", "How", "Is", "is", "are", "there", "the", "a", "on", "many")
    + ("colour", "shape", "shapes", "letter", "tile")
    + SHAPES
    + COLOUR_NAMES
    + LETTERS
    + ROWS
    + COLUMNS
)
TOKEN_ID = {word: i for i, word in enumerate(VOCABULARY)}
