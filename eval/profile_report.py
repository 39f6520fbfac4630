"""`tokenprune profile`: builds the model, measures, and shows what came out."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from . import shapes
from .machine import describe
from .profile import Setting, profile, verdict

MIB = 1 << 20


def load(options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> tuple[Any, dict[str, Any], str]:
    """Model, inputs and a name, of a published shape or of a checkpoint."""
    request = shapes.Request(options.batch, options.images, options.frames, options.image_size)
    if options.model is None:
        model = shapes.build(options.config, options.layers, dtype, device, options.attn)
        return model, shapes.inputs(options.config, model, request), options.config
    model, processor = checkpoint(options.model, dtype, device, options.attn)
    return model, _processed(processor, request).to(device, dtype), options.model


def checkpoint(name: str, dtype: torch.dtype, device: torch.device, attn: str | None) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText

    from . import minivlm

    place = minivlm.place(name)
    model: Any = AutoModelForImageTextToText.from_pretrained(place, dtype=dtype, attn_implementation=attn)
    return model.to(device).eval(), minivlm.load_processor(name)


def _processed(processor: Any, request: shapes.Request) -> Any:
    """The processor's batch for noise: what pictures show does not change what they cost."""
    import numpy as np
    from PIL import Image

    side, generator = request.side or 672, np.random.default_rng(0)

    def picture() -> Image.Image:
        return Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8))

    if request.frames:
        content: list[dict[str, Any]] = [{"type": "video", "video": [picture() for _ in range(request.frames)]}]
    else:
        content = [{"type": "image", "image": picture()} for _ in range(request.images)]
    content.append({"type": "text", "text": "What is to be seen here? Describe it in some detail."})
    return processor.apply_chat_template(
        [[{"role": "user", "content": content}]] * request.batch,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


def table(rows: list[dict[str, Any]], title: str) -> Table:
    out = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0), caption=CAPTION, caption_justify="left")
    for name in (
        "",
        "kept",
        "vision",
        "select",
        "prefill",
        "ms/token",
        "KV MiB",
        "peak MiB",
        "TFLOP",
        "theory",
        "real",
    ):
        out.add_column(name, justify="right" if name else "left", no_wrap=True)
    for row in rows:
        full = row["policy"] == "full"
        out.add_row(
            "full" if full else f"{row['policy']} {row['keep']:g}",
            "all" if full else f"{row['kept']:g}",
            f"{row['vision_ms']:.1f}",
            "" if full else f"{row['select_ms']:.1f}",
            f"{row['prefill_ms']:.1f}",
            f"{row['decode_ms_per_token']:.1f}",
            f"{row['kv_cache_bytes'] / MIB:.1f}",
            f"{row['peak_bytes'] / MIB:.0f}",
            f"{row['flops'] / 1e12:.3f}",
            "" if full else f"{row['prefill_saving_theoretical']:.1%}",
            "" if full else f"{row['prefill_saving_realised']:.1%}",
        )
    return out


CAPTION = (
    "kept: visual tokens, a mean over decoder layers. ms, medians. vision: encoder and projector. prefill: selection "
    "and language model, to the first token. peak: memory of a prefill beside weights. theory, real: share of the "
    "full prefill saved, by FLOPs of the decoder and by the clock."
)


def draw(path: Path, rows: Sequence[dict[str, Any]], title: str, new_tokens: int) -> None:
    """Latency stacked by phase, and the realised saving against the theoretical one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 0.45 * len(rows) + 2.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    draw_phases(left, rows, new_tokens)
    draw_savings(right, rows)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def draw_phases(axes: Any, rows: Sequence[dict[str, Any]], new_tokens: int, columns: int = 4) -> None:
    """A bar per setting, stacked by phase; the legend above, in so many columns."""
    names = ["full" if r["policy"] == "full" else f"{r['policy']} {r['keep']:g}" for r in rows]
    left = [0.0] * len(rows)
    for label, colour, value in (
        ("vision encoder", "#8da0cb", lambda r: r["vision_ms"]),
        ("selection", "#e78ac3", lambda r: r["select_ms"]),
        ("prefill", "#fc8d62", lambda r: r["prefill_ms"] - r["select_ms"]),
        (f"decoding {new_tokens - 1} tokens", "#66c2a5", lambda r: r["decode_ms_per_token"] * (new_tokens - 1)),
    ):
        widths = [value(row) for row in rows]
        axes.barh(names, widths, left=left, label=label, color=colour)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("ms")
    axes.legend(fontsize="small", ncols=columns, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)


def draw_savings(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Share of the full prefill saved: by the clock over by FLOPs; on the diagonal all that is promised is there."""
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    pruned = [row for row in rows if row["policy"] != "full"]
    for policy in dict.fromkeys(row["policy"] for row in pruned):
        some = [row for row in pruned if row["policy"] == policy]
        axes.plot(
            [row["prefill_saving_theoretical"] for row in some],
            [row["prefill_saving_realised"] for row in some],
            marker="o",
            label=policy,
        )
    lowest = min([0.0, *(row["prefill_saving_realised"] for row in pruned)])
    axes.set(xlabel="prefill saving by FLOPs", ylabel="by the clock", xlim=(0, 1), ylim=(lowest, 1))
    axes.legend(fontsize="small")


def run(options: argparse.Namespace, console: Console) -> None:
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = getattr(torch, options.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    settings = [Setting(policy, keep) for policy in options.policy for keep in options.keep]
    with console.status("building the model"):
        model, inputs, name = load(options, device, dtype)
    rows = profile(
        model,
        inputs,
        settings,
        options.new_tokens,
        options.rounds,
        lambda rounds: track(rounds, "rounds", console=console, transient=True),
    )
    layers = model.config.get_text_config().num_hidden_layers
    machine = describe(device)
    title = f"{name}, {layers} decoder layers, batch {options.batch}, {str(dtype).removeprefix('torch.')}"
    console.width = max(console.width, 100)  # narrower, figures would be cut
    console.print(table(rows, f"{title}; {machine['device']}, {machine['threads']} threads"))
    for row in rows[1:]:
        console.print(f"[bold]{row['policy']} {row['keep']:g}[/] {verdict(row, rows[0])}", highlight=False)
    if options.json:
        settings_of = {k: v for k, v in vars(options).items() if isinstance(v, str | int | list | None)}
        head = {"machine": machine, "model": name, "layers": layers, "dtype": str(dtype), "settings": settings_of}
        verdicts = {f"{row['policy']} {row['keep']:g}": verdict(row, rows[0]) for row in rows[1:]}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**head, "rows": rows, "verdicts": verdicts}, indent=1) + "\n")
    if options.plot:
        draw(options.plot, rows, title, options.new_tokens)
