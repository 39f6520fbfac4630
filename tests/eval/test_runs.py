"""Results of several runs in one folder: every cell has a file of its own, under a name that any system takes."""

from dataclasses import dataclass

import pytest

from tokenprune.eval import runs
from tokenprune.eval.setting import PruningSetting

SETTING = PruningSetting("divprune", 0.25)


@dataclass(frozen=True)
class Cell(runs.Cell):
    ADDED = frozenset({"device"})

    model: str
    setting: PruningSetting = SETTING
    task: str = "word"
    samples: int = 3

    def parts(self):
        return self.model, self.setting.name, self.task

    def identity(self):
        of_run = {"model": self.model, "task": self.task, "samples": self.samples, "device": "cpu"}
        return of_run | self.setting.identity()

    def names(self):
        return {"task": self.task}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("divprune+fastv-0.25", "divprune+fastv-0.25"),
        ("fastv:layer=3", "fastv-layer=3"),
        ("auto:depths=(0.25,0.5)", "auto-depths=-0.25-0.5"),
        ("/home/me/models/llava 1.5", "home-me-models-llava-1.5"),
        ("../../etc", "etc"),
        ("..", "_"),
        ("", "_"),
        ("NUL", "_NUL"),
        ("con.txt", "_con.txt"),
        ("käse", "k-se"),
        ("a" * 300, "a" * 80),
    ],
)
def test_names_of_files(text, name):
    assert runs.safe_name(text) == name


DIFFERENT = [
    Cell("/data/a/llava"),
    Cell("/data/b/llava"),
    Cell("data/a-llava"),
    Cell("/data/a/LLaVA"),
    Cell("/data/a/llava", samples=4),
    Cell("/data/a/llava", task="a/b"),
    Cell("/data/a/llava", task="a:b"),
    Cell("/data/a/llava", PruningSetting("divprune", 0.25, "compact")),
    Cell("/data/a/llava", PruningSetting("divprune", 1)),
    Cell("/data/a/llava", PruningSetting("divprune", 1.0)),
    Cell("/data/a/llava", PruningSetting("divprune", 0.25000001)),
    Cell("/data/a/llava", PruningSetting("fastv", 0.25)),
    Cell("/data/a/llava", PruningSetting("fastv", 0.25, options={"layer": 3})),
    Cell("/data/a/llava", PruningSetting("divprune+fastv", 0.25)),
    Cell("/data/a/llava", PruningSetting("fastv+divprune", 0.25)),
    Cell("/data/a/llava", PruningSetting()),
]


def test_cells_that_differ_in_anything_do_not_meet(tmp_path):
    paths = {str(cell.path(tmp_path)).lower() for cell in DIFFERENT}  # file systems may ignore case
    assert len(paths) == len(DIFFERENT)
    assert all(path.startswith(str(tmp_path / "cells").lower()) for path in paths)
    ran = []
    for cell in DIFFERENT:
        runs.run([cell], tmp_path, lambda cell: ran.append(cell) or {"value": len(ran)})
    runs.run(DIFFERENT, tmp_path, lambda cell: pytest.fail("it was there"))
    assert [cell.read(tmp_path)["value"] for cell in DIFFERENT] == list(range(1, len(DIFFERENT) + 1))
    assert len(list(runs.cells_in(tmp_path))) == len(DIFFERENT)


def test_what_is_no_cell_is_run_again_or_left_alone(tmp_path):
    cell = DIFFERENT[0]
    path = cell.path(tmp_path)
    path.parent.mkdir(parents=True)
    (tmp_path / "cells" / "notes.json").write_text("[1, 2]")
    for broken in ("", '{"identity": {', "[]", '{"rows": []}'):
        path.write_text(broken)
        assert not cell.finished(tmp_path)
        with pytest.raises(FileNotFoundError, match=path.name):
            cell.read(tmp_path)
    runs.run([cell], tmp_path, lambda cell: {"value": 7})
    assert cell.read(tmp_path)["value"] == 7
    assert len(list(runs.cells_in(tmp_path))) == 1


def test_a_file_of_a_former_version_is_found(tmp_path):
    """Its name had no hash, and its identity fewer keys. Another value of a key is another cell, all the same."""
    cell, other = DIFFERENT[0], Cell("/data/a/llava", samples=5)
    cell.write(tmp_path, {"value": 1})
    path = cell.path(tmp_path)
    former = path.with_name("word.json")
    former.write_text(path.read_text().replace(', "device": "cpu"', ""))
    path.unlink()
    assert cell.finished(tmp_path) and not other.finished(tmp_path)
    former.write_text(former.read_text().replace('"samples": 3', '"samples": 5'))
    assert other.finished(tmp_path) and not cell.finished(tmp_path)
