"""Pictures to begin with, each with a question that the embedded models can answer."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from ..answers import held_out

_TYPES = ("shape", "count", "letter", "where", "colour", "exists")  # in this order, each about a different scene


@dataclass(frozen=True)
class Example:
    """A picture, a question about it and the right answer."""

    picture: Image.Image
    question: str
    answer: str


def examples() -> list[Example]:
    """One example of each type of question, about test scenes, which no training has seen."""
    samples, used, found = held_out(120), set(), []
    for kind in _TYPES:
        sample = next(s for s in samples if s.question.type == kind and id(s.scene) not in used)
        used.add(id(sample.scene))
        found.append(Example(Image.fromarray(sample.scene.image), sample.question.text, sample.question.answer))
    return found
