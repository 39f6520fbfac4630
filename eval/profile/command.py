"""`tokenprune profile`: builds the model, measures, prints and writes the results."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from ...policies.stages import Stage
from ..checkpoints import load_model
from ..errors import CommandError
from ..files import console_beside, write_json
from ..machine import describe, device_and_threads, dtype_name, pick_device, pick_dtype
from ..model_names import check_attention, find_checkpoint
from ..processors import check_videos, load_processor
from ..reachable import reachable
from ..setting import PruningSetting, label, settings_grid
from . import shapes
from .measure import ROUNDS, profile, verdict
from .options import check, check_kind
from .report import draw, tables
from .vision_layers import in_proportion, with_vision_layers
from .work import Costs, Work, WorkBar


def load(
    options: argparse.Namespace, settings: Sequence[PruningSetting], console: Console, stack: contextlib.ExitStack
) -> tuple[Any, dict[str, Any], Work, Sequence[PruningSetting]]:
    """Model and inputs, of a published shape (`--config`) or of a checkpoint (`--model`), a progress bar that says how
    long all will take, until the stack is closed, and the settings that the model can reach.

    With fewer decoder layers the vision encoder has fewer in proportion, noted in `options`, unless a number is given
    or a policy acts between them.

    Raises:
        CommandError: an option does not apply to the model.
        OSError: no such checkpoint.
        ValueError: an input that the model does not take.
    """
    from transformers import AutoConfig

    device = pick_device(options.device)
    dtype = pick_dtype(options.dtype, device)
    request = shapes.Request(options.batch, options.images, options.frames, options.image_size)
    path = None if options.model is None else find_checkpoint(options.model)
    config = shapes.config_of(options.config, options.layers) if path is None else AutoConfig.from_pretrained(path)
    if options.vision_layers is None and options.layers is not None and not _acts_inside(settings):
        share = options.layers / shapes.SHAPES[options.config].layers
        options.vision_layers = in_proportion(config, share)
    if options.vision_layers is not None:
        with_vision_layers(config, options.vision_layers)
    check_kind(config.model_type, options)
    if path is None:
        inputs: Any = shapes.inputs(options.config, config, request, device, dtype)
    else:
        inputs = checkpoint_inputs(path, config, request).to(device, dtype)
    empty = shapes.without_weights(config)
    settings = reachable(empty, settings, lambda reason: console.print(reason, highlight=False, soft_wrap=True))
    costs = Costs.of(empty, inputs, options.new_tokens)
    total = costs.total(settings, options.rounds or ROUNDS)
    work = Work(costs, (PruningSetting(), *settings), stack.enter_context(WorkBar(console, total, device.type)))
    if path is None:
        return shapes.build(config, dtype, device, options.attn, work), inputs, work, settings
    return load_model(options.model, dtype, device, options.attn), inputs, work, settings


def _acts_inside(settings: Sequence[PruningSetting]) -> bool:
    """Whether a policy acts between layers of the vision encoder, which takes more than a few of them."""
    return any(Stage.ENCODER in policy.stages for setting in settings for policy in setting.policies)


def checkpoint_inputs(path: str, config: Any, request: shapes.Request) -> Any:
    """A batch for a checkpoint.

    Raises:
        CommandError: its processor takes no videos, or its chat template leaves them or the images out.
    """
    processor = load_processor(path)
    if request.frames:
        check_videos(processor)
    inputs = noise_inputs(processor, request)
    kind = "video" if request.frames else "image"
    token = getattr(config, f"{kind}_token_id", getattr(config, f"{kind}_token_index", None))
    if not bool((inputs["input_ids"] == token).any()):
        raise CommandError(f"the chat template of {path} leaves {kind}s out, so that there is nothing to measure")
    return inputs


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
        CommandError: an option that does not apply, a file that cannot be written.
        OSError: no such checkpoint.
        ValueError: an input or a policy that the model does not take.
    """
    check(options)
    check_attention(options.attn)
    console = console_beside(options.json, console)
    settings: Sequence[PruningSetting] = settings_grid(options.policy, options.keep)
    with contextlib.ExitStack() as stack:
        model, inputs, work, settings = load(options, settings, console, stack)
        rows = profile(model, inputs, settings, options.new_tokens, options.rounds, work)
    device = pick_device(options.device)
    name, dtype = options.model or options.config, dtype_name(pick_dtype(options.dtype, device))
    layers = model.config.get_text_config().num_hidden_layers
    machine = describe(device)
    towers = "" if options.vision_layers is None else f" and {options.vision_layers} of the vision encoder"
    title = f"{name}, {layers} decoder layers{towers}, batch {options.batch}, {dtype}"
    for table in tables(rows, f"{title}; {device_and_threads(machine)}", console):
        console.print(table)
    verdicts = {label(row["policy"], row["keep"]): verdict(row, rows[0]) for row in rows[1:]}
    for row in rows[1:]:
        console.print(f"[bold]{label(row['policy'], row['keep'])}[/] {verdict(row, rows[0])}", highlight=False)
    if options.json:
        given = {k: v for k, v in vars(options).items() if isinstance(v, str | int | list | None)}
        head = {
            "machine": machine,
            "model": name,
            "layers": layers,
            "vision_layers": options.vision_layers,
            "dtype": f"torch.{dtype}",
            "settings": given,
        }
        write_json(options.json, {**head, "rows": rows, "verdicts": verdicts})
    if options.plot:
        draw(options.plot, rows, title, options.new_tokens)
