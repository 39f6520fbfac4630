"""Decoding speed under dynamic and static caches: `python -m tokenprune.eval.bench_caches`.

With a static cache, transformers compiles the decode step on a GPU and replays it as a CUDA graph. On a CPU nothing is
compiled. The model has a published shape and random weights. One setting is measured after the other, since pruning
hangs hooks on a model, and what was compiled before is compiled anew.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..api import pruning
from .files import write_json
from .machine import describe, dtype_name, pick_device, pick_dtype
from .profile import shapes
from .profile.counting import now

#: Kinds of cache, as `generate(cache_implementation=...)` takes them; None is its default, which grows.
CACHES: tuple[str | None, ...] = (None, "static")


@torch.inference_mode()
def milliseconds(model: Any, inputs: dict[str, Any], tokens: int, cache: str | None, device: torch.device) -> float:
    """Milliseconds of a `generate` of exactly that many new tokens."""
    started = now(device)
    model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, cache_implementation=cache)
    return now(device) - started


def measure(
    model: Any, inputs: dict[str, Any], settings: Sequence[tuple[str, float]], tokens: int, rounds: int
) -> list[dict[str, Any]]:
    """Medians by cache and setting: milliseconds per new token, without the prefill.

    The time of one token is that of `tokens` + 1 new tokens less that of one, divided by `tokens`.

    Args:
        model: a vision-language model without pruning.
        inputs: one batch.
        settings: policies and keep ratios; keep 1.0 is the stock model.
        tokens: new tokens that are timed.
        rounds: of each cache and setting, after two that are not counted.

    Returns:
        One row per cache and setting: `cache`, `policy`, `keep`, `ms_per_token`, and `ratio` to the stock model with
        the same cache.
    """
    device = model.device
    medians: dict[tuple[str | None, str, float], float] = {}
    each = [(cache, policy, keep) for policy, keep in settings for cache in CACHES]
    for cache, policy, keep in track(each, description="decoding", transient=True):
        found = []
        with pruning(model, policy, keep):
            for turn in range(-2, rounds):
                # The longer one first: a static cache that is large enough is used again.
                long = milliseconds(model, inputs, tokens + 1, cache, device)
                short = milliseconds(model, inputs, 1, cache, device)
                if turn >= 0:
                    found.append((long - short) / tokens)
        medians[cache, policy, keep] = statistics.median(found)
    stock = {cache: next(ms for (c, _, keep), ms in medians.items() if c == cache and keep == 1.0) for cache in CACHES}
    return [
        {
            "cache": cache or "dynamic",
            "policy": policy,
            "keep": keep,
            "ms_per_token": round(ms, 3),
            "ratio": round(ms / stock[cache], 4),
        }
        for (cache, policy, keep), ms in medians.items()
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", choices=sorted(shapes.SHAPES), default="llava-1.5-7b", help="a model's shape")
    parser.add_argument("--layers", type=int, metavar="N", help="decoder layers (default: all)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="rows (default: 1)")
    parser.add_argument("--policy", default="divprune", help="policy (default: divprune)")
    parser.add_argument("--keep", type=float, default=0.25, help="keep ratio (default: 0.25)")
    parser.add_argument("--new-tokens", type=int, default=64, metavar="N", help="tokens that are timed (default: 64)")
    parser.add_argument("--rounds", type=int, default=5, help="repeats to take medians of (default: 5)")
    parser.add_argument("--device", help="default cuda if there is one")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default by device")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args(argv)
    device = pick_device(args.device)
    dtype = pick_dtype(args.dtype, device)
    config = shapes.config_of(args.config, args.layers)
    request = shapes.Request(args.batch)
    inputs = shapes.inputs(args.config, config, request, device, dtype)
    model = shapes.build(config, dtype, device, None)
    rows = measure(model, inputs, [(args.policy, 1.0), (args.policy, args.keep)], args.new_tokens, args.rounds)
    if args.json:
        head = {"model": args.config, "layers": config.get_text_config().num_hidden_layers, "batch": args.batch}
        write_json(args.json, {**describe(device), **head, "dtype": dtype_name(dtype), "rows": rows})
    table = Table("cache", "policy", "keep", "ms per token", "ratio")
    for row in rows:
        table.add_row(*(str(row[key]) for key in ("cache", "policy", "keep", "ms_per_token", "ratio")))
    Console().print(table)


if __name__ == "__main__":
    main()
