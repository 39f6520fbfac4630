"""Pictures to begin with, each with a question that the embedded models can answer."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from .. import minivlm
from ..answers import Sample, held_out

_TYPES = ("shape", "count", "letter", "where", "colour", "exists")  # in this order, each about a different scene
_PAGE_TYPES = ("heading", "table", "button", "counting", "panel", "spatial")


@dataclass(frozen=True)
class Example:
    """A picture, a question about it and the right answer."""

    picture: Image.Image
    question: str
    answer: str


def examples(model: str = "embedded") -> list[Example]:
    """One example of each type of question, about test pictures, which no training has seen.

    Args:
        model: its name; the embedded model for pages has pages, all others scenes.
    """
    if minivlm.reads_pages(model):
        from ..bench.page_tasks import samples as asked

        pages = [asked(task, i + 1)[i] for i, task in enumerate(_PAGE_TYPES)]  # each about a different page
        return [_example(sample) for sample in pages]
    samples, used, found = held_out(120), set(), []
    for kind in _TYPES:
        sample = next(s for s in samples if s.question.type == kind and id(s.scene) not in used)
        used.add(id(sample.scene))
        found.append(_example(sample))
    return found


def _example(sample: Sample) -> Example:
    return Example(Image.fromarray(sample.scene.image), sample.question.text, sample.question.answer)
