"""The words of questions about pages and short videos and of descriptions, behind those of scenes."""

from __future__ import annotations

from ..questions import WORDS as OF_SCENES

WORDS = (
    *OF_SCENES,
    *(
        ".",
        "heading",
        "button",
        "buttons",
        "panel",
        "In",
        "which",
        "frame",
        "appear",
        "way",
        "move",
        "up",
        "down",
        "stays",
    ),
    *("Describe", "and"),
)
assert len(set(WORDS)) == len(WORDS)
