"""`tokenprune tune`: reads prompts, tunes, writes the recipe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import TaskID

from ..checkpoints import load_checkpoint
from ..files import check_different, check_file, check_folder, picture_suffixes, write_json
from ..machine import pick_device, pick_dtype
from ..progress import progress_bar
from . import Options, Tuned
from .display import draw, table, verdict
from .readers import read_prompts, some_of
from .tuning import Tuning
from .workers import Workers

RESULTS = "results.json"


class _Bar:
    """Shows the steps of tuning with the time left."""

    def __init__(self, console: Console):
        self.progress = progress_bar(console)
        self._task: TaskID | None = None

    def begin(self, step: str, total: int) -> None:
        """A step begins; the one before it is done, with fewer prompts perhaps than it could have taken."""
        if self._task is not None:
            done = self.progress.tasks[self._task].completed
            self.progress.update(self._task, total=done)
        self._task = self.progress.add_task(step, total=total)

    def advance(self, count: int) -> None:
        """So many prompts were asked."""
        if self._task is not None:
            self.progress.advance(self._task, count)


def run(options: argparse.Namespace, console: Console) -> Tuned:
    """Run the command.

    Raises:
        CommandError: a file that cannot be read or written, prompts that cannot be asked, no policy that can act.
        SystemExit: with status 1 if nothing could be certified.
    """
    check_different(out=options.out, plot=options.plot)
    check_file(options.out, "--out", (".json",))
    check_file(options.plot, "--plot", picture_suffixes() if options.plot else ())
    check_folder(options.work, "--work", (RESULTS,))
    given = Options(
        tolerance=options.tolerance,
        confidence=options.confidence,
        policies=options.policy,
        keeps=options.keep,
        positions=options.positions,
        metric=options.metric,
        cost=options.cost,
        minutes=options.minutes,
        batch=options.batch_size,
        new_tokens=options.new_tokens,
        frames=options.frames,
    )
    prompts = some_of(read_prompts(options.data, options.question), options.samples, given.seed)
    workers = Workers.found()
    shown = console if workers.leads else Console(quiet=True)
    device = workers.device if workers.count > 1 else pick_device(options.device)
    device_map = options.device_map if workers.count == 1 else None
    model, processor = load_checkpoint(
        options.model, pick_dtype(options.dtype, device), device, options.attn, device_map
    )
    bar = _Bar(shown)
    with bar.progress:
        tuned = Tuning(model, processor, prompts, given, options.work, bar).run()
    if workers.leads:
        _report(options, tuned, shown)
    if tuned.recipe is None:
        raise SystemExit(1)
    return tuned


def _report(options: argparse.Namespace, tuned: Tuned, console: Console) -> None:
    """Write the files, and tell what was found."""
    console.print(table(tuned))
    for text in (*tuned.notes, *verdict(tuned)):
        console.print(text, highlight=False, soft_wrap=True)
    written: list[Path] = [options.work / RESULTS]
    write_json(written[0], _results(options, tuned))
    if options.plot is not None:
        draw(options.plot, tuned.measured["tested"], tuned.options.tolerance, tuned.options.cost)
        written.append(options.plot)
    if tuned.recipe is not None:
        tuned.recipe.write(options.out)
        written.append(options.out)
    console.print(f"written: {', '.join(map(str, written))}", highlight=False, soft_wrap=True)


def _results(options: argparse.Namespace, tuned: Tuned) -> dict[str, Any]:
    """What the report reads, whether or not there is a recipe."""
    return {
        "tune": 1,
        "model": options.model,
        "source": str(options.data),
        "metric": tuned.options.metric,
        "tolerance": tuned.options.tolerance,
        "confidence": tuned.options.confidence,
        "unit": tuned.options.cost,
        "prompts": tuned.prompts,
        "tested_prompts": tuned.tested,
        "verdict": list(verdict(tuned)),
        **tuned.measured,
    }
