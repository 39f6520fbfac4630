"""Figures published in papers, as data: `METHOD_OR_PAPER/MODEL.json`.

A file has `model` (the checkpoint), `visual_tokens` of the full model, and `sources`. A source has `paper`,
`arxiv` (or null), `table`, `setting`, optionally `metrics` (by task, the harness's metrics whose sum is the printed
score, where that is not the primary one), optionally `full` (the full model's scores), and `rows` with `method`,
`tokens` (null where not printed; `keep` may say instead), `scores` by task of lmms-eval, as printed, and
`relative_average` in percent of the full model.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ..setting import FULL

_FOLDER = Path(__file__).parent
#: Tasks whose scores papers print as the harness gives them. Of other tasks the harness gives fractions and papers
#: print percentages.
_SAME_SCALE = ("mme", "mmbench_en_dev", "mmbench_cn_dev", "coco2014_cap_val", "flickr30k_test", "nocaps_val")
NOT_MEASURED = "not measured"


def available() -> list[str]:
    """Names of published figures, such as `divprune/llava-1.5-7b`."""
    return sorted(f"{path.parent.name}/{path.stem}" for path in _FOLDER.glob("*/*.json"))


def load(name: str) -> dict[str, Any]:
    """Published figures by name, such as `divprune/llava-1.5-7b`: the file's content and `name`.

    Raises:
        ValueError: there are none of that name; the message lists those there are.
    """
    if name not in available():
        close = difflib.get_close_matches(name, available(), 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ValueError(f"no published figures {name!r}.{hint} There are: {', '.join(available())}")
    figures: dict[str, Any] = json.loads((_FOLDER / f"{name}.json").read_text())
    return figures | {"name": name}


def table(figures: dict[str, Any], rows: Sequence[dict[str, Any]]) -> Table:
    """Published scores and ours side by side.

    Args:
        figures: of `load`.
        rows: of `grid_report.rows`.
    """
    out = Table(title=f"{figures['name']}: {figures['model']}", caption=_caption(figures), caption_justify="left")
    for name in ("source", "method", "tokens", "task", "published", "ours"):
        out.add_column(name, justify="right" if name in ("tokens", "published", "ours") else "left")
    for line in compared(figures, rows):
        ours = NOT_MEASURED if line["ours"] is None else f"{line['ours']:.4g}"
        out.add_row(line["source"], line["method"], line["tokens"], line["task"], f"{line['published']:g}", ours)
    return out


def _caption(figures: dict[str, Any]) -> str:
    notes = [f"{s['paper']}, {s['table']}: {s['setting']}." for s in figures["sources"]]
    return "\n".join(([figures["note"]] if "note" in figures else []) + notes)


def compared(figures: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line per published score.

    Returns:
        Dictionaries of `source`, `method`, `tokens`, `task`, `published` and `ours`, which is None if this model was
        not run with this method, number of tokens and task.
    """
    lines = []
    for source in figures["sources"]:
        full = (
            [{"method": FULL, "tokens": figures["visual_tokens"], "scores": source["full"]}] if "full" in source else []
        )
        for row in full + source["rows"]:
            scores = row.get("scores", {}) | ({"average": row["relative_average"]} if "relative_average" in row else {})
            for task, score in scores.items():
                keep = f"{row['keep']:.1%}" if row.get("keep") else ""
                lines.append(
                    {
                        "source": source["paper"].split(",")[0],
                        "method": row["method"],
                        "tokens": str(row["tokens"] or keep),
                        "task": "% of full" if task == "average" else task,
                        "published": score,
                        "ours": _ours(figures, source, row, task, rows),
                    }
                )
    return lines


def _ours(
    figures: dict[str, Any], source: dict[str, Any], row: dict[str, Any], task: str, rows: Sequence[dict[str, Any]]
) -> float | None:
    from ..lmms.grid_report import primary

    if task == "average":  # ours would be a mean over other tasks
        return None
    candidates = [r for r in rows if _same_model(r["model"], figures["model"]) and _same_setting(figures, row, r)]
    metrics = source.get("metrics", {}).get(task)
    if metrics is None:
        values = [r["value"] for r in primary(candidates) if r["task"] == task][:1]
    else:
        by_metric = {r["metric"]: r["value"] for r in candidates if r["task"] == task}
        values = [by_metric[m] for m in metrics if m in by_metric]
        values = values if len(values) == len(metrics) else []
    return sum(values) * (1 if task in _SAME_SCALE else 100) if values else None


def _same_model(ours: str, published: str) -> bool:
    return Path(ours).name == Path(published).name


def _same_setting(figures: dict[str, Any], row: dict[str, Any], ours: dict[str, Any]) -> bool:
    """Whether a row of ours has the same method, and the same number of tokens within two percent."""
    method = "".join(c for c in row["method"].lower() if c.isalnum())
    if not method.startswith(ours["policy"]):
        return False
    if ours["policy"] == FULL:
        return True
    kept, full = ours["kept_tokens"], figures["visual_tokens"]
    wanted = row["tokens"] or (row["keep"] * full if row.get("keep") and full else 0)
    return bool(kept and wanted) and abs(kept - wanted) <= 0.02 * wanted
