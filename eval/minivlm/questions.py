"""Questions about one scene or two, each with one right answer, and their vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .drawing import CHARACTERS, COLOUR_NAMES, SHAPES
from .scenes import COLUMNS, ROWS, Scene, Shape, cell_name

#: Types of questions about one image.
QUESTION_TYPES = ("exists", "colour", "shape", "where", "relation", "count", "letter", "word", "table", "small")
#: The type of questions about two images.
PAIR = "pair"


@dataclass(frozen=True)
class Question:
    """A question of a type, and its one right answer."""

    type: str
    text: str
    answer: str


def _unique(values: Iterable[str]) -> set[str]:
    """The values that occur exactly once."""
    values = list(values)
    return {v for v in values if values.count(v) == 1}


def _relation(a: Shape, b: Shape) -> str | None:
    """Where `a` is relative to `b`, along the axis on which they are further apart; None if they are equal."""
    down, right = a.cell // 3 - b.cell // 3, a.cell % 3 - b.cell % 3
    if abs(down) == abs(right):
        return None
    if abs(down) > abs(right):
        return "below" if down > 0 else "above"
    return "right" if right > 0 else "left"


def all_questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Every question that has one right answer about a scene; questions for yes and no in equal number."""
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
        for other in shapes:
            relation = _relation(s, other)
            if relation is not None:
                text = f"Where is the {name} from the {other.colour} {other.kind}?"
                out.append(Question("relation", text, relation))
    for t in scene.tiles:
        out.append(Question("letter", f"Which letter is on the {t.colour} tile?", t.letter))
    if scene.word:
        out.append(Question("word", "What does the sign say?", " ".join(scene.word)))
    for key, value in scene.table:
        out.append(Question("table", f"What is the value of {key}?", value))
    if scene.dot:
        out.append(Question("small", "What colour is the dot?", scene.dot))
    return out


def _absent(colour: str, kind: str, present: set[tuple[str, str]], rng: np.random.Generator) -> str:
    """Draw a pair of colour and shape that is absent, and mostly shares one of them with a shape that is present."""
    while True:
        draw = rng.random()
        other_colour = COLOUR_NAMES[rng.integers(len(COLOUR_NAMES))] if draw < 0.6 else colour
        other_kind = SHAPES[rng.integers(len(SHAPES))] if draw >= 0.4 else kind
        if (other_colour, other_kind) not in present:
            return f"{other_colour} {other_kind}"


def ask(scene: Scene, seed: int, n: int = 6, types: Sequence[str] = QUESTION_TYPES) -> list[Question]:
    """Draw up to `n` questions of some types about a scene: first one of each type, then others.

    Args:
        scene: what the questions are about.
        seed: of the draw.
        n: how many; fewer if the scene allows no more.
        types: of `QUESTION_TYPES`.
    """
    rng = np.random.default_rng((seed, 7))
    pool = [q for q in all_questions(scene, rng) if q.type in types]
    pool = [pool[i] for i in rng.permutation(len(pool))]
    first: dict[str, Question] = {}
    rest = [q for q in pool if first.setdefault(q.type, q) is not q]
    return (list(first.values()) + rest)[:n]


def ask_pair(kind: str) -> str:
    """The question about two images for a kind of shape."""
    return f"Which picture has a {kind}?"


def pair_answer(in_first: bool, in_second: bool) -> str:
    """The answer to `ask_pair`, from whether each image has the shape."""
    return {(True, False): "first", (False, True): "second", (True, True): "both"}.get((in_first, in_second), "neither")


def compare(first: Scene, second: Scene) -> list[Question]:
    """The questions about two scenes, one for every kind of shape."""
    one, two = ({s.kind for s in scene.shapes} for scene in (first, second))
    return [Question(PAIR, ask_pair(kind), pair_answer(kind in one, kind in two)) for kind in SHAPES]


#: Words of questions and answers. In a model's vocabulary they follow its special tokens.
WORDS = (
    ("?", "yes", "no", "What", "Where", "Which", "How", "Is", "is", "are", "there", "the", "a", "of", "on", "from")
    + ("does", "has", "many", "say", "colour", "shape", "shapes", "letter", "tile", "sign", "value", "dot", "picture")
    + ("first", "second", "both", "neither", "above", "below")
    + SHAPES
    + COLOUR_NAMES
    + CHARACTERS
    + ROWS
    + COLUMNS
)
assert len(set(WORDS)) == len(WORDS)
