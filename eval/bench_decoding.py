"""What hooks cost at a decode step: `python -m tokenprune.eval.bench_decoding`.

Copies of one model, stock and pruned, take a step each in turns, so that a slow moment of the machine is everybody's.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..api import apply_pruning
from .asking import encode, held_out
from .machine import describe
from .minivlm import load

SETTINGS: tuple[tuple[str, float], ...] = (("divprune", 1.0), ("divprune", 0.25), ("fastv", 0.25), ("auto", 0.25))


@torch.inference_mode()
def step_times(models: Sequence[Any], inputs: dict[str, Any], steps: int, rounds: int) -> list[list[float]]:
    """Wall time of every decode step in microseconds, per model, batch 1; the first steps of a round are left out."""
    times: list[list[float]] = [[] for _ in models]
    for _ in track(range(rounds), description="decoding", transient=True):
        caches = []
        for model in models:
            out = model(**inputs, use_cache=True)
            caches.append(out.past_key_values)
        token = out.logits[:, -1:].argmax(-1)
        gc.disable()
        for step in range(steps):
            for i in range(len(models)):
                i = (i + step) % len(models)  # everybody comes after everybody
                started = time.perf_counter_ns()
                models[i](input_ids=token, past_key_values=caches[i], use_cache=True, logits_to_keep=1)
                if step >= 5:
                    times[i].append((time.perf_counter_ns() - started) / 1e3)
        gc.enable()
    return times


def measure(steps: int, rounds: int) -> dict[str, Any]:
    """Medians by setting, and their ratios to the stock model's; a second stock model shows the noise."""
    model, processor = load()
    sample = held_out(1)[0]
    inputs = encode(processor, [sample], [[sample.scene.image]])
    names, models = ["stock", "stock again"], [model, copy.deepcopy(model)]
    for policy, keep in SETTINGS:
        names.append(f"{policy} {keep:g}")
        models.append(apply_pruning(copy.deepcopy(model), policy, keep))
    medians = [statistics.median(of_model) for of_model in step_times(models, inputs, steps, rounds)]
    rows = [
        {"setting": name, "us_per_token": round(median, 1), "ratio": round(median / medians[0], 4)}
        for name, median in zip(names, medians, strict=True)
    ]
    return {**describe("cpu"), "model": "embedded llava", "batch": 1, "steps": steps, "rounds": rounds, "rows": rows}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100, help="decode steps of a round (default 100)")
    parser.add_argument("--rounds", type=int, default=20, help="rounds (default 20)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    default = Path(__file__).parent / "results" / "decoding-embedded-cpu.json"
    parser.add_argument("--json", type=Path, default=default, help=f"where the figures go (default {default.name})")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    found = measure(args.steps, args.rounds)
    args.json.write_text(json.dumps(found, indent=1) + "\n")
    table = Table("setting", "us per token", "ratio")
    for row in found["rows"]:
        table.add_row(row["setting"], f"{row['us_per_token']:.0f}", f"{row['ratio']:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
