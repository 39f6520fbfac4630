"""`tokenprune demo`: the embedded model answers questions about images, full and pruned."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from ..patches import Record
from . import minivlm
from .answers import BATCH, TYPES, Answers, Sample, answer, encode_for, exact_matches, held_out
from .files import STDOUT, check_different, check_file, console_beside, picture_suffixes, write_json
from .machine import describe, device_and_threads
from .minivlm.scenes import GRID
from .pictures import dim, kept_indices, kept_masks
from .prefill import WARM_UP, Prefill, measure_prefill
from .progress import progress_bar
from .reachable import reachable
from .setting import FULL, PruningSetting, settings_grid

_SHOWN = 6  # images in a row of the PNG
_ROUNDS = 15  # of timing that count


def exact_match(samples: list[Sample], answers: Answers) -> dict[str, float]:
    """Share of right answers per question type, and over all questions."""
    matches = exact_matches(samples, answers)
    types = np.array([s.question.type for s in samples])
    scores = {t: float(matches[types == t].mean()) for t in TYPES if (types == t).any()}
    return scores | {"all": float(matches.mean())}


def figures(
    samples: list[Sample],
    setting: PruningSetting,
    answers: Answers,
    prefill: Prefill,
    full: Prefill,
    batch: int,
) -> dict[str, Any]:
    """One row of the table and of the JSON file.

    Args:
        samples: the questions.
        setting: what they were answered under.
        answers: the answers.
        prefill: of one batch under the setting.
        full: of the same batch by the full model.
        batch: questions in that batch.
    """
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
    """Print the rows of `figures`, the full model's first, with the number of questions in the title."""
    table = Table(
        title=f"{samples} held-out questions: exact match in %",
        caption="kept: visual tokens, a mean over decoder layers; KiB: KV cache of a question; ms: prefill",
        box=box.SIMPLE_HEAD,
        padding=0,  # fits 80 columns
    )
    table.add_column("", overflow="fold")  # names with options are long; figures are not cut for them
    types = list(rows[0]["exact_match"])
    for name in ("keep", "kept", "KiB", "ms", "ratio", *types):
        table.add_column(name, justify="right", no_wrap=True)
    best = max((r["exact_match"]["all"] for r in rows[1:]), default=None)
    for row in rows:
        table.add_row(
            row["policy"],
            str(row["keep"]) if row["policy"] != FULL else "",
            f"{row['visual_tokens']:.0f}",
            f"{row['kv_cache_bytes'] / 1024:.0f}",
            f"{row['prefill_ms']:.1f}",
            f"{row['prefill_ratio']:.2f}",
            *(f"{100 * row['exact_match'][t]:.0f}" for t in types),
            style="bold" if row is rows[0] else "green" if row["exact_match"]["all"] == best else None,
        )
    # Long policy names need a few more columns than 80; narrower, figures would be cut.
    Console(width=max(console.width, 84), file=console.file).print(table)


def dimmed(sample: Sample, records: Sequence[Record], scale: int = 3) -> np.ndarray:
    """The image, each side `scale` times as large, with the patches of dropped tokens dimmed."""
    image = np.kron(sample.scene.image, np.ones((scale, scale, 1), np.uint8))
    return dim(image, kept_masks(records[0])[0][0]) if records else image


def _share(keep: float | int | str) -> float:
    """A budget as a share of a picture's tokens, to compare by; one that is found for each input is all of them."""
    if isinstance(keep, str):
        return 1.0
    return keep if isinstance(keep, float) else keep / (GRID * GRID)


def draw(path: Path, samples: list[Sample], results: list[tuple[PruningSetting, Answers]]) -> None:
    """Draw images with the patches of dropped tokens dimmed, a row per setting, with questions and answers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    chosen: list[int] = []
    used: set[Any] = set()
    for i, sample in enumerate(samples):  # one question of each type, each about a different image
        if sample.question.type not in used and id(sample.scene) not in used:
            used |= {sample.question.type, id(sample.scene)}
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
            right = text == sample.question.answer
            ax.set_xlabel(f"{'✓' if right else '✗'} {text or '(nothing)'}", color="#1a7f37" if right else "#c62828")
            ax.xaxis.label.set_fontsize(12)
            if ax.get_subplotspec().is_first_row():
                ax.set_title(sample.question.text, fontsize=9)
        row[0].set_ylabel(f"{setting.name}\n{_kept(answers, chosen[0])}", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=75)
    plt.close(figure)


def _kept(answers: Answers, i: int) -> str:
    """How many visual tokens a question kept, and where the decoder drops some, their mean over its layers too."""
    n, records = GRID * GRID, answers.records[i]
    if not records:
        return f"all {n} visual tokens"
    last, mean = len(kept_indices(records[0])), answers.kept[i]
    return f"{last} of {n} visual tokens" if mean == last else f"{last} of {n} at the end,\n{mean:.4g} in the mean"


def run(options: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """Run the demo; returns the rows of its table, the full model first.

    Raises:
        CommandError: a file that cannot be written.
    """
    check_file(options.out, "--out", picture_suffixes())
    check_file(options.json, "--json")
    check_different(out=options.out, json=options.json)
    console = console_beside(options.json, console)
    model, processor = minivlm.load()
    asked = settings_grid(options.policy, options.keep, options.positions)
    settings = reachable(model, asked, lambda reason: console.print(reason, highlight=False, soft_wrap=True))
    samples = held_out(options.samples)
    with progress_bar(console) as progress:
        asking = progress.add_task("asking", total=len(settings) * len(samples))
        tick = lambda count: progress.advance(asking, count)
        answers = [answer(model, processor, samples, setting, tick) for setting in settings]
        timing = progress.add_task("timing the prefill", total=WARM_UP + _ROUNDS)

        def rounds(over: Iterable[int]) -> Iterator[int]:
            for i in over:
                yield i
                progress.advance(timing)

        batch = encode_for(settings[0], processor, samples[:BATCH])
        contexts = {i: (lambda setting=setting: setting.context(model)) for i, setting in enumerate(settings)}
        prefills = measure_prefill(model, batch, contexts, rounds=_ROUNDS, progress=rounds)
    size = len(batch["input_ids"])
    results = list(zip(settings, answers, strict=True))
    rows = [
        figures(samples, setting, of_setting, prefills[i], prefills[0], size)
        for i, (setting, of_setting) in enumerate(results)
    ]
    print_table(console, rows, len(samples))
    keeps = [setting.keep for setting in settings if setting.keep is not None and not setting.is_full]
    lowest = min(keeps, key=_share)
    draw(options.out, samples, [(s, a) for s, a in results if s.is_full or s.keep == lowest])
    machine = describe("cpu")
    console.print(
        f"Prefill: median of {_ROUNDS} rounds, batch of {size}, selection included and vision encoder "
        f"({rows[0]['vision_ms']:.1f} ms) not, {device_and_threads(machine)}."
    )
    console.print(f"Picture: {options.out}", soft_wrap=True)
    if options.json is not None:
        head = {"machine": machine, "samples": len(samples), "positions": options.positions}
        write_json(options.json, head | {"rows": rows})
        if options.json != STDOUT:
            console.print(f"Figures: {options.json}", soft_wrap=True)
    return rows
