"""The cost of hooks at a decode step: `python -m tokenprune.eval.bench_decoding`.

Copies of one model, stock and pruned, take one step each in turn, so that a slow moment of the machine affects all.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from .answers import encode, held_out
from .files import write_json
from .machine import describe
from .minivlm import load
from .setting import PruningSetting

SETTINGS: tuple[tuple[str, float], ...] = (("divprune", 1.0), ("divprune", 0.25), ("fastv", 0.25), ("auto", 0.25))
_SETTLING = 5  # steps of a round that are not counted


@torch.inference_mode()
def step_times(models: Sequence[Any], inputs: dict[str, Any], steps: int, rounds: int) -> list[list[float]]:
    """Per model, the wall time of each decode step in microseconds.

    Args:
        models: take turns at every step.
        inputs: one batch.
        steps: decode steps of a round; the first `_SETTLING` are not counted.
        rounds: each starts with a prefill.
    """
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
                i = (i + step) % len(models)  # the order rotates from step to step
                started = time.thread_time_ns()
                models[i](input_ids=token, past_key_values=caches[i], use_cache=True, logits_to_keep=1)
                if step >= _SETTLING:
                    times[i].append((time.thread_time_ns() - started) / 1e3)
        gc.enable()
    return times


def measure(steps: int, rounds: int) -> dict[str, Any]:
    """Medians by setting, and their ratios to the stock model's. A second stock model shows the noise.

    Args:
        steps: decode steps of a round.
        rounds: of all models.
    """
    model, processor = load()
    sample = held_out(1)[0]
    inputs = encode(processor, [sample], [sample.images])
    names, models = ["stock", "stock again"], [model, copy.deepcopy(model)]
    for policy, keep in SETTINGS:
        setting = PruningSetting(policy, keep)
        names.append(str(setting))
        models.append(copy.deepcopy(model))
        setting.apply(models[-1])
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
    write_json(args.json, found)
    table = Table("setting", "us per token", "ratio")
    for row in found["rows"]:
        table.add_row(row["setting"], f"{row['us_per_token']:.0f}", f"{row['ratio']:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
