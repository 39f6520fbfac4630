"""`tokenprune report`: evaluations, latency and images of kept tokens in one HTML file that needs no network."""

from __future__ import annotations

import argparse
import base64
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from ... import __version__
from ..files import check_file
from ..lmms.grid_report import primary
from ..machine import describe, device_and_threads
from ..pictures import fitted
from ..profile.report import MIB
from ..setting import FULL
from . import figures

_TEMPLATE = Path(__file__).parent / "template.html"


@dataclass(frozen=True)
class Shown:
    """A figure or image.

    Attributes:
        source: a data URI.
        text: describes it.
    """

    source: str
    text: str


def _svg(figure: Figure, text: str) -> Shown:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    return Shown("data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode(), text)


def _png(picture: np.ndarray, text: str) -> Shown:
    buffer = io.BytesIO()
    image = Image.fromarray(picture)
    image.resize(fitted(*image.size, 320)).save(buffer, format="png")
    return Shown("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(), text)


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        shown: its text.
        key: the value that its column is sorted by.
    """

    shown: str
    key: float | str


def _number(value: float | None, form: str) -> Cell:
    """A cell with a number; missing numbers sort last."""
    return Cell("", float("inf")) if value is None else Cell(format(value, form), value)


def evaluation(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Curves, Pareto plot and table of the rows of `tokenprune eval`, as the template takes them."""
    chosen = primary(rows)
    shown = [
        _svg(figure, f"{task}: {metric} by keep ratio") for task, metric, figure in figures.accuracy_by_keep(chosen)
    ]
    pareto = figures.pareto(chosen)
    if pareto is not None:
        text = "mean accuracy, as a share of the full model's, against speed; the line joins the best of both"
        shown.insert(0, _svg(pareto, text))
    heads = ["task", "metric", "policy", "keep", "value", "of full", "difference", "95 %", "kept", "samples/s"]
    table = [
        [
            *(Cell(str(row[name]), str(row[name])) for name in ("task", "metric", "policy")),
            Cell(row["keep"] or "", float(row["keep"]) if str(row["keep"]).replace(".", "").isdigit() else -1.0),
            _number(row["value"], ".4g"),
            _number(row.get("relative"), ".1%"),
            _number(row.get("difference"), "+.3f"),
            Cell("" if row.get("low") is None else f"{row['low']:+.3f} to {row['high']:+.3f}", row.get("low") or 0.0),
            _number(row["kept_tokens"] if row["policy"] != FULL else None, ".0f"),
            _number(row["samples_per_second"], ".2f"),
        ]
        for row in rows
    ]
    return {"figures": shown, "heads": heads, "table": table}


def latency(results: dict[str, Any]) -> dict[str, Any]:
    """Phases, savings and table of the results of `tokenprune profile`, as the template takes them."""
    rows, new_tokens = results["rows"], results["settings"]["new_tokens"]
    shown = [
        _svg(figures.phases(rows, new_tokens), "latency by phase"),
        _svg(figures.savings(rows), "share of the full prefill saved, by FLOPs and by the clock"),
    ]
    heads = [
        "policy",
        "keep",
        "kept",
        "vision ms",
        "select ms",
        "prefill ms",
        "ms/token",
        "KV MiB",
        "peak MiB",
        "saved",
    ]
    table = [
        [
            Cell(row["policy"], row["policy"]),
            _number(row["keep"] if row["policy"] != FULL else None, "g"),
            _number(row["kept"] if row["policy"] != FULL else None, "g"),
            *(_number(row[name], ".1f") for name in ("vision_ms", "select_ms", "prefill_ms", "decode_ms_per_token")),
            *(_number(row[name] / MIB, ".1f") for name in ("kv_cache_bytes", "peak_bytes")),
            _number(row["prefill_saving_realised"] if row["policy"] != FULL else None, ".1%"),
        ]
        for row in rows
    ]
    machine = results["machine"]
    title = f"{results['model']}, {results['layers']} decoder layers, {results['dtype'].removeprefix('torch.')}"
    note = f"{device_and_threads(machine)}, torch {machine['torch']}"
    verdicts = [f"{name}: {text}" for name, text in results.get("verdicts", {}).items()]
    return {"title": title, "note": note, "figures": shown, "heads": heads, "table": table, "verdicts": verdicts}


def gallery(options: argparse.Namespace, policies: Sequence[str], keep: float | int) -> Iterator[dict[str, Any]]:
    """Per image: the question, and an image of what each policy kept with its answer."""
    from .. import show

    for question, panels in show.rows(options, policies, [keep], Console(quiet=True)):
        shown = [_png(panel.picture, f"{panel.title} — {panel.answer or '(no answer)'}") for panel in panels]
        yield {"question": question, "pictures": shown}


def html(**parts: Any) -> str:
    """The page.

    Args:
        **parts: the variables of `template.html`, except the version.
    """
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(_TEMPLATE.read_text()).render(version=__version__, **parts)


def run(options: argparse.Namespace, console: Console) -> None:
    """Run the command.

    Raises:
        OSError: no such file or checkpoint.
        ValueError: a file that is not what the command that should have written it writes.
    """
    check_file(options.out, "--out")
    evaluations = [_read(_results(path), "an evaluation", "tokenprune eval") for path in options.eval]
    profiles = [_read(path, "a profile", "tokenprune profile --json") for path in options.profile]
    rows = [row for one in evaluations for row in one["rows"]]
    evaluated = list(dict.fromkeys(row["policy"] for row in rows if row["policy"] != FULL))
    policies = options.policy or evaluated or ["divprune", "random"]
    keep = options.keep[0]
    with console.status("looking at pictures"):
        pictures = [] if options.no_gallery else list(gallery(options, policies, keep))
    page = html(
        title=options.title,
        machine=describe(options.device),
        evaluations=[
            evaluation(one["rows"]) | {"models": sorted({row["model"] for row in one["rows"]})} for one in evaluations
        ],
        profiles=[latency(one) for one in profiles],
        gallery=pictures,
        keep=f"{keep:g}",
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(page, encoding="utf-8")
    console.print(f"Report: {options.out} ({len(page) / 1e6:.1f} MB)", highlight=False, soft_wrap=True)


def _results(path: Path) -> Path:
    return path / "results.json" if path.is_dir() else path


def _read(path: Path, what: str, command: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(content, dict) or not content.get("rows") or "machine" not in content:
        raise ValueError(f"{path} is not {what}: it should be what `{command}` writes")
    return content
