"""Results files that enter the report. What is not as it should be is refused before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CommandError
from ..files import read_json


@dataclass(frozen=True)
class Kind:
    """Results of a command.

    Attributes:
        what: they are, with an article.
        command: that writes them.
        marks: names in a row by which such results are recognized.
        needs: names that each row must have.
        head: names that must be beside the rows, joined by dots where they are nested.
        option: of `tokenprune report` that takes them; empty: none does.
    """

    what: str
    command: str
    marks: frozenset[str]
    needs: tuple[str, ...] = ()
    head: tuple[str, ...] = ("machine",)
    option: str = ""


BENCH = Kind(
    "a benchmark",
    "tokenprune bench",
    frozenset({"exact_match", "task"}),
    ("model", "policy", "keep", "positions", "task", "exact_match", "n", "low", "high", "visual_tokens"),
    option="--bench",
)
EVAL = Kind(
    "an evaluation",
    "tokenprune eval",
    frozenset({"metric", "value"}),
    (
        "model",
        "policy",
        "keep",
        "task",
        "group",
        "metric",
        "value",
        "visual_tokens",
        "kept_tokens",
        "samples_per_second",
    ),
    option="--eval",
)
PROFILE = Kind(
    "a profile",
    "tokenprune profile --json",
    frozenset({"prefill_ms", "vision_ms", "decode_ms_per_token"}),
    ("policy", "keep", "vision_ms", "select_ms", "prefill_ms", "decode_ms_per_token", "total_ms", "kv_cache_bytes")
    + ("peak_bytes", "prefill_saving_theoretical", "prefill_saving_realised"),
    ("machine.device", "machine.threads", "machine.torch", "model", "layers", "dtype", "settings.new_tokens"),
    option="--profile",
)
#: In the order in which results are recognized.
_KINDS = (
    PROFILE,
    EVAL,
    BENCH,
    Kind("a profile of an engine", "tokenprune profile --engine", frozenset({"ttft_ms", "concurrency"})),
    Kind("the figures of a demo", "tokenprune demo --json", frozenset({"exact_match", "prefill_ratio"})),
)


def read(path: Path, kind: Kind) -> dict[str, Any]:
    """Results of a kind.

    Args:
        path: a file, or a folder that has it as `results.json`; profiles are files.
        kind: what they have to be.

    Raises:
        CommandError: there is no such file, or it has something else.
    """
    name = f"{kind.option} {path}"
    if path.is_dir():
        if kind is PROFILE:
            raise CommandError(f"{name} is a folder; name a file that `{kind.command} FILE` wrote")
        path = path / "results.json"
        if not path.exists():
            raise CommandError(f"{name} has no results.json; `{kind.command} --out` writes one")
    content = read_json(path, f"{name}: no such file or folder")
    should = f"{path} is not {kind.what}: it should be what `{kind.command}` writes"
    rows = content.get("rows") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise CommandError(f"{should}, and has no rows")
    found = _recognized(rows)
    if found is not None and found is not kind:
        where = f"{found.option} takes it" if found.option else "the report does not take those"
        raise CommandError(f"{path} is not {kind.what}: it is {found.what}; {where}")
    missing = [each for each in kind.needs if any(each not in row for row in rows)]
    missing += [each for each in kind.head if not _has(content, each.split("."))]
    if missing:
        raise CommandError(f"{should}, and lacks {', '.join(missing)}")
    return content


def _recognized(rows: Sequence[dict[str, Any]]) -> Kind | None:
    return next((kind for kind in _KINDS if kind.marks <= rows[0].keys()), None)


def _has(content: Any, names: Sequence[str]) -> bool:
    for name in names:
        if not isinstance(content, dict) or name not in content:
            return False
        content = content[name]
    return True
