"""`tokenprune show`: pictures of the tokens that each policy keeps."""

from __future__ import annotations

import argparse
import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from transformers.image_utils import load_image

from ..api import Positions, pruning, pruning_report
from ..patches import Record
from .asking import held_out
from .pictures import TALLEST, dim, fitted, kept_indices, kept_masks, seen
from .profile_report import checkpoint

_WIDTH = 640  # of a panel, pixels
_QUESTION = "Describe the picture."


@dataclass(frozen=True)
class Panel:
    """One picture under one setting."""

    title: str
    picture: np.ndarray
    answer: str


@torch.inference_mode()
def panel(
    model: Any,
    processor: Any,
    image: Image.Image,
    question: str,
    policy: str | None,
    keep: float | int,
    positions: Positions,
    new_tokens: int,
) -> Panel:
    """The answer, and the picture with its dropped tokens dark; the full model without a policy."""
    message = {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}
    inputs = processor.apply_chat_template(
        [message], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device, model.dtype)
    context = (
        contextlib.nullcontext() if policy is None else pruning(model, policy.split("+"), keep, positions=positions)
    )
    with context:
        tokens = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
        record = None if policy is None else pruning_report(model)[0]
    answer = processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    shown = np.asarray(_enlarged(seen(image, processor)))
    if record is None:
        return Panel("full", shown, answer)
    title = f"{policy} {keep:g}: {len(kept_indices(record))} of {record.n_before}"
    return Panel(title, _dimmed(shown, record), answer)


def _opened(path: Path) -> Image.Image:
    """A picture in RGB, turned as its EXIF orientation says."""
    with Image.open(path) as image:
        return load_image(image)


def _enlarged(image: Image.Image) -> Image.Image:
    return image.resize(fitted(*image.size, _WIDTH), Image.Resampling.NEAREST)


def _dimmed(picture: np.ndarray, record: Record) -> np.ndarray:
    """One picture per raster, side by side: a thumbnail and its mosaic of crops are seen twice."""
    masks = kept_masks(record)
    if not masks:
        raise ValueError("how this image's tokens lie in the picture is unknown, so nothing can be drawn")
    return np.concatenate([dim(picture, np.any(mask, axis=0)) for mask in masks], axis=1)


def draw(path: Path, rows: Sequence[tuple[str, Sequence[Panel]]]) -> None:
    """Panels as PNG (or whatever the path's suffix says), row by row; the first one is under its question."""
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
            ax.set_title(f"{_short(title)}\n{_short(shown.answer) or '(no answer)'}", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _short(text: str) -> str:
    return text if len(text) <= 48 else f"{text[:47]}…"


def rows(
    options: argparse.Namespace, policies: Sequence[str], keeps: Sequence[float | int], console: Console
) -> list[tuple[str, list[Panel]]]:
    """Per picture and budget: the question, and the panels of the full model and of each policy."""
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if options.image:
        asked = [(_opened(path), options.question or _QUESTION) for path in options.image]
    else:
        samples = [held_out(16)[i] for i in (0, 7, 15)]  # of several types, each about another picture
        asked = [(Image.fromarray(s.scene.image), options.question or s.question.text) for s in samples]
    model, processor = checkpoint(options.model, dtype, device, None)
    found = []
    for image, question in track(asked, "looking", console=console, transient=True):
        ask = functools.partial(
            panel, model, processor, image, question, positions=options.positions, new_tokens=options.new_tokens
        )
        full = ask(policy=None, keep=1.0)
        for keep in keeps:
            found.append((question, [full, *(ask(policy=policy, keep=keep) for policy in policies)]))
    return found


def run(options: argparse.Namespace, console: Console) -> None:
    draw(options.out, rows(options, options.policy, options.keep, console))
    console.print(f"Picture: {options.out}", highlight=False, soft_wrap=True)
