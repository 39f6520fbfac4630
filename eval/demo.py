"""`tokenprune demo`: the embedded model answers questions about pictures, full and pruned."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..api import Positions, pruning, pruning_report
from ..patches import Record
from ..policies import Policy, make_policy
from . import minivlm
from .machine import describe
from .minivlm.model import prompt
from .minivlm.questions import QUESTION_TYPES, Question, ask
from .minivlm.scenes import GRID, SEEDS, Scene, draw_scene
from .pictures import dim, kept_indices, kept_masks
from .prefill import WARM_UP, Prefill, measure_prefill

BATCH = 16
_SHOWN = 6  # pictures in the PNG
_ROUNDS = 15  # of timing


@dataclass(frozen=True)
class Sample:
    scene: Scene
    question: Question


@dataclass(frozen=True)
class Setting:
    """A policy at a budget, or the full model (no policy)."""

    policy: Policy | None = None
    keep: float | int = 1.0
    positions: Positions = "original"

    @property
    def name(self) -> str:
        return self.policy.name if self.policy is not None else "full"

    def context(self, model: Any) -> contextlib.AbstractContextManager:
        if self.policy is None:
            return contextlib.nullcontext(model)
        return pruning(model, self.policy, self.keep, positions=self.positions)


@dataclass
class Answers:
    """What a setting answered: texts, and the pruning record of each sample."""

    texts: list[str]
    records: list[Record | None]


def held_out(n: int) -> list[Sample]:
    """The first `n` questions about test scenes, which no training has seen."""
    samples: list[Sample] = []
    seed = SEEDS["test"]
    while len(samples) < n:
        scene = draw_scene(seed)
        samples += [Sample(scene, q) for q in ask(scene, seed)]
        seed += 1
    return samples[:n]


def encode(processor: Any, samples: list[Sample]) -> Any:
    texts = [processor.apply_chat_template(prompt(s.question.text), add_generation_prompt=True) for s in samples]
    images = [s.scene.image for s in samples]
    return processor(images=images, text=texts, padding=True, return_tensors="pt")


@torch.inference_mode()
def answer(
    model: Any, processor: Any, samples: list[Sample], setting: Setting, tick: Callable[[int], None] = lambda n: None
) -> Answers:
    """Greedy answers through the processor and `generate()`, as a user would ask."""
    out = Answers([], [])
    for i in range(0, len(samples), BATCH):
        part = samples[i : i + BATCH]
        inputs = encode(processor, part)
        with setting.context(model):
            tokens = model.generate(**inputs)
            out.records += pruning_report(model) if setting.policy is not None else [None] * len(part)
        out.texts += processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        tick(len(part))
    return out


def exact_match(samples: list[Sample], answers: Answers) -> dict[str, float]:
    """Share of right answers per question type, and over all questions."""
    right = np.array([t.strip() == s.question.answer for t, s in zip(answers.texts, samples, strict=True)])
    types = np.array([s.question.type for s in samples])
    scores = {t: float(right[types == t].mean()) for t in QUESTION_TYPES if (types == t).any()}
    return scores | {"all": float(right.mean())}


def mean_tokens(record: Record, n_layers: int) -> float:
    """Visual tokens that a decoder layer holds, on average over the layers."""
    if record.deep_layer is None or record.deep_indices is None:
        return record.n_after
    upper = n_layers - record.deep_layer
    return (record.n_after * record.deep_layer + len(record.deep_indices) * upper) / n_layers


def figures(
    samples: list[Sample],
    setting: Setting,
    answers: Answers,
    prefill: Prefill,
    full: Prefill,
    batch: int,
    n_layers: int,
) -> dict[str, Any]:
    """One row of the table and of the JSON file."""
    tokens = [GRID * GRID if r is None else mean_tokens(r, n_layers) for r in answers.records]
    return {
        "policy": setting.name,
        "keep": setting.keep,
        "visual_tokens": float(np.mean(tokens)),
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


def dimmed(sample: Sample, record: Record | None, scale: int = 3) -> np.ndarray:
    """The picture, enlarged, with the patches that were dropped dimmed."""
    image = np.kron(sample.scene.image, np.ones((scale, scale, 1), np.uint8))
    return image if record is None else dim(image, kept_masks(record)[0][0])


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
            right = text == sample.question.answer
            ax.set_xlabel(f"{'✓' if right else '✗'} {text or '(nothing)'}", color="#1a7f37" if right else "#c62828")
            ax.xaxis.label.set_fontsize(12)
            if ax.get_subplotspec().is_first_row():
                ax.set_title(sample.question.text, fontsize=9)
        record = answers.records[chosen[0]]
        left = "all" if record is None else f"{len(kept_indices(record))} of"
        row[0].set_ylabel(f"{setting.name}\n{left} {GRID * GRID} visual tokens", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=75)
    plt.close(figure)


@contextlib.contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        yield progress


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
    with _progress(console) as progress:
        asking = progress.add_task("asking", total=len(settings) * len(samples))
        tick = lambda n: progress.advance(asking, n)
        answers = [answer(model, processor, samples, s, tick) for s in settings]
        timing = progress.add_task("timing the prefill", total=WARM_UP + _ROUNDS)

        def rounds(over: Iterable[int]) -> Iterator[int]:
            for i in over:
                yield i
                progress.advance(timing)

        batch = encode(processor, samples[:BATCH])
        contexts = {i: (lambda s=s: s.context(model)) for i, s in enumerate(settings)}
        prefills = measure_prefill(model, batch, contexts, rounds=_ROUNDS, progress=rounds)
    size, n_layers = len(batch["input_ids"]), len(cast(Any, model).model.language_model.layers)
    rows = [
        figures(samples, s, a, prefills[i], prefills[0], size, n_layers)
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
