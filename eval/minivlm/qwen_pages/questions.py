"""Questions about pages and short videos, and descriptions of scenes, each with one right answer."""

from __future__ import annotations

from ..questions import Question
from ..scenes import Scene, cell_name
from .clips import Clip
from .pages import Page

DESCRIBE = "Describe the picture."

#: Types of questions about pages, about short videos, and for descriptions.
PAGE_TYPES = ("heading", "table", "button", "counting", "panel", "spatial", "small")
CLIP_TYPES = ("motion", "frame")
TYPES = (*PAGE_TYPES, *CLIP_TYPES, "caption")


def page_questions(page: Page) -> list[Question]:
    """Every question about a page."""
    out = [Question("counting", "How many buttons are there?", str(len(page.buttons)))]
    if page.heading:
        out.append(Question("heading", "What does the heading say?", " ".join(page.heading)))
    for key, value in page.table:
        out.append(Question("table", f"What is the value of {key}?", value))
    for button in page.buttons:
        out.append(Question("button", f"Which letter is on the {button.colour} button?", button.letter))
        out.append(Question("spatial", f"Where is the {button.colour} button?", cell_name(button.cell)))
    if page.panel:
        out.append(Question("panel", "What colour is the panel?", page.panel))
    if page.dot:
        out.append(Question("small", "What colour is the dot?", page.dot))
    return out


def clip_questions(clip: Clip) -> list[Question]:
    """Every question about a short video."""
    out = [Question("frame", "In which frame does the dot appear?", str(clip.appears))]
    for mover in clip.movers:
        out.append(Question("motion", f"Which way does the {mover.colour} {mover.kind} move?", mover.way))
    return out


def describe(scene: Scene) -> Question:
    """The question for a description: shapes and letter tiles with their places, in reading order."""
    things = [(s.cell, f"{s.colour} {s.kind} {cell_name(s.cell)}") for s in scene.shapes]
    things += [(t.cell, f"{t.colour} tile {t.letter} {cell_name(t.cell)}") for t in scene.tiles]
    return Question("caption", DESCRIBE, " and ".join(text for _, text in sorted(things)))
