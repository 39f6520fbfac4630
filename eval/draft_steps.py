"""Steps of a model and of its draft on the KV cache of a long video.

The language model of a published shape has random weights, and its KV cache random values, so nothing is encoded and no
prefill is run. Times on a CPU are CPU time of a single thread.

How many proposals would be accepted cannot be measured there: random weights say nothing about that. What can be
measured is what a step reads and how long it takes, and so how many proposals of a round would have to be accepted for
a draft to pay.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..patches.cache import cache_name
from ..patches.families.registry import family_of
from ..patches.modules import base_of, text_model_of
from .errors import CommandError
from .files import write_json
from .machine import describe, dtype_name, pick_device, pick_dtype
from .profile import shapes
from .profile.counting import now


@dataclass(frozen=True)
class Reads:
    """Bytes that a decode step of one row reads.

    Attributes:
        weights: of decoder layers and head.
        kv_per_token: of the KV cache for each column.
    """

    weights: int
    kv_per_token: int

    @classmethod
    def of(cls, name: str, dtype: torch.dtype) -> Reads:
        """Those of a published shape at full depth."""
        model = shapes.without_weights(shapes.config_of(name, None))
        layers = text_model_of(base_of(model), family_of(model)).layers
        config = model.config.get_text_config()
        parameters = sum(each.numel() for each in layers.parameters()) + model.get_output_embeddings().weight.numel()
        columns = 2 * config.num_hidden_layers * config.num_key_value_heads * _head_dim(config)
        return cls(parameters * dtype.itemsize, columns * dtype.itemsize)


def _head_dim(config: Any) -> int:
    given = getattr(config, "head_dim", None)
    return int(config.hidden_size // config.num_attention_heads if given is None else given)


def filled_cache(text: Any, columns: int) -> Any:
    """A KV cache of one row with random values in all layers of a text model."""
    config, weight = text.config, next(text.parameters())
    cache = transformers.DynamicCache(config=config)
    shape = (1, config.num_key_value_heads, columns, _head_dim(config))
    for layer in range(len(text.layers)):
        keys, values = (torch.randn(shape, dtype=weight.dtype, device=weight.device) for _ in range(2))
        cache.update(keys, values, layer)
    return cache


def _clock(device: torch.device) -> float:
    """Milliseconds: of CPU time on a CPU, after all that is queued on another device."""
    return 1e3 * time.thread_time() if device.type == "cpu" else now(device)


@torch.inference_mode()
def milliseconds(text: Any, columns: int, new: int, rounds: int) -> float:
    """Median milliseconds of a call of a text model with `new` tokens on a KV cache of so many columns."""
    device = next(text.parameters()).device
    cache, ids = filled_cache(text, columns), torch.full((1, new), 7, device=device)
    found = []
    for turn in range(-2, rounds):
        started = _clock(device)
        text(input_ids=ids, use_cache=True, **{cache_name(): cache})
        if turn >= 0:
            found.append(_clock(device) - started)
        cache.crop(-new if cache_name() == "cache" else columns)
    return statistics.median(found)


def measure(
    text: Any, reads: Reads, videos: Sequence[int], keeps: Sequence[float], proposals: int, rounds: int
) -> list[dict[str, Any]]:
    """Steps of the model on videos, and of drafts that keep a part of their tokens.

    Args:
        text: a text model.
        reads: what its published shape reads.
        videos: visual tokens of each video.
        keeps: keep ratios of drafts.
        proposals: tokens that a draft proposes at once.
        rounds: steps to take medians of, after two that are not counted.

    Returns:
        A row for each video and keep ratio: `kv_bytes` and `bytes` (with weights) of a draft's step, `full_kv_bytes`
        and `full_bytes` of the model's; `draft_ms`, `full_ms`, and `check_ms` of a call of the model over all
        proposals; `breaks_even_by_bytes` and `breaks_even`, how many proposals of a round have to be accepted for the
        draft to pay, by bytes and by time. More than `proposals` says that it cannot pay.
    """
    rows = []
    for tokens in videos:
        full, whole = milliseconds(text, tokens, 1, rounds), reads.weights + tokens * reads.kv_per_token
        checked = milliseconds(text, tokens, proposals + 1, rounds)
        for keep in track(keeps, description=f"{tokens} visual tokens", transient=True):
            kept = max(1, round(keep * tokens))
            step, kv = milliseconds(text, kept, 1, rounds), kept * reads.kv_per_token
            by_bytes = proposals * (reads.weights + kv) / whole  # a check reads what a step reads
            by_time = (proposals * step + checked) / full - 1
            rows.append(
                {
                    "visual_tokens": tokens,
                    "keep": keep,
                    "kv_bytes": kv,
                    "bytes": reads.weights + kv,
                    "full_kv_bytes": tokens * reads.kv_per_token,
                    "full_bytes": whole,
                    "draft_ms": round(step, 3),
                    "full_ms": round(full, 3),
                    "check_ms": round(checked, 3),
                    "breaks_even_by_bytes": round(by_bytes, 2),
                    "breaks_even": round(by_time, 2),
                }
            )
    return rows


def table_of(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows of `measure` as they are printed."""
    table = Table(
        "visual tokens", "keep", "GB a draft's step", "GB a step", "draft ms", "full ms", "check ms", "pays from"
    )
    for row in rows:
        table.add_row(
            f"{row['visual_tokens']:,}",
            f"{row['keep']:g}",
            f"{row['bytes'] / 1e9:.1f} ({row['kv_bytes'] / 1e9:.2f} KV)",
            f"{row['full_bytes'] / 1e9:.1f} ({row['full_kv_bytes'] / 1e9:.2f} KV)",
            *(f"{row[name]:.1f}" for name in ("draft_ms", "full_ms", "check_ms")),
            f"{row['breaks_even_by_bytes']:.1f} by bytes, {row['breaks_even']:.1f} by time",
        )
    return table


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command that are about steps."""
    given = parser.add_argument_group("steps on the KV cache of a long video, random weights")
    given.add_argument("--config", choices=sorted(shapes.SHAPES), help="a published model's shape")
    given.add_argument("--layers", type=int, default=2, metavar="N", help="decoder layers that are timed (default: 2)")
    given.add_argument("--visual-tokens", default="12544,50176", help="of videos (default: 12544,50176)")
    given.add_argument("--rounds", type=int, default=5, help="steps to take medians of (default: 5)")
    given.add_argument("--device", help="default cuda if there is one")
    given.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default by device")


def run(args: argparse.Namespace, keeps: Sequence[float]) -> None:
    """Measure steps as the options say, print them, and write them to `--json`.

    Raises:
        CommandError: for visual tokens that are no numbers.
    """
    try:
        videos = [int(each) for each in args.visual_tokens.split(",")]
    except ValueError:
        raise CommandError(f"--visual-tokens {args.visual_tokens}: numbers, comma-separated, are accepted") from None
    torch.set_num_threads(1)
    device = pick_device(args.device)
    dtype = pick_dtype(args.dtype, device)
    config = shapes.config_of(args.config, args.layers)
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = True  # memory; no logits are computed
    model = shapes.build(config, dtype, device, None)
    reads = Reads.of(args.config, torch.bfloat16)
    text = text_model_of(base_of(model), family_of(model))
    rows = measure(text, reads, videos, keeps, args.proposals, args.rounds)
    if args.json:
        head = {"config": args.config, "layers": args.layers, "dtype": dtype_name(dtype), "proposals": args.proposals}
        write_json(args.json, {**describe(device), **head, "rows": rows})
    Console().print(f"Bytes: bfloat16, all layers. Times: {args.layers} layers, {dtype_name(dtype)}, {device}.")
    Console().print(table_of(rows))
