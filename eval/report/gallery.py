"""Pictures of kept tokens in the report."""

from __future__ import annotations

import argparse
import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from rich.console import Console

from ..panels import Legend, Panel, legend
from ..pictures import fitted

_WIDTH = 320  # of a picture, pixels


@dataclass(frozen=True)
class Gallery:
    """Pictures under several settings.

    Attributes:
        model: that was asked.
        legend: what brightness, frames and marks mean.
        blocks: per picture and keep ratio.
    """

    model: str
    legend: Legend
    blocks: list[Block]


@dataclass(frozen=True)
class Block:
    """One picture and one question.

    Attributes:
        question: the whole question.
        expected: the right answer; None if it is unknown.
        shown: per setting, the full model first.
    """

    question: str
    expected: str | None
    shown: list[Shown]


@dataclass(frozen=True)
class Shown:
    """A picture under a setting, as a data URI."""

    source: str
    panel: Panel


def gallery(options: argparse.Namespace, policies: Sequence[str], keeps: Sequence[float | int]) -> Gallery:
    """Ask a model about pictures, under the full model and under every policy at every keep ratio.

    Args:
        options: of the command line, as `show.rows` reads them.
        policies: names; `A+B` composes.
        keeps: keep ratios or numbers of tokens.
    """
    from .. import show

    rows = show.rows(options, policies, keeps, Console(quiet=True))
    blocks = [
        Block(question, panels[0].expected, [Shown(_png(panel.picture), panel) for panel in panels])
        for question, panels in rows
    ]
    return Gallery(options.model, legend([panel for _, panels in rows for panel in panels]), blocks)


def _png(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    image = Image.fromarray(picture)
    image.resize(fitted(*image.size, _WIDTH)).save(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
