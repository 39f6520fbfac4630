"""Table and figures of `tokenprune profile`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from ..setting import FULL, label

MIB = 1 << 20
CAPTION = (
    "kept: visual tokens, a mean over decoder layers. ms, medians of {rounds} rounds. vision: encoder and projector. "
    "prefill: selection and language model, to the first token.{gpu} peak: memory of a prefill beside weights. theory, "
    "real: share of the full prefill saved, by FLOPs of the decoder and by the clock. request: share of all time saved."
)
_OF_GPU = " GPU: how long it computes up to the first token, encoder included, in one further run."


_Shown = Callable[[dict[str, Any]], str]


def _both(show: _Shown) -> tuple[_Shown, _Shown]:
    return show, show


#: Columns by name, of a row of the full model and of a pruned one.
_COLUMNS: dict[str, tuple[_Shown, _Shown]] = {
    "kept": (lambda row: "all", lambda row: f"{row['kept']:g}"),
    "vision": _both(lambda row: f"{row['vision_ms']:.1f}"),
    "select": (lambda row: "", lambda row: f"{row['select_ms']:.1f}"),
    "prefill": _both(lambda row: f"{row['prefill_ms']:.1f}"),
    "ms/token": _both(lambda row: f"{row['decode_ms_per_token']:.1f}"),
    "GPU": _both(lambda row: f"{row['ttft_gpu_ms']:.1f}"),
    "KV MiB": _both(lambda row: f"{row['kv_cache_bytes'] / MIB:.1f}"),
    "peak MiB": _both(lambda row: f"{row['peak_bytes'] / MIB:.0f}"),
    "TFLOP": _both(lambda row: f"{row['flops'] / 1e12:.3f}"),
    "theory": (lambda row: "", lambda row: f"{row['prefill_saving_theoretical']:.1%}"),
    "real": (lambda row: "", lambda row: f"{row['prefill_saving_realised']:.1%}"),
    "request": (lambda row: "", lambda row: f"{row['request_saving_realised']:.1%}"),
}


def tables(rows: Sequence[dict[str, Any]], title: str, console: Console) -> list[Table]:
    """One table of the rows of `measure.profile`, or two where the console is too narrow for one."""
    names = [name for name in _COLUMNS if name != "GPU" or "ttft_gpu_ms" in rows[0]]
    caption = CAPTION.format(rounds=rows[0]["rounds"], gpu=_OF_GPU if "GPU" in names else "")
    whole = _table(rows, title, names)
    if Measurement.get(console, console.options.update(width=1000), whole).maximum <= console.width:
        whole.caption = caption
        return [whole]
    parts = [_table(rows, title, names[:5]), _table(rows, "", names[5:])]
    parts[1].caption = caption
    return parts


def _table(rows: Sequence[dict[str, Any]], title: str, names: Sequence[str]) -> Table:
    out = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0), caption_justify="left")
    out.add_column("", overflow="fold")
    for name in names:
        out.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        cells = (_COLUMNS[name][row["policy"] != FULL](row) for name in names)
        out.add_row(label(row["policy"], row["keep"]), *cells)
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
