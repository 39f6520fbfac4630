"""What a folder of `tokenprune eval` holds: cells of this run and of earlier ones that go together with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from .. import runs
from ..setting import FULL
from .grid import Cell, Plan
from .options import NO_POLICY


class Run(NamedTuple):
    """What settings are compared within.

    Attributes:
        model: path or id of a checkpoint.
        backend: the wrapper.
        arguments: further `--model_args`.
    """

    model: str
    backend: str
    arguments: str


@dataclasses.dataclass(frozen=True)
class Stored:
    """A finished cell.

    Attributes:
        names: `model`, `backend`, `arguments`, `policy`, `keep` (None for the full model), `positions` and `task`.
        results: the harness's.
    """

    names: dict[str, Any]
    results: dict[str, Any]

    @property
    def run(self) -> Run:
        return Run(*(self.names[key] for key in Run._fields))

    @property
    def key(self) -> tuple[Any, ...]:
        """Different for every row of the tables."""
        names = self.names
        return self.run, names["policy"], repr(names["keep"]), names["positions"], names["task"]


def collect(plan: Plan, out: Path) -> tuple[list[Stored], int]:
    """The results of a plan, whose cells are finished, and what else in the folder goes together with them.

    Cells go together if they are of the same number of questions, generation arguments, kind of device and versions.

    Returns:
        Cells by model, this run's first, and the number of those in the folder that were left out.
    """
    cells = plan.cells()
    found = {stored.key: stored for stored in (Stored(cell.names(), cell.read(out)) for cell in cells)}
    own = {runs.digest(cell.identity()) for cell in cells}
    left_out, shared = 0, _shared(cells[0].identity())
    earlier: list[Stored] = []
    for _, results in runs.cells_in(out):
        identity = results["identity"]
        if runs.digest(identity) in own:
            continue
        theirs = _shared(identity)
        if theirs == {key: value for key, value in shared.items() if key in theirs or key not in Cell.ADDED}:
            earlier.append(Stored(results.get("names") or _former_names(identity), results))
        else:
            left_out += 1
    planned = set(found)
    for stored in earlier:  # of two with one name the newer counts
        if stored.key not in planned:
            found[stored.key] = stored
    order = list(dict.fromkeys(stored.run for stored in found.values()))
    by_run = sorted(found.values(), key=lambda stored: (order.index(stored.run), stored.names["policy"] != FULL))
    return by_run, left_out


def _shared(identity: dict[str, Any]) -> dict[str, Any]:
    """What cells have in common that go together."""
    version = _arguments(identity.get("model_args", "")).get("tokenprune_version")
    apart = ("model", "model_args", "backend", "task", "include")
    return {key: value for key, value in identity.items() if key not in apart} | {"tokenprune": version}


def _arguments(text: str) -> dict[str, str]:
    """`--model_args` by name."""
    return dict(part.split("=", 1) for part in text.split(",") if "=" in part)


def _former_names(identity: dict[str, Any]) -> dict[str, Any]:
    """The names of a cell that a former version wrote, which had its setting in `model_args` alone."""
    given = _arguments(identity["model_args"])
    model, policy = given.pop("pretrained"), given.pop("policy", NO_POLICY)
    keep, positions = given.pop("keep", None), given.pop("positions", "original")
    given.pop("tokenprune_version", None)
    options = "".join(f":{name.removeprefix('policy_')}={given.pop(name)}" for name in [*given] if "policy_" in name)
    return {
        "model": model,
        "backend": identity["backend"],
        "arguments": ",".join(f"{name}={value}" for name, value in given.items()),
        "policy": FULL if policy == NO_POLICY else policy + options,
        "keep": None if keep is None else keep if ":" in keep else int(keep) if keep.isdigit() else float(keep),
        "positions": positions,
        "task": identity["task"],
    }
