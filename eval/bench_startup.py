"""What starting costs: `python -m tokenprune.eval.bench_startup`.

CPU seconds of fresh processes that import something, or run a command that only prints.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from .files import markdown_table, write_json, write_section
from .machine import describe

RESULTS = Path(__file__).parent / "results" / "startup-cpu.json"
#: Arguments of Python, by what a row is called.
STARTS = {
    "`python -c pass`": ("-c", "pass"),
    "`import torch`": ("-c", "import torch"),
    "`import tokenprune`": ("-c", "import tokenprune"),
    "`from tokenprune import apply_pruning`": ("-c", "from tokenprune import apply_pruning"),
    "`tokenprune --help`": ("-m", "tokenprune", "--help"),
    "`tokenprune policies`": ("-m", "tokenprune", "policies"),
    "`tokenprune models`": ("-m", "tokenprune", "models"),
}


def cpu_seconds(arguments: Sequence[str]) -> float:
    """CPU seconds, user and system, of a Python process with these arguments.

    Raises:
        subprocess.CalledProcessError: it fails.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def table(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    machine = results["machine"]
    lines = markdown_table(["", "CPU s"], "lr", [[row["start"], f"{row['seconds']:.2f}"] for row in results["rows"]])
    versions = f"torch {machine['torch']}, transformers {machine['transformers']}"
    head = f"CPU seconds of a fresh process, medians of {results['rounds']}. {machine['device']}, {versions}."
    return "\n".join([head, "", *lines]) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="processes of each row (default 5)")
    parser.add_argument("--json", type=Path, default=RESULTS, help=f"where the figures go (default {RESULTS.name})")
    parser.add_argument("--docs", type=Path, help="also write the table into this page")
    args = parser.parse_args(argv)
    times: dict[str, list[float]] = {name: [] for name in STARTS}
    for _ in track(range(args.rounds), "start-up", transient=True):  # in turns: a slow moment of the machine meets all
        for name, arguments in STARTS.items():
            times[name].append(cpu_seconds(arguments))
    rows = [{"start": name, "seconds": round(statistics.median(of_one), 4)} for name, of_one in times.items()]
    results = {"machine": describe("cpu"), "rounds": args.rounds, "rows": rows}
    write_json(args.json, results)
    Console().print(table(results))
    if args.docs:
        write_section(args.docs, "bench_startup", "Start-up", table(results))


if __name__ == "__main__":
    main()
