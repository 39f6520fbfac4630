"""Table and figures of `tokenprune profile`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from ..setting import FULL, label

MIB = 1 << 20
CAPTION = (
    "kept: visual tokens, a mean over decoder layers. ms, medians. vision: encoder and projector. prefill: selection "
    "and language model, to the first token. peak: memory of a prefill beside weights. theory, real: share of the "
    "full prefill saved, by FLOPs of the decoder and by the clock."
)


def table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """A table of the rows of `measure.profile`."""
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
        out.add_column(name, justify="right" if name else "left", no_wrap=bool(name), overflow="fold")
    for row in rows:
        full = row["policy"] == FULL
        out.add_row(
            label(row["policy"], row["keep"]),
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


def draw(path: Path, rows: Sequence[dict[str, Any]], title: str, new_tokens: int) -> None:
    """Draw latency stacked by phase, and the realised saving against the theoretical one, into an image file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 0.45 * len(rows) + 2.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    draw_phases(left, rows, new_tokens)
    draw_savings(right, rows)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def draw_phases(axes: Any, rows: Sequence[dict[str, Any]], new_tokens: int, columns: int = 4) -> None:
    """Draw a bar per setting, stacked by phase.

    Args:
        axes: of matplotlib.
        rows: of `measure.profile`.
        new_tokens: generated in the profile.
        columns: of the legend above the bars.
    """
    names = [label(row["policy"], row["keep"]) for row in rows]
    left = [0.0] * len(rows)
    for phase, colour, value in (
        ("vision encoder", "#8da0cb", lambda r: r["vision_ms"]),
        ("selection", "#e78ac3", lambda r: r["select_ms"]),
        ("prefill", "#fc8d62", lambda r: r["prefill_ms"] - r["select_ms"]),
        (f"decoding {new_tokens - 1} tokens", "#66c2a5", lambda r: r["decode_ms_per_token"] * (new_tokens - 1)),
    ):
        widths = [value(row) for row in rows]
        axes.barh(names, widths, left=left, label=phase, color=colour)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("ms")
    axes.legend(fontsize="small", ncols=columns, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)


def draw_savings(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Draw the share of the full prefill saved by the clock against that by FLOPs; on the diagonal they are equal."""
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    pruned = [row for row in rows if row["policy"] != FULL]
    for policy in dict.fromkeys(row["policy"] for row in pruned):
        of_policy = [row for row in pruned if row["policy"] == policy]
        axes.plot(
            [row["prefill_saving_theoretical"] for row in of_policy],
            [row["prefill_saving_realised"] for row in of_policy],
            marker="o",
            label=policy,
        )
    lowest = min([0.0, *(row["prefill_saving_realised"] for row in pruned)])
    axes.set(xlabel="prefill saving by FLOPs", ylabel="by the clock", xlim=(0, 1), ylim=(lowest, 1))
    axes.legend(fontsize="small")
