"""`tokenprune demo`: the embedded model answers questions about pictures, full and pruned."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from ..api import Positions
from ..patches import Record
from ..policies import make_policy
from . import minivlm
from .asking import BATCH, TYPES, Answers, Sample, Setting, answer, held_out, right
from .machine import describe
from .minivlm.scenes import GRID
from .pictures import dim, kept_indices, kept_masks
from .prefill import WARM_UP, Prefill, measure_prefill
from .progress import progress_bar

_SHOWN = 6  # pictures in the PNG
_ROUNDS = 15  # of timing


def exact_match(samples: list[Sample], answers: Answers) -> dict[str, float]:
    """Share of right answers per question type, and over all questions."""
    matches = right(samples, answers)
    types = np.array([s.question.type for s in samples])
    scores = {t: float(matches[types == t].mean()) for t in TYPES if (types == t).any()}
    return scores | {"all": float(matches.mean())}


def figures(
    samples: list[Sample],
    setting: Setting,
    answers: Answers,
    prefill: Prefill,
    full: Prefill,
    batch: int,
) -> dict[str, Any]:
    """One row of the table and of the JSON file."""
    return {
        "policy": setting.name,
        "keep": setting.keep,
        "visual_tokens": float(np.mean(answers.kept)),
        "kv_cache_bytes": prefill.kv_cache_bytes // batch,
        "prefill_ms": prefill.ms,
        "prefill_ratio": prefill.ms / full.ms,
        "vision_ms": prefill.vision_ms,
        "exact_match": exact_match(samples, answers),
    }


def print_table(console: Console, rows: list[dict[str, Any]], samples: int) -> None:
    table = Table(
        title=f"{samples} held-out questions: exact match in %",
        caption="kept: visual tokens, KiB: KV cache of a question, ms: prefill",
        box=box.SIMPLE_HEAD,
        padding=0,  # fits 80 columns
    )
    table.add_column("", no_wrap=True)
    types = list(rows[0]["exact_match"])
    for name in ("keep", "kept", "KiB", "ms", "ratio", *types):
        table.add_column(name, justify="right", no_wrap=True)
    best = max((r["exact_match"]["all"] for r in rows[1:]), default=None)
    for row in rows:
        table.add_row(
            row["policy"],
            str(row["keep"]) if row["policy"] != "full" else "",
            f"{row['visual_tokens']:.0f}",
            f"{row['kv_cache_bytes'] / 1024:.0f}",
            f"{row['prefill_ms']:.1f}",
            f"{row['prefill_ratio']:.2f}",
            *(f"{100 * row['exact_match'][t]:.0f}" for t in types),
            style="bold" if row is rows[0] else "green" if row["exact_match"]["all"] == best else None,
        )
    # a long policy name may need a little more than 80 columns; shortened figures help nobody
    Console(width=max(console.width, 84), file=console.file).print(table)


def dimmed(sample: Sample, records: Sequence[Record], scale: int = 3) -> np.ndarray:
    """The picture, enlarged, with the patches that were dropped dimmed."""
    image = np.kron(sample.scene.image, np.ones((scale, scale, 1), np.uint8))
    return dim(image, kept_masks(records[0])[0][0]) if records else image


def draw(path: Path, samples: list[Sample], results: list[tuple[Setting, Answers]]) -> None:
    """Pictures with dropped patches dimmed, one row per setting; question and answers beneath."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    chosen, seen = [], set()
    for i, sample in enumerate(samples):  # one question of each type, each about another picture
        if sample.question.type not in seen and id(sample.scene) not in seen:
            seen |= {sample.question.type, id(sample.scene)}
            chosen.append(i)
    chosen = chosen[:_SHOWN]
    figure, axes = plt.subplots(
        len(results), len(chosen), figsize=(2.5 * len(chosen), 2.95 * len(results)), squeeze=False, layout="constrained"
    )
    for row, (setting, answers) in zip(axes, results, strict=True):
        for ax, i in zip(row, chosen, strict=True):
            sample, text = samples[i], answers.texts[i].strip()
            ax.imshow(dimmed(sample, answers.records[i]))
            ax.set_xticks([])
            ax.set_yticks([])
            good = text == sample.question.answer
            ax.set_xlabel(f"{'✓' if good else '✗'} {text or '(nothing)'}", color="#1a7f37" if good else "#c62828")
            ax.xaxis.label.set_fontsize(12)
            if ax.get_subplotspec().is_first_row():
                ax.set_title(sample.question.text, fontsize=9)
        records = answers.records[chosen[0]]
        left = f"{len(kept_indices(records[0]))} of" if records else "all"
        row[0].set_ylabel(f"{setting.name}\n{left} {GRID * GRID} visual tokens", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=75)
    plt.close(figure)


def run(
    policies: list[str],
    keeps: list[float | int],
    positions: Positions,
    n_samples: int,
    out: Path,
    json_path: Path | None,
    console: Console,
) -> list[dict[str, Any]]:
    """The whole demo; returns the rows of its table, the full model first."""
    model, processor = minivlm.load()
    settings = [Setting()] + [Setting(make_policy(p), k, positions) for p in policies for k in keeps]
    samples = held_out(n_samples)
    with progress_bar(console) as progress:
        asking = progress.add_task("asking", total=len(settings) * len(samples))
        tick = lambda n: progress.advance(asking, n)
        answers = [answer(model, processor, samples, s, tick) for s in settings]
        timing = progress.add_task("timing the prefill", total=WARM_UP + _ROUNDS)

        def rounds(over: Iterable[int]) -> Iterator[int]:
            for i in over:
                yield i
                progress.advance(timing)

        batch = settings[0].encode(processor, samples[:BATCH])
        contexts = {i: (lambda s=s: s.context(model)) for i, s in enumerate(settings)}
        prefills = measure_prefill(model, batch, contexts, rounds=_ROUNDS, progress=rounds)
    size = len(batch["input_ids"])
    rows = [
        figures(samples, s, a, prefills[i], prefills[0], size)
        for i, (s, a) in enumerate(zip(settings, answers, strict=True))
    ]
    print_table(console, rows, len(samples))
    lowest = min(keeps, key=lambda k: k if isinstance(k, float) else k / (GRID * GRID))
    shown = [(s, a) for s, a in zip(settings, answers, strict=True) if s.policy is None or s.keep == lowest]
    draw(out, samples, shown)
    machine = describe("cpu")
    console.print(
        f"Prefill: median of {_ROUNDS} rounds, batch of {size}, selection included and vision encoder "
        f"({rows[0]['vision_ms']:.1f} ms) not, {machine['device']}, {machine['threads']} threads."
    )
    console.print(f"Picture: {out}", soft_wrap=True)
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        figures_file = {"machine": machine, "samples": len(samples), "positions": positions, "rows": rows}
        json_path.write_text(json.dumps(figures_file, indent=1) + "\n")
        console.print(f"Figures: {json_path}", soft_wrap=True)
    return rows
