"""What selection costs, by policy and number of visual tokens: `python -m tokenprune.eval.bench_policies`.

Each policy selects a tenth of random tokens, in a process of its own: CPU seconds on one thread, and the peak of
resident memory besides its inputs. Policies of the vision encoder and of the decoder make one cut.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.progress import track

from ..ops import attention_received
from ..policies import Policy, make_policy
from ..policies.registration import registry
from ..policies.run import run_policy
from ..policies.stages import Stage
from ..policies.types import DecoderView, TowerView, VisualTokens
from .files import markdown_table, write_json, write_section
from .machine import describe

SIZES = (576, 2880, 11_520, 16_384, 50_000)
QUICK_SIZES = (64, 144)
WIDTH, HEADS, HEAD_WIDTH, WORDS = 1024, 8, 64, 20
GRAM = "Gram product"  # a row beside the policies': all similarities of tokens, in float32, and nothing kept of them
RESULTS = Path(__file__).parent / "results" / "policies-cpu.json"


def visual_tokens(n: int, frames: int, generator: torch.Generator) -> VisualTokens:
    """Random tokens of one image, or of a video of eight frames, with all that policies read."""
    features = torch.randn(n, WIDTH, generator=generator)
    words = torch.randn(WORDS, WIDTH, generator=generator)
    in_frame = n // frames
    rows = max(i for i in range(1, int(in_frame**0.5) + 1) if in_frame % i == 0)
    return VisualTokens(
        features,
        grids=((frames, rows, in_frame // rows),),
        kind="image" if frames == 1 else "video",
        text=words,
        question=words,
        encoder_features=features,
        encoder_attention=torch.rand(n, generator=generator) ** 4,
        encoder_keys=torch.randn(n, HEAD_WIDTH, generator=generator),
        project=lambda x: x,
    )


def selection(name: str, n: int) -> Callable[[], Any]:
    """What is measured: a function that selects a tenth of `n` tokens.

    Args:
        name: of a policy, or `GRAM`.
        n: number of visual tokens.

    Raises:
        ValueError: for a policy that is not asked to choose tokens.
    """
    generator = torch.Generator().manual_seed(n)
    k = max(1, n // 10)
    if name == GRAM:
        x = torch.randn(n, WIDTH, generator=generator)
        return lambda: sum(float((part @ x.T)[0, 0]) for part in x.split(1024))
    policy = make_policy(name)
    if not {Stage.VISION, Stage.PIXELS}.isdisjoint(policy.stages):
        tokens = visual_tokens(n, 1 if policy.per_frame else 8, generator)
        return lambda: run_policy(policy, [tokens], [k])
    heads = {part: torch.randn(1, HEADS, n, HEAD_WIDTH, generator=generator) for part in ("query", "key", "value")}
    if Stage.DECODER in policy.stages:
        layer = policy.decoder_layers(32, 1)[-1]
        view = DecoderView(
            visual=[torch.arange(n - WORDS)],
            n_keep=[k],
            text=torch.arange(n - WORDS, n),
            last=n - 1,
            received=lambda rows: attention_received(heads["query"], heads["key"], rows)[0],
            keys=heads["key"][0].transpose(0, 1).flatten(1),
            hidden=lambda: x,
            embeds=lambda: x,
            layer=layer,
            n_layers=32,
            lowest=1,
            entered=[n - WORDS],
        )
        x = torch.randn(n, WIDTH, generator=generator)
        return lambda: policy.decoder_select_many([view])
    if type(policy).encoder_select is Policy.encoder_select:
        raise ValueError("resizes pictures, and chooses no tokens")
    tower = TowerView(
        hidden=torch.randn(1, n, WIDTH, generator=generator),
        **cast(dict[str, Any], heads),
        scaling=HEAD_WIDTH**-0.5,
        cls=False,
        sizes=torch.ones(1, n),
        cut=0,
        n_cuts=1,
        n_before=n,
        n_keep=k,
        memory={},
        before=torch.zeros(1, n, WIDTH),
    )
    return lambda: policy.encoder_select(dataclasses.replace(tower, memory={}))


def measure_here(name: str, n: int) -> dict[str, float]:
    """CPU seconds and MB of one policy at one size, after a small call: a mean over half a second of calls or more."""
    torch.set_num_threads(1)
    with torch.inference_mode():
        selection(name, 64)()
        run = selection(name, n)
        before = _peak()  # that of making the inputs, which are still held
        calls, seconds, started = 0, 0.0, time.process_time()
        while seconds < 0.5:
            run()
            calls, seconds = calls + 1, time.process_time() - started
    return {"seconds": round(seconds / calls, 6), "MB": round(max(0.0, _peak() - before))}


def _peak() -> float:
    """Largest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, n: int, seconds: int, gigabytes: int) -> dict[str, Any]:
    """`measure_here` in a process of its own; `{"why": ...}` where the policy cannot run within the limits.

    Args:
        name: of a policy, or `GRAM`.
        n: number of visual tokens.
        seconds: CPU time that it may take.
        gigabytes: memory that it may take.
    """

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        resource.setrlimit(resource.RLIMIT_DATA, (gigabytes << 30, gigabytes << 30))

    row: dict[str, Any] = {"policy": name, "N": n, "k": max(1, n // 10)}
    command = [sys.executable, "-W", "ignore", "-m", __spec__.name, "--one", name, str(n)]
    run = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    if run.returncode == 0:
        return row | json.loads(run.stdout)
    if run.returncode == -signal.SIGXCPU:
        return row | {"why": f"over {seconds} s"}
    last = (run.stderr.strip().splitlines() or [f"exit status {run.returncode}"])[-1]
    out_of_memory = run.returncode == -signal.SIGKILL or "alloc" in last.lower()
    return row | {"why": f"over {gigabytes} GB" if out_of_memory else last.partition(": ")[2] or last}


def table(results: dict[str, Any]) -> str:
    """The results in Markdown: a row for each policy, with seconds and MB at each size."""
    rows = results["rows"]
    sizes = sorted({row["N"] for row in rows})
    cells = {(row["policy"], row["N"]): _cell(row) for row in rows}
    names = list(dict.fromkeys(row["policy"] for row in rows))
    lines = markdown_table(
        ["", *(f"{n:,}" for n in sizes)],
        "l" + "r" * len(sizes),
        [
            [name if name == GRAM else f"`{name}`", *(cells.get((name, n), "not measured") for n in sizes)]
            for name in names
        ],
    )
    machine = results["machine"]
    head = (
        f"Seconds of CPU time and MB besides the inputs, by number of visual tokens ({WIDTH} wide, float32, random); "
        f"a tenth is kept. {machine['device']}, one thread, torch {machine['torch']}. Policies of the vision encoder "
        "and of the decoder: one cut."
    )
    return "\n".join([head, "", *lines]) + "\n"


def _cell(row: dict[str, Any]) -> str:
    return row["why"] if "why" in row else f"{_rounded(row['seconds'])} s, {row['MB']:.0f} MB"


def _rounded(seconds: float) -> str:
    return f"{seconds:.{4 if seconds < 0.1 else 2 if seconds < 10 else 0}f}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", help="comma-separated names (default: all)")
    parser.add_argument("--sizes", help=f"numbers of tokens (default {','.join(map(str, SIZES))})")
    parser.add_argument("--seconds", type=int, default=300, help="CPU time for each policy and size (default 300)")
    parser.add_argument("--gigabytes", type=int, default=8, help="memory for each policy and size (default 8)")
    parser.add_argument("--missing", action="store_true", help="only what has no result yet, to go on after a stop")
    parser.add_argument("--quick", action="store_true", help="two small sizes, to see that all policies run")
    parser.add_argument("--json", type=Path, default=RESULTS, help=f"results, added to (default {RESULTS.name})")
    parser.add_argument("--docs", type=Path, help="also write the table into this page")
    parser.add_argument("--one", nargs=2, metavar=("POLICY", "N"), help="measure in this process, and print JSON")
    args = parser.parse_args(argv)
    if args.one:
        sys.stdout.write(json.dumps(measure_here(args.one[0], int(args.one[1]))))
        return
    names = args.policy.split(",") if args.policy else [GRAM, *sorted(registry())]
    sizes = [int(n) for n in args.sizes.split(",")] if args.sizes else QUICK_SIZES if args.quick else SIZES
    rows = json.loads(args.json.read_text())["rows"] if args.json.exists() and not args.quick else []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    results = {"machine": describe("cpu"), "rows": rows}
    torch.set_num_threads(threads)
    done = {(row["N"], row["policy"]) for row in rows} if args.missing else set()
    cells = [(n, name) for n in sizes for name in names if (n, name) not in done]
    for n, name in track(cells, "policies", transient=True):
        rows[:] = [row for row in rows if (row["policy"], row["N"]) != (name, n)]
        rows.append(measure(name, n, args.seconds, args.gigabytes))
        rows.sort(key=lambda row: (row["policy"] != GRAM, row["policy"], row["N"]))
        write_json(args.json, results)
    Console().print(table(results))
    if args.docs:
        write_section(args.docs, "bench_policies", "Selection by number of tokens", table(results))


if __name__ == "__main__":
    main()
