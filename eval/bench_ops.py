"""Speed of the selection ops: `python -m tokenprune.eval.bench_ops`."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track

from ..ops import (
    attention_received,
    coverage_select,
    dpp_select,
    implementation,
    max_min_select,
    max_sum_select,
    topk_gather,
)
from .files import markdown_table, write_json
from .machine import describe, device_and_threads, dtype_name, pick_dtype

SIZES, WIDTHS, COUNTS, BATCHES = (576, 1280, 2880, 11_520), (1024, 4096), (64, 0.1, 0.25), (1, 8)
_LOOP_LIMIT = 2e9  # most elements that the reference loop may gather; larger sizes are left out
_BATCH_LIMIT = 5e7  # most elements of a batch of features on a CPU
RESULTS = Path(__file__).parent / "results"


def milliseconds(run: Callable[[], Any], device: torch.device, repeats: int = 7) -> float:
    """Median wall time of calls after a warm-up; on a GPU the first call compiles kernels and is not looked at.

    Args:
        run: what to call.
        device: waited for after each call.
        repeats: calls; three if the warm-up takes over 1 s, and only the warm-up if it takes over 5 s.
    """

    def once() -> float:
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 1e3 * (time.perf_counter() - started)

    if device.type == "cuda":
        once()
    first = once()
    if first > 5000:
        return first
    return statistics.median(once() for _ in range(repeats if first < 1000 else 3))


def sizes(device: torch.device) -> Iterator[dict[str, int]]:
    """Batch size, number of tokens, width and number of tokens selected."""
    for n in SIZES:
        for d in WIDTHS:
            for count in COUNTS:
                for batch in BATCHES:
                    if device.type == "cuda" or batch * n * d <= _BATCH_LIMIT:
                        yield {"B": batch, "N": n, "D": d, "k": count if isinstance(count, int) else round(count * n)}


@torch.inference_mode()
def greedy_row(device: torch.device, dtype: torch.dtype, B: int, N: int, D: int, k: int) -> dict[str, Any]:
    """Times of both greedy ops at one size, and of the reference loop, the Gram product alone and a copy.

    Args:
        device: where the features are.
        dtype: of the features.
        B: batch size.
        N: tokens per input.
        D: width of a token.
        k: tokens selected of each input.
    """
    generator = torch.Generator().manual_seed(N + D)
    features = torch.randn(B, N, D, generator=generator).to(device, dtype)
    first = torch.zeros(B, dtype=torch.int64, device=device)
    unit = F.normalize(features, dim=-1)
    row: dict[str, Any] = {"B": B, "N": N, "D": D, "k": k}
    row["max_min_ms"] = milliseconds(lambda: max_min_select(features, k), device)
    row["max_min_pivot_ms"] = milliseconds(lambda: max_min_select(features, k, first), device)
    row["max_sum_ms"] = milliseconds(lambda: max_sum_select(features, k, first), device)
    row["gram_ms"] = milliseconds(lambda: unit @ unit.mT, device)
    row["copy_ms"] = milliseconds(features.clone, device)
    row["reference_ms"] = None
    if B * N * k * k / 2 <= _LOOP_LIMIT:
        with implementation("reference"):
            row["reference_ms"] = milliseconds(lambda: max_min_select(features, k), device, 3)
    return row


@torch.inference_mode()
def other_row(device: torch.device, dtype: torch.dtype, n: int) -> dict[str, Any]:
    """Times of the other ops and their references at `n` tokens: a tenth of them selected by score, by volume and by
    coverage; attention received in a tower of 16 heads."""
    scores, features = torch.randn(1, n, device=device), torch.randn(1, n, 4096, device=device, dtype=dtype)
    query, key = (torch.randn(1, 16, n, 64, device=device, dtype=dtype) for _ in range(2))
    unit, k = F.normalize(features.float(), dim=-1), n // 10
    similarity, quality = unit @ unit.mT, scores.sigmoid()
    row: dict[str, Any] = {"N": n}
    for name in ("fast", "reference"):
        with implementation("reference" if name == "reference" else _fast(device)):
            row[f"topk_gather_{name}_ms"] = milliseconds(lambda: topk_gather(scores, features, k), device)
            row[f"dpp_{name}_ms"] = milliseconds(lambda: dpp_select(features, quality, k), device)
            row[f"coverage_{name}_ms"] = milliseconds(lambda: coverage_select(similarity, k, quality), device)
            row[f"attention_received_{name}_ms"] = milliseconds(lambda: attention_received(query, key), device)
    return row


#: The ops of the second table by the prefix of their times.
_OTHER = {
    "topk_gather": "topk_gather",
    "attention_received": "attention_received",
    "dpp": "dpp_select",
    "coverage": "coverage_select",
}


def _fast(device: torch.device) -> str:
    return "triton" if device.type == "cuda" else "host"


def measure(
    device: torch.device, dtype: torch.dtype, progress: Callable[[Iterable[Any]], Iterable[Any]] = iter
) -> dict[str, Any]:
    """Time the ops at all sizes.

    Args:
        device: where they run.
        dtype: of the features.
        progress: wraps the iteration over sizes.

    Returns:
        `{"machine", "dtype", "greedy": rows, "other": rows}` with median times in milliseconds.
    """
    return {
        "machine": describe(device),
        "dtype": dtype_name(dtype),
        "greedy": [greedy_row(device, dtype, **size) for size in progress(list(sizes(device)))],
        "other": [other_row(device, dtype, n) for n in SIZES[:3]],
    }


def table(results: dict[str, Any]) -> str:
    """The results in Markdown."""

    def cell(value: float | None) -> str:
        return "" if value is None else format(value, ".2f" if value < 10 else ".1f")

    machine = results["machine"]
    head = [
        f"{device_and_threads(machine)}, {results['dtype']}, torch {machine['torch']}; "
        "milliseconds, median of seven (three above 1 s, one above 5 s).",
        "",
    ]
    greedy = []
    for row in results["greedy"]:
        ratio = None if row["reference_ms"] is None else row["reference_ms"] / row["max_min_ms"]
        times = [row[f"{name}_ms"] for name in ("max_min", "max_min_pivot", "max_sum", "gram", "copy", "reference")]
        size = [str(row[name]) for name in ("B", "N", "D", "k")]
        greedy.append([*size, *map(cell, times), cell(ratio)])
    heads = ["B", "N", "D", "k", "`max_min`", "with a pivot", "`max_sum`"]
    heads += ["Gram product", "copy", "reference loop", "loop / op"]
    names = [f"{op}_{kind}_ms" for op in _OTHER for kind in ("fast", "reference")]
    # Results of earlier versions lack some of the ops.
    other = [[str(row["N"]), *(cell(row.get(name)) for name in names)] for row in results["other"]]
    other_heads = ["N", *(head for title in _OTHER.values() for head in (f"`{title}`", "its reference"))]
    lines = [
        *head,
        *markdown_table(heads, "r" * len(heads), greedy),
        "",
        *markdown_table(other_heads, "r" * len(other_heads), other),
    ]
    return "\n".join(lines) + "\n"


def write_docs(results: Path, docs: Path) -> None:
    """Write a page with the tables of all results files of a folder."""
    parts = [
        "# Speed of the selection ops\n\nWritten by `make bench` and `make bench-gpu`. `max_min` computes its "
        "first pick itself (DivPrune); `with a pivot`, the first pick is given. The reference loop is the definition "
        "in plain torch: each step gathers the similarities to all tokens picked so far. It is omitted where it would "
        "gather more than 2e9 of them.\n"
    ]
    for path in sorted(results.glob("ops-*.json")):
        parts.append(table(json.loads(path.read_text())))
    docs.write_text("\n".join(parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--dtype", help="default: float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--json", type=Path, help="default: eval/results/ops-DEVICE.json")
    parser.add_argument("--docs", type=Path, help="also write a Markdown page of all results beside that file")
    options = parser.parse_args()
    device = torch.device(options.device)
    results = measure(device, pick_dtype(options.dtype, device), lambda over: track(over, "sizes", transient=True))
    path = options.json or RESULTS / f"ops-{device.type}.json"
    write_json(path, results)
    Console().print(table(results))
    if options.docs:
        write_docs(path.parent, options.docs)


if __name__ == "__main__":
    main()
