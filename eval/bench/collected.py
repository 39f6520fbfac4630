"""What a folder of the benchmark holds: results of this run and of earlier ones that go together with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .. import minivlm, runs
from ..setting import FULL
from . import ALL_TASKS
from .run import MODEL_OF_A_RUN, OF_A_SETTING, Plan, weights


class Setting(NamedTuple):
    """A row of the tables.

    Attributes:
        model: which embedded model.
        policy: as tables name it.
        keep: as a Python literal, so that `1` (one token) and `1.0` (all) differ.
        positions: of surviving tokens.
    """

    model: str
    policy: str
    keep: str
    positions: str

    @classmethod
    def of(cls, names: dict[str, Any]) -> Setting:
        """Of a row of results, or the names of a cell."""
        return cls(names["model"], names["policy"], repr(names["keep"]), names["positions"])


@dataclass
class Collected:
    """Results that go together: of the same split, number of questions and versions, and of models as they are now.

    Attributes:
        cells: results by setting and task, of this run and of earlier ones.
        names: of each setting, `model`, `policy`, `keep` and `positions` as JSON values.
        rows: rows of an earlier `results.json`, by setting, where the cells are no longer there.
        commands: the command lines that made all of these.
        left_out: number of cells in the folder that do not go together with this run.
    """

    cells: dict[Setting, dict[str, dict[str, Any]]] = field(default_factory=dict)
    names: dict[Setting, dict[str, Any]] = field(default_factory=dict)
    rows: dict[Setting, list[dict[str, Any]]] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    left_out: int = 0

    def settings(self) -> list[Setting]:
        """All settings by model, the full model first; those of this run before others."""
        found = [*self.names, *self.rows]
        models: list[str] = list(minivlm.NAMES)
        return sorted(found, key=lambda setting: (models.index(setting.model), setting.policy != FULL))

    def tasks(self, model: str) -> list[str]:
        """The tasks of any setting of a model, in the order of `ALL_TASKS`."""
        found = {task for setting, cells in self.cells.items() if setting.model == model for task in cells}
        found |= {row["task"] for setting, rows in self.rows.items() if setting.model == model for row in rows}
        return [task for task in ALL_TASKS if task in found]

    def add(self, names: dict[str, Any], results: dict[str, Any]) -> None:
        """Add a cell; one of the same name is replaced."""
        setting = Setting.of(names)
        self.names[setting] = {key: names[key] for key in Setting._fields}
        self.cells.setdefault(setting, {})[names["task"]] = results
        if "command" in results and results["command"] not in self.commands:
            self.commands.append(results["command"])


def collect(plan: Plan, out: Path) -> Collected:
    """The results of a plan, whose cells are finished, and what else in the folder goes together with it."""
    cells, found = plan.cells(), Collected()
    for cell in cells:
        found.add(cell.names(), cell.read(out))
    planned = {(Setting.of(cell.names()), cell.task) for cell in cells}
    own = {runs.digest(cell.identity()) for cell in cells}
    run = _shared(cells[0].identity())
    for path, results in runs.cells_in(out):  # of two with one name the newer counts
        identity = results["identity"]
        if runs.digest(identity) in own:
            continue
        if _shared(identity) == run and _is_current(identity["model"], identity["weights"]):
            names = results.get("names") or _former_names(path, identity)
            if (Setting.of(names), names["task"]) not in planned:
                found.add(names, results)
        else:
            found.left_out += 1
    _add_rows(found, out, run)
    return found


def _shared(identity: dict[str, Any]) -> dict[str, Any]:
    """What cells have in common that go together."""
    return {key: value for key, value in identity.items() if key not in (*OF_A_SETTING, *MODEL_OF_A_RUN)}


def _is_current(model: Any, hashed: Any) -> bool:
    return model in minivlm.NAMES and weights(model) == hashed


def _former_names(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """The names of a cell that a former version wrote to `POLICY-KEEP-POSITIONS/TASK.json`, or `full/TASK.json`."""
    folder = path.parent.name
    policy = FULL if folder == FULL else folder.rsplit("-", 2)[0]
    return {key: identity[key] for key in ("model", "keep", "positions", "task")} | {"policy": policy}


def _add_rows(found: Collected, out: Path, run: dict[str, Any]) -> None:
    """Add the rows of an earlier `results.json` that go together with a run and have no cells any more."""
    earlier = runs.read_cell(out / "results.json")
    if earlier is None or _shared(earlier["identity"]) != run:
        return
    identity = earlier["identity"]
    models = earlier.get("models", {identity["model"]: identity["weights"]})
    for row in earlier.get("rows", []):
        setting = Setting.of(row)
        if setting not in found.cells and _is_current(row["model"], models.get(row["model"])):
            found.rows.setdefault(setting, []).append(row)
    if found.rows:
        made = earlier.get("commands") or [earlier["command"]]
        found.commands[:0] = [command for command in made if command not in found.commands]
