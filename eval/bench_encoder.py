"""Time to the first token with the vision encoder included: `python -m tokenprune.eval.bench_encoder`.

A published model's shape with random weights encodes a picture and runs one prefill, full and pruned behind, before and
at both places, in turns within one run. Times are CPU time of a single thread, which other work on the machine does not
count in. Use as many layers of the vision encoder as have the whole model's share beside the decoder's.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ..api import pruning, pruning_report
from ..arguments import Keep
from ..patches.modules import base_of
from .files import write_json
from .machine import describe
from .profile import CONFIGS, shapes
from .profile.counting import count_flops
from .profile.pixels import Request
from .profile.vision_layers import with_vision_layers

#: By name: policies and budgets.
SETTINGS: dict[str, tuple[list[str], Keep]] = {
    "full": ([], None),
    "divprune 0.25": (["divprune"], 0.25),
    "divprune@pixels 0.25": (["divprune@pixels"], 0.25),
    "divprune@pixels + divprune 0.25": (["divprune@pixels", "divprune"], 0.25),
    "divprune@pixels 0.35 + divprune 0.25": (["divprune@pixels", "divprune"], [0.35, 0.25]),
}


@torch.inference_mode()
def measure(
    model: Any,
    inputs: Mapping[str, Tensor],
    rounds: int,
    settings: Mapping[str, tuple[list[str], Keep]] = SETTINGS,
) -> list[dict[str, Any]]:
    """Time prefills with a picture under each setting.

    Args:
        model: of a supported family, not pruned.
        inputs: one batch.
        rounds: each runs every setting once. FLOPs are counted in the first.
        settings: policies and budgets by name.

    Returns:
        for each setting: `seconds` and `vision_seconds`, medians of CPU time; `flops` and `vision_flops`, as torch
        counts them; `tokens`, what was left after each stage, of the first visual input.
    """
    base, spent = base_of(model), _Spent()
    original = base.get_image_features
    base.get_image_features = functools.update_wrapper(lambda *a, **k: spent.call(original, *a, **k), original)
    rows: dict[str, dict[str, Any]] = {name: {"setting": name, "times": [], "vision_times": []} for name in settings}
    try:
        model(input_ids=inputs["input_ids"][:, :4])  # once, so that weights are in memory
        for i in range(rounds):
            for name, (policies, keep) in settings.items():
                spent.seconds, spent.counts = 0.0, i == 0
                with contextlib.ExitStack() as stack:
                    if policies:
                        stack.enter_context(pruning(model, policies, keep))
                    counter = stack.enter_context(count_flops()) if i == 0 else None
                    started = time.thread_time()
                    model(**inputs, logits_to_keep=1)
                    rows[name]["times"].append(time.thread_time() - started)
                    rows[name]["vision_times"].append(spent.seconds)
                    if counter is not None:
                        rows[name] |= {"flops": counter.get_total_flops(), "vision_flops": spent.flops}
                    if policies:
                        rows[name]["tokens"] = pruning_report(model)[0].n_by_stage
    finally:
        del base.get_image_features
    for row in rows.values():
        row["seconds"] = round(statistics.median(row.pop("times")), 3)
        row["vision_seconds"] = round(statistics.median(row.pop("vision_times")), 3)
    return list(rows.values())


class _Spent:
    """CPU seconds and FLOPs of calls."""

    seconds = 0.0
    flops = 0
    counts = False

    def call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        with count_flops() if self.counts else contextlib.nullcontext() as counter:
            started = time.thread_time()
            output = function(*args, **kwargs)
            self.seconds += time.thread_time() - started
        self.flops = self.flops if counter is None else counter.get_total_flops()
        return output


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", choices=CONFIGS, default="qwen2.5-vl-7b", help="a published model's shape")
    parser.add_argument("--layers", type=int, default=3, help="decoder layers (default 3)")
    parser.add_argument("--vision-layers", type=int, default=3, help="layers of the vision encoder (default 3)")
    parser.add_argument("--image-size", type=int, default=1008, help="height and width (default 1008)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--json", type=Path, help="where the figures go")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    config = with_vision_layers(shapes.config_of(args.config, args.layers), args.vision_layers)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True  # memory; a prefill computes one logit
    cpu = torch.device("cpu")
    model = shapes.build(config, torch.float32, cpu, None)
    inputs = shapes.inputs(args.config, config, Request(side=args.image_size), cpu, torch.float32)
    rows = measure(model, inputs, args.rounds)
    names = ("config", "layers", "vision_layers", "image_size", "rounds")
    if args.json:
        write_json(args.json, {**describe("cpu"), **{name: getattr(args, name) for name in names}, "rows": rows})
    table = Table("setting", "tokens", "vision s", "first token s", "TFLOP")
    for row in rows:
        tokens = ", ".join(f"{n} after {stage}" for stage, n in row.get("tokens", {}).items()) or "all"
        numbers = (f"{row['vision_seconds']:.1f}", f"{row['seconds']:.1f}", f"{row['flops'] / 1e12:.2f}")
        table.add_row(row["setting"], tokens, *numbers)
    Console().print(table)


if __name__ == "__main__":
    main()
