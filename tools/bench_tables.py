"""Makes the tables of docs/bench.md from the committed results."""

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tokenprune.eval import minivlm
from tokenprune.eval.minivlm.qwen_pages.questions import CLIP_TYPES, PAGE_TYPES

_FOLDER = Path(__file__).parents[1] / "docs" / "bench"
#: What the tables call the embedded models.
_HEADS = {"llava": "LLaVA", "qwen": "Qwen2.5-VL", "qwen3": "Qwen3-VL", "easy-vqa": "easy-VQA"}
NAMES = [name for name in minivlm.NAMES if name in _HEADS and (_FOLDER / name).is_dir()]
_PAGES = _FOLDER / "qwen-pages"
#: The budgets that have a table.
BUDGETS = (0.5, 0.25, 0.1, 0.05)


def rows(model: str, file: str = "results") -> list[dict[str, str]]:
    """The rows of a results file that are means over all tasks."""
    with (_FOLDER / model / f"{file}.csv").open() as lines:
        return [row for row in csv.DictReader(lines) if row["task"] == "all"]


def budget(keep: float) -> str:
    """One row per policy at a budget, the best mean over the models first.

    What is not worse than `auto` beyond chance is bold. Policies that cannot reach the budget on a model have an empty
    cell there, and are ordered behind those that can.
    """
    found = {(m, r["policy"]): r for m in NAMES for r in rows(m) if float(r["keep"]) == keep and r["policy"] != "full"}
    means: dict[str, tuple[int, float]] = {}
    for policy in {policy for _, policy in found}:
        scores = [100 * float(found[m, policy]["exact_match"]) for m in NAMES if (m, policy) in found]
        means[policy] = (len(scores), sum(scores) / len(scores))
    policies = sorted(means, key=lambda policy: (-means[policy][0], -means[policy][1], policy))

    def cell(row: dict[str, str] | None) -> str:
        if row is None:
            return ""
        score = f"{100 * float(row['exact_match']):.1f}"
        behind = row["policy"] != "auto" and float(row["vs_auto_high"] or -1) < 0
        return score if behind else f"**{score}**"

    def mean(policy: str) -> str:
        n, value = means[policy]
        return f"{value:.1f}" if n == len(NAMES) else ""

    heads = " | ".join(_HEADS[model] for model in NAMES)
    lines = [f"| `{p}` | {' | '.join(cell(found.get((m, p))) for m in NAMES)} | {mean(p)} |" for p in policies]
    return "\n".join([f"| | {heads} | mean |", "|---|" + "--:|" * (len(NAMES) + 1), *lines])


def lead(keeps: tuple[float, ...] = (0.25, 0.1)) -> str:
    """`auto` beside the best other policy of each model, with the paired difference."""
    lines = []
    for model in NAMES:
        pruned = {(r["policy"], float(r["keep"])): r for r in rows(model) if r["policy"] != "full"}
        whole = next(100 * float(r["exact_match"]) for r in rows(model) if r["policy"] == "full")
        for keep in keeps:
            others = [row for (policy, at), row in pruned.items() if at == keep and policy != "auto"]
            other = max(others, key=lambda row: (float(row["exact_match"]), row["policy"]))
            ours, theirs = (100 * float(row["exact_match"]) for row in (pruned["auto", keep], other))
            gain, high, low = (round(-100 * float(other[f"vs_auto{end}"]), 1) + 0.0 for end in ("", "_low", "_high"))
            lines.append(
                f"| {_HEADS[model]}, {other['n']} questions | {keep:g} | {ours:.1f} | `{other['policy']}` {theirs:.1f} "
                f"| {gain:+.1f} [{low:+.1f}, {high:+.1f}] | {whole:.1f} |"
            )
    heads = "| | keep | `auto` | best other policy | `auto` is ahead by | full model |"
    return "\n".join([heads, "|---|--:|--:|--:|--:|--:|", *lines])


def full() -> str:
    """The full models: questions, visual tokens per question and exact match."""
    lines = []
    for model in NAMES:
        row = next(r for r in rows(model) if r["policy"] == "full")
        score, tokens = 100 * float(row["exact_match"]), float(row["visual_tokens"])
        lines.append(f"| {_HEADS[model]} | {row['n']} | {tokens:.0f} | {score:.1f} | {_files(model)} |")
    return "\n".join(["| | questions | visual tokens | exact match | |", "|---|--:|--:|--:|---|", *lines])


def _files(model: str) -> str:
    there = {"all figures": "results.md", "CSV": "results.csv", "by task": "tasks.png", "curves": "curves.png"}
    return ", ".join(f"[{text}](bench/{model}/{name})" for text, name in there.items())


def pages() -> str:
    """The model for pages: policies by budget, the best first, with means over tasks of a kind."""
    with (_PAGES / "results.csv").open() as lines:
        found = list(csv.DictReader(lines))
    settings: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for row in found:
        settings.setdefault((row["policy"], row["keep"]), {})[row["task"]] = row
    kinds = (PAGE_TYPES, CLIP_TYPES, ("caption",))

    def line(key: tuple[str, str]) -> str:
        of, (policy, keep) = settings[key], key
        score = lambda tasks: sum(100 * float(of[task]["exact_match"]) for task in tasks) / len(tasks)
        name = "full model" if policy == "full" else f"`{policy}`"
        budget = "" if policy == "full" else keep or "its own"
        cells = [
            f"{float(of['all']['visual_tokens']):.0f}",
            f"{score(['all']):.1f}",
            *(f"{score(k):.1f}" for k in kinds),
        ]
        return f"| {name} | {budget} | {' | '.join(cells)} |"

    keeps = list(dict.fromkeys(keep for _, keep in settings))
    order = sorted(
        settings, key=lambda key: (key[0] != "full", keeps.index(key[1]), -float(settings[key]["all"]["exact_match"]))
    )
    head = "| | keep | visual tokens | all tasks | pages | short videos | descriptions |"
    return "\n".join([head, "|---|--:|--:|--:|--:|--:|--:|", *map(line, order)])


def positions(model: str) -> str:
    """One row per policy with positions kept and renumbered, the best first."""
    found = {(r["policy"], r["positions"]): 100 * float(r["exact_match"]) for r in rows(model, "positions")}
    policies = sorted((p for p, kind in found if kind == "compact"), key=lambda p: (-found[p, "original"], p))
    line = lambda p, kept, renumbered: f"| `{p}` | {kept:.1f} | {renumbered:.1f} | {renumbered - kept:+.1f} |"
    lines = [line(p, found[p, "original"], found[p, "compact"]) for p in policies]
    return "\n".join([f"| | {_HEADS[model]}: original | compact | difference |", "|---|--:|--:|--:|", *lines])


#: Tables by marker.
TABLES: dict[str, Callable[[], str]] = {
    "bench full": full,
    **{f"bench {keep}": partial(budget, keep) for keep in BUDGETS},
    **({"bench pages": pages} if _PAGES.is_dir() else {}),
    **{f"positions {m}": partial(positions, m) for m in NAMES if (_FOLDER / m / "positions.csv").exists()},
}
