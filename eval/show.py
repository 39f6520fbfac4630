"""`tokenprune show`: images of the visual tokens that each policy keeps."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track

from ..patches import Record
from .answers import held_out
from .checkpoints import load_checkpoint
from .files import check_file, picture_suffixes
from .images import open_image
from .machine import pick_device, pick_dtype
from .pictures import TALLEST, dim, fitted, kept_indices, kept_masks, model_crop
from .setting import PruningSetting, settings_grid

_WIDTH = 640  # of an image, pixels
_QUESTION = "Describe the picture."


@dataclass(frozen=True)
class Panel:
    """One image under one setting.

    Attributes:
        title: the setting, and how many tokens it kept.
        picture: uint8 (height, width, 3), dark where tokens were dropped.
        answer: the model's.
    """

    title: str
    picture: np.ndarray
    answer: str


@torch.inference_mode()
def panel(
    model: Any,
    processor: Any,
    image: Image.Image,
    question: str,
    setting: PruningSetting,
    new_tokens: int,
) -> Panel:
    """Ask a question about an image under a setting.

    Raises:
        ValueError: the family's token grid is unknown, so that kept tokens cannot be drawn.
    """
    message = {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}
    inputs = processor.apply_chat_template(
        [message], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device, model.dtype)
    with setting.context(model):
        tokens = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
        records = setting.records(model)
    answer = processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    picture = np.asarray(_enlarged(model_crop(image, processor)))
    if not records:
        return Panel(str(setting), picture, answer)
    record = records[0]
    title = f"{setting}: {len(kept_indices(record))} of {record.n_before}"
    return Panel(title, _dimmed(picture, record), answer)


def _enlarged(image: Image.Image) -> Image.Image:
    return image.resize(fitted(*image.size, _WIDTH), Image.Resampling.NEAREST)


def _dimmed(picture: np.ndarray, record: Record) -> np.ndarray:
    """The image once per token grid, side by side: a thumbnail and its mosaic of crops are two grids."""
    masks = kept_masks(record)
    if not masks:
        raise ValueError("how this image's tokens lie in the picture is unknown, so nothing can be drawn")
    return np.concatenate([dim(picture, np.any(mask, axis=0)) for mask in masks], axis=1)


def draw(path: Path, rows: Sequence[tuple[str, Sequence[Panel]]]) -> None:
    """Draw panels row by row into an image whose format follows from the path's suffix.

    Args:
        path: of the image.
        rows: the question and the panels of each row. The first panel's title is the question.
    """
    from matplotlib.figure import Figure

    columns = max(len(panels) for _, panels in rows)
    shape = rows[0][1][0].picture.shape
    height = 3.2 * min(TALLEST, shape[0] / shape[1]) + 0.7
    figure = Figure(figsize=(3.2 * columns, height * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (question, panels) in zip(axes, rows, strict=True):
        for ax in line:
            ax.axis("off")
        for ax, shown in zip(line, panels, strict=False):
            ax.imshow(shown.picture)
            title = question if ax is line[0] else shown.title
            ax.set_title(f"{_shortened(title)}\n{_shortened(shown.answer) or '(no answer)'}", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _shortened(text: str) -> str:
    return text if len(text) <= 48 else f"{text[:47]}…"


def rows(
    options: argparse.Namespace, policies: Sequence[str], keeps: Sequence[float | int], console: Console
) -> list[tuple[str, list[Panel]]]:
    """Per image and keep ratio: the question, and the panels of the full model and of each policy.

    Args:
        options: of the command line: `image`, `question`, `model`, `device`, `positions` and `new_tokens` are read.
        policies: names; `A+B` composes.
        keeps: keep ratios or numbers of tokens.
        console: shows the progress.
    """
    device = pick_device(options.device)
    if options.image:
        questions = [(open_image(path), options.question or _QUESTION) for path in options.image]
    else:
        samples = [held_out(16)[i] for i in (0, 7, 15)]  # of several types, each about a different image
        questions = [(Image.fromarray(s.scene.image), options.question or s.question.text) for s in samples]
    model, processor = load_checkpoint(options.model, pick_dtype(None, device), device)
    found = []
    for image, question in track(questions, "looking", console=console, transient=True):
        full = panel(model, processor, image, question, PruningSetting(), options.new_tokens)
        for keep in keeps:
            settings = settings_grid(policies, [keep], options.positions, full=False)
            pruned = [panel(model, processor, image, question, each, options.new_tokens) for each in settings]
            found.append((question, [full, *pruned]))
    return found


def run(options: argparse.Namespace, console: Console) -> None:
    """Draw what the policies keep, and print where."""
    check_file(options.out, "--out", picture_suffixes())
    draw(options.out, rows(options, options.policy, options.keep, console))
    console.print(f"Picture: {options.out}", highlight=False, soft_wrap=True)
