"""`tokenprune show`: images of the visual tokens that each policy keeps."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import track

from . import minivlm
from .answers import Sample, held_out
from .checkpoints import load_checkpoint
from .files import check_file, picture_suffixes, write_json
from .images import open_image
from .machine import pick_device, pick_dtype
from .panel_sheet import draw
from .panels import Panel, Question, Viewer
from .pictures import kept_indices
from .reachable import reachable
from .setting import FULL, PruningSetting, settings_grid

__all__ = ["Panel", "Question", "Viewer", "as_json", "draw", "look", "rows", "run"]

_QUESTION = "Describe the picture."


def _questions(options: argparse.Namespace) -> list[Question]:
    """The pictures and questions that the options name, or drawn scenes. Their right answers are known to us, and to
    embedded models also how they are worded."""
    if options.image:
        text = options.question or _QUESTION
        return [Question(open_image(path), text, source=path) for path in options.image]
    samples = _samples(options.model)
    known = options.question is None and options.model in minivlm.EMBEDDED
    kind = "page" if minivlm.reads_pages(options.model) else "scene"
    return [
        Question(
            Image.fromarray(sample.scene.image),
            options.question or sample.question.text,
            sample.question.answer if known else None,
            f"{kind} {i}",
        )
        for i, sample in enumerate(samples)
    ]


def _samples(model: str) -> list[Sample]:
    """Questions of several types that an embedded model can answer, each about a different image."""
    if minivlm.reads_pages(model):
        from .bench.page_tasks import samples

        return [samples(task, 3)[i] for i, task in enumerate(("heading", "table", "button"))]
    return [held_out(16)[i] for i in (0, 7, 15)]


def rows(
    options: argparse.Namespace, policies: Sequence[str], keeps: Sequence[float | int], console: Console
) -> list[tuple[str, list[Panel]]]:
    """Per image: the question, and the panels of the full model and of each policy at each keep ratio.

    Args:
        options: of the command line: `image`, `question`, `model`, `device`, `positions` and `new_tokens` are read.
        policies: names; `A+B` composes.
        keeps: keep ratios or numbers of tokens.
        console: shows the progress.
    """
    return [(question.text, panels) for question, panels in look(options, policies, keeps, console)]


def look(
    options: argparse.Namespace, policies: Sequence[str], keeps: Sequence[float | int], console: Console
) -> list[tuple[Question, list[Panel]]]:
    """As `rows`, with all that is known of a question."""
    device = pick_device(options.device)
    questions = _questions(options)
    model, processor = load_checkpoint(options.model, pick_dtype(None, device), device)
    viewer = Viewer(model, processor, options.new_tokens)
    settings = [PruningSetting()]
    settings += [each for keep in keeps for each in settings_grid(policies, [keep], options.positions, full=False)]
    settings = list(reachable(model, settings, lambda reason: console.print(reason, highlight=False, soft_wrap=True)))
    return [
        (question, [viewer.look(question, setting) for setting in settings])
        for question in track(questions, "looking", console=console, transient=True)
    ]


def as_json(found: Sequence[tuple[Question, Sequence[Panel]]]) -> list[dict[str, Any]]:
    """What a picture of `look` shows, as JSON values.

    Args:
        found: of `look`.

    Returns:
        Per picture and setting, the full model first:

        - `image`: its file, or `scene N`; `question`
        - `policy` (`full` for the full model), `keep` (1.0 for the full model)
        - `answer`; `expected`, the right answer; `correct`. The latter two are None where that is unknown.
        - `tokens_before`, `tokens_after` (what the last decoder layer holds), `tokens_mean` (over decoder layers)
        - `tokens_by_stage`: how many were left after each stage at which some could leave; None for the full model
        - `indices` of what the last layer holds; `merged`, those that were merged with dropped tokens
        - `grids`: [T, H, W] of each of the image's rasters; None for the full model
    """
    return [_values(question, panel) for question, panels in found for panel in panels]


def _values(question: Question, panel: Panel) -> dict[str, Any]:
    record = panel.record
    kept = list(range(panel.n_before)) if record is None else kept_indices(record)
    return {
        "image": question.source,
        "question": question.text,
        "policy": FULL if panel.setting.is_full else panel.setting.name,
        "keep": panel.setting.keep,
        "answer": panel.answer,
        "expected": panel.expected,
        "correct": panel.correct,
        "tokens_before": panel.n_before,
        "tokens_after": len(kept),
        "tokens_mean": panel.mean,
        "tokens_by_stage": None if record is None else record.n_by_stage,
        "indices": kept,
        "merged": list(panel.merged),
        "grids": None if record is None or record.grids is None else [list(grid) for grid in record.grids],
    }


def run(options: argparse.Namespace, console: Console) -> None:
    """Draw what the policies keep, print where, and write it as JSON if a file is named for that."""
    check_file(options.out, "--out", picture_suffixes())
    check_file(getattr(options, "json", None), "--json")
    found = look(options, options.policy, options.keep, console)
    draw(options.out, [(question.text, panels) for question, panels in found])
    console.print(f"Picture: {options.out}", highlight=False, soft_wrap=True)
    json_file = getattr(options, "json", None)
    if json_file is not None:
        write_json(json_file, as_json(found))
