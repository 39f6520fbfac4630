"""The cost of hooks at a decode step: `python -m tokenprune.eval.bench_decoding`.

Copies of one model, stock and pruned, take one step each in turn, so that a slow moment of the machine affects all. Two
models are measured: the embedded LLaVA, and a LLaVA with 32 narrow decoder layers and random weights, in which hooks
weigh more. Times are CPU time of the thread, of a single one.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
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


def _embedded() -> tuple[Any, dict[str, Any]]:
    """The embedded LLaVA, and a question to it."""
    model, processor = load()
    sample = held_out(1)[0]
    return model, encode(processor, [sample], [sample.images])


def _thin() -> tuple[Any, dict[str, Any]]:
    """A LLaVA with 32 decoder layers of width 128 and random weights, and a prompt with an image of 144 tokens."""
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=168,
            patch_size=14,
        ),
        text_config=transformers.LlamaConfig(
            hidden_size=128, intermediate_size=256, num_hidden_layers=32, num_attention_heads=4, vocab_size=1000
        ),
        image_token_index=999,
    )
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config).eval()
    ids = torch.cat([torch.arange(1, 5), torch.full((144,), 999), torch.arange(5, 25)])[None]
    return model, {"input_ids": ids, "pixel_values": torch.rand(1, 3, 168, 168)}


#: What is measured, by name.
MODELS: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {"embedded llava": _embedded, "32 thin layers": _thin}


@torch.inference_mode()
def step_times(models: Sequence[Any], inputs: dict[str, Any], steps: int, rounds: int) -> list[list[float]]:
    """Per model, the CPU time of each decode step in microseconds.

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


def measure(name: str, steps: int, rounds: int) -> list[dict[str, Any]]:
    """Medians by setting, and their ratios to the stock model's. A second stock model shows the noise.

    Args:
        name: one of `MODELS`.
        steps: decode steps of a round.
        rounds: of all models.
    """
    model, inputs = MODELS[name]()
    names, models = ["stock", "stock again"], [model, copy.deepcopy(model)]
    for policy, keep in SETTINGS:
        setting = PruningSetting(policy, keep)
        names.append(str(setting))
        models.append(copy.deepcopy(model))
        setting.apply(models[-1])
    medians = [statistics.median(of_model) for of_model in step_times(models, inputs, steps, rounds)]
    return [
        {"model": name, "setting": setting, "us_per_token": round(median, 1), "ratio": round(median / medians[0], 4)}
        for setting, median in zip(names, medians, strict=True)
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100, help="decode steps of a round (default 100)")
    parser.add_argument("--rounds", type=int, default=20, help="rounds (default 20)")
    default = Path(__file__).parent / "results" / "decoding-embedded-cpu.json"
    parser.add_argument("--json", type=Path, default=default, help=f"where the figures go (default {default.name})")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = [row for name in MODELS for row in measure(name, args.steps, args.rounds)]
    write_json(args.json, {**describe("cpu"), "batch": 1, "steps": args.steps, "rounds": args.rounds, "rows": rows})
    table = Table("model", "setting", "us per token", "ratio")
    for row in rows:
        table.add_row(row["model"], row["setting"], f"{row['us_per_token']:.0f}", f"{row['ratio']:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
