"""Table and figure of `tokenprune profile --engine vllm`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from ..setting import FULL, label

CAPTION = (
    "Medians over rounds; x full: the median of the ratios within each round. TTFT includes the picture's processing."
)


def table(rows: Sequence[dict[str, Any]], title: str, clock: str = "wall") -> Table:
    """A table of the rows of `engine.measure`, by number of clients.

    Args:
        rows: what was measured.
        title: of the table.
        clock: what times were taken by.
    """
    caption = CAPTION if clock == "wall" else f"{CAPTION} Seconds are those that the engine and its clients computed."
    out = Table(title=title, box=box.SIMPLE, caption=caption, caption_justify="left")
    for name in ("clients", "", "prompt tokens", "requests/s", "x full", "TTFT ms", "x full"):
        out.add_column(name, justify="right" if name else "left", no_wrap=bool(name), overflow="fold")
    for row in sorted(rows, key=lambda row: (row["concurrency"], row["policy"] != FULL)):
        full = row["policy"] == FULL
        out.add_row(
            str(row["concurrency"]),
            label(row["policy"], row["keep"]),
            str(row["prompt_tokens"]),
            f"{row['requests_per_second']:.2f}",
            "" if full else f"{row['throughput_ratio']:.2f}",
            f"{row['ttft_ms']:.0f}",
            "" if full else f"{row['ttft_ratio']:.2f}",
        )
    return out


def draw(path: Path, rows: Sequence[dict[str, Any]], title: str) -> None:
    """Draw throughput and time to first token relative to the full model, by number of clients, into an image file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, value, name in zip(
        figure.subplots(1, 2), ("throughput_ratio", "ttft_ratio"), ("throughput, x full", "TTFT, x full"), strict=True
    ):
        for setting in dict.fromkeys((row["policy"], row["keep"]) for row in rows if row["policy"] != FULL):
            of_setting = [row for row in rows if (row["policy"], row["keep"]) == setting]
            axes.plot(
                [row["concurrency"] for row in of_setting],
                [row[value] for row in of_setting],
                marker="o",
                label=label(*setting),
            )
        axes.axhline(1, color="0.6", linewidth=1)
        axes.set(xlabel="clients at a time", ylabel=name, xscale="log")
        ticks = sorted({row["concurrency"] for row in rows})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.legend(fontsize="small")
    figure.suptitle(title, fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
