"""The committed pages have the tables that `make docs` writes."""

import pytest

from tokenprune.policies import registry
from tools import docs_tables
from tools.marked_tables import marked

from .compatibility.cells import CELLS


def committed(name: str) -> str:
    return (docs_tables.ROOT / name).read_text()


@pytest.mark.parametrize("name", [*docs_tables.TABLES, *docs_tables.PAGES])
def test_pages_are_as_they_would_be_written(name):
    assert committed(name) == docs_tables.written(name), "run `make docs`"


@pytest.mark.parametrize("name", ["README.md", "docs/policies.md", "docs/serving.md", "docs/bench.md"])
def test_every_policy_is_in_the_tables(name):
    text = committed(name)
    missing = [policy for policy in registry() if f"| `{policy}` |" not in text]
    assert not missing, f"{name} lacks them: AGENTS.md, 'Adding a policy', says how to bring them there"


def test_every_cell_is_in_the_readme():
    docs_tables.written("README.md")  # imports all cells
    table = marked("matrix").search(committed("README.md"))[0]
    assert all(cell.feature in table for cell in CELLS)


def test_the_command_checks(capsys):
    docs_tables.main(["--check"])
    assert "up to date" in capsys.readouterr().out


@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("nowhere.md", 2)])
def test_the_command_names_its_pages(argument, code, capsys):
    with pytest.raises(SystemExit) as stop:
        docs_tables.main([argument])
    assert stop.value.code == code
    assert "docs/compatibility.md" in "".join(capsys.readouterr())
