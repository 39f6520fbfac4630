"""`tokenprune profile`: builds the model, measures, prints and writes the results."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track

from ..checkpoints import load_checkpoint
from ..files import write_json
from ..machine import describe, device_and_threads, dtype_name, pick_device, pick_dtype
from ..setting import label, settings_grid
from . import shapes
from .measure import profile, verdict
from .report import draw, table


def load(options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> tuple[Any, dict[str, Any], str]:
    """Model, inputs and a name, of a published shape (`--config`) or of a checkpoint (`--model`)."""
    request = shapes.Request(options.batch, options.images, options.frames, options.image_size)
    if options.model is None:
        model = shapes.build(options.config, options.layers, dtype, device, options.attn)
        return model, shapes.inputs(options.config, model, request), options.config
    model, processor = load_checkpoint(options.model, dtype, device, options.attn)
    return model, noise_inputs(processor, request).to(device, dtype), options.model


def noise_inputs(processor: Any, request: shapes.Request) -> Any:
    """The processor's batch for images or videos of noise: their content does not affect the cost."""
    side, generator = request.side or 672, np.random.default_rng(0)

    def image() -> Image.Image:
        return Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8))

    if request.frames:
        content: list[dict[str, Any]] = [{"type": "video", "video": [image() for _ in range(request.frames)]}]
    else:
        content = [{"type": "image", "image": image()} for _ in range(request.images)]
    content.append({"type": "text", "text": "What is to be seen here? Describe it in some detail."})
    return processor.apply_chat_template(
        [[{"role": "user", "content": content}]] * request.batch,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


def run(options: argparse.Namespace, console: Console) -> None:
    """Run the command.

    Raises:
        OSError: no such checkpoint.
        ValueError: an input or a policy that the model does not take, fewer than two new tokens.
    """
    device = pick_device(options.device)
    dtype = pick_dtype(options.dtype, device)
    settings = settings_grid(options.policy, options.keep)
    with console.status("building the model"):
        model, inputs, name = load(options, device, dtype)
    rounds = lambda over: track(over, "rounds", console=console, transient=True)
    rows = profile(model, inputs, settings, options.new_tokens, options.rounds, rounds)
    layers = model.config.get_text_config().num_hidden_layers
    machine = describe(device)
    title = f"{name}, {layers} decoder layers, batch {options.batch}, {dtype_name(dtype)}"
    console.width = max(console.width, 100)  # narrower, figures would be cut
    console.print(table(rows, f"{title}; {device_and_threads(machine)}"))
    verdicts = {label(row["policy"], row["keep"]): verdict(row, rows[0]) for row in rows[1:]}
    for row in rows[1:]:
        console.print(f"[bold]{label(row['policy'], row['keep'])}[/] {verdict(row, rows[0])}", highlight=False)
    if options.json:
        given = {k: v for k, v in vars(options).items() if isinstance(v, str | int | list | None)}
        head = {"machine": machine, "model": name, "layers": layers, "dtype": str(dtype), "settings": given}
        write_json(options.json, {**head, "rows": rows, "verdicts": verdicts})
    if options.plot:
        draw(options.plot, rows, title, options.new_tokens)
