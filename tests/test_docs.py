"""Tables in the documentation are those of registry and results. `python -m tests.test_docs` writes them."""

from pathlib import Path

import pytest

from tokenprune.commands.policies import markdown, summary
from tokenprune.policies import registry
from tokenprune.serve.settings import table as served

from . import bench_tables
from .markers import put

ROOT = Path(__file__).parents[1]
TABLES = {
    "README.md": {"policies": summary},
    "docs/policies.md": {"policies: tokenprune policies --markdown": markdown},
    "docs/serving.md": {"served": served},
    "docs/bench.md": bench_tables.TABLES,
}


def filled(name: str) -> str:
    text = (ROOT / name).read_text()
    for marker, table in TABLES[name].items():
        text = put(text, marker, table())
    return text


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_those_of_registry_and_results(name):
    text = (ROOT / name).read_text()
    assert text == filled(name), "run python -m tests.test_docs"
    assert all(f"| `{policy}` |" in text for policy in registry())


def test_every_policy_of_ours_says_what_it_keeps_and_where_it_comes_from():
    for name, cls in registry().items():
        assert cls.keeps and cls.paper, name


if __name__ == "__main__":
    for file in TABLES:
        (ROOT / file).write_text(filled(file))
