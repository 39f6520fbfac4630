"""Tables in the documentation are those of the registry. `python -m tests.test_docs` writes them."""

import re
from pathlib import Path

import pytest

from tokenprune.commands.policies import markdown, summary
from tokenprune.policies import registry
from tokenprune.serve.settings import table as served

ROOT = Path(__file__).parents[1]
TABLES = {"README.md": summary, "docs/policies.md": markdown, "docs/serving.md": served}
PLACE = re.compile(r"(<!-- (?:policies|served)\b[^\n]*-->\n).*?(<!-- end -->)", re.S)


def filled(name: str) -> str:
    return PLACE.sub(lambda m: f"{m[1]}\n{TABLES[name]()}\n{m[2]}", (ROOT / name).read_text())


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_policies_are_the_registrys(name):
    text = (ROOT / name).read_text()
    assert text == filled(name), "run python -m tests.test_docs"
    assert all(f"| `{policy}` |" in text for policy in registry())


def test_every_policy_of_ours_says_what_it_keeps_and_where_it_comes_from():
    for name, cls in registry().items():
        assert cls.keeps and cls.paper, name


if __name__ == "__main__":
    for file in TABLES:
        (ROOT / file).write_text(filled(file))
