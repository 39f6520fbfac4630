"""`tokenprune report`: benchmarks, evaluations, latency and pictures of kept tokens in one HTML file that needs no
network."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ... import __version__
from .. import curves
from ..errors import CommandError
from ..files import check_file
from ..machine import describe, device_and_threads
from ..setting import PruningSetting
from . import answer, inputs, measured, tables, tuned
from .charts import Charts
from .gallery import gallery
from .measured import Results

_TEMPLATE = Path(__file__).parent / "template.html"
#: In the gallery, unless policies are named: this many of the best, and random tokens.
_IN_GALLERY = 4


def accuracy(results: Results, charts: Charts) -> dict[str, Any]:
    """Answer, chart and tables of a benchmark or an evaluation, as the template takes them."""
    shown = [("By task", tables.by_task(results))] if len(results.metrics) > 1 else []
    if any("metric" in row for row in results.rows):
        shown.append(("All metrics", tables.all_metrics(results)))
    return {
        "title": results.title,
        "note": results.note,
        "answer": answer.of_results(results),
        "chart": charts.accuracy(results),
        "table": tables.settings(results),
        "more": shown,
    }


def latency(results: dict[str, Any], charts: Charts) -> dict[str, Any]:
    """Answer, charts and table of the results of `tokenprune profile`, as the template takes them."""
    rows, new_tokens = results["rows"], results["settings"]["new_tokens"]
    machine = results["machine"]
    title = f"{results['model']}, {results['layers']} decoder layers, {results['dtype'].removeprefix('torch.')}"
    return {
        "title": title,
        "note": f"{device_and_threads(machine)}, torch {machine['torch']}",
        "answer": answer.of_profile(title, rows, new_tokens),
        "charts": [charts.phases(rows, new_tokens), charts.savings(rows)],
        "table": tables.latency(rows),
        "verdicts": [f"{name}: {text}" for name, text in results.get("verdicts", {}).items()],
    }


def html(**parts: Any) -> str:
    """The page.

    Args:
        **parts: the variables of `template.html`, except the version.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_TEMPLATE.read_text()).render(version=__version__, **parts)


def run(options: argparse.Namespace, console: Console) -> None:
    """Run the command.

    Raises:
        CommandError: there is no input, or a file is not what the command that should have written it writes.
        OSError: no such picture or checkpoint.
        ValueError: a policy that the gallery's model does not support.
    """
    check_file(options.out, "--out")
    if options.no_gallery and not (options.bench or options.eval or options.profile or options.tune):
        raise CommandError("nothing to report: give --bench, --eval or --profile, or --tune, or leave out --no-gallery")
    benches = [inputs.read(path, inputs.BENCH) for path in options.bench]
    evaluations = [inputs.read(path, inputs.EVAL) for path in options.eval]
    profiles = [inputs.read(path, inputs.PROFILE) for path in options.profile]
    tunings = [tuned.read(path) for path in options.tune]
    found = [results for one in benches for results in measured.of_bench(one["rows"])]
    found += [results for one in evaluations for results in measured.of_eval(one["rows"])]
    with console.status("looking at pictures"):
        policies = options.policy or _interesting(found)
        pictures = None if options.no_gallery else gallery(options, policies, options.keep)
    charts = Charts()
    page = html(
        title=options.title,
        machine=describe(options.device),
        accuracy=[accuracy(results, charts) for results in found],
        latency=[latency(one, charts) for one in profiles],
        tuned=[tuned.section(one, charts) for one in tunings],
        gallery=pictures,
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(page, encoding="utf-8")
    console.print(f"Report: {options.out} ({len(page) / 1e6:.1f} MB)", highlight=False, soft_wrap=True)


def _interesting(found: Sequence[Results]) -> list[str]:
    """Policies for the gallery: the best of those that were measured, and random tokens if they were."""
    plots = [plot for plot in (results.plot(label_all=True) for results in found) if plot is not None]
    every = list(dict.fromkeys(each.policy for results in found for each in results.pruned))
    usable = [name for name in every if name != "downsample" and _known(name)]  # those are smaller images, not pruned
    if len(usable) <= _IN_GALLERY:
        return usable or ["divprune", "random"]
    ranked = [curve.name for plot in plots for curve in curves.best(plot.curves, len(plot.curves))]
    chosen = [name for name in dict.fromkeys([*ranked, *usable]) if name in usable and name != "random"][:_IN_GALLERY]
    return chosen + ["random"] * ("random" in usable)


def _known(policy: str) -> bool:
    """Whether a policy that was measured, perhaps elsewhere, is there."""
    try:
        PruningSetting(policy, 0.5)
    except ValueError:
        return False
    return True
