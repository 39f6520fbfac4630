"""The committed pages have the tables that `make docs` writes."""

import posixpath
import re

import pytest

import tokenprune
from tokenprune import Policy, ops
from tokenprune.policies import registry
from tools import docs_tables, site_pages

from . import first_minutes
from .compatibility.cells import CELLS


def committed(name: str) -> str:
    return (docs_tables.ROOT / name).read_text()


@pytest.mark.parametrize("name", [*docs_tables.TABLES, *docs_tables.PAGES])
def test_pages_are_as_they_would_be_written(name):
    assert committed(name) == docs_tables.written(name), "run `make docs`"


@pytest.mark.parametrize("name", ["README.md", "docs/policies.md", "docs/serving.md", "docs/bench.md"])
def test_every_policy_is_in_the_tables(name):
    text = committed(name)
    wanted = registry()
    if (
        name == "docs/bench.md"
    ):  # its tables are by what is left for the language model, which is all of a restoring one
        wanted = {key: cls for key, cls in wanted.items() if cls.restoration is Policy.restoration}
    missing = [policy for policy in wanted if f"| `{policy}` |" not in text]
    assert not missing, f"{name} lacks them: AGENTS.md, 'Adding a policy', says how to bring them there"


def test_every_cell_is_on_its_page():
    docs_tables.written("docs/compatibility.md")  # imports all cells
    assert all(cell.feature in committed("docs/compatibility.md") for cell in CELLS)


def test_every_public_name_is_in_the_reference():
    page = committed("docs/api.md")
    missing = [name for name in tokenprune.__all__ if not re.search(rf"^::: tokenprune\.{name}$", page, re.M)]
    missing += [name for name in ops.__all__ if f"::: tokenprune.ops.{name}\n" not in page]
    assert missing == ["__version__"]


PAGES = [path.relative_to(docs_tables.ROOT).as_posix() for path in sorted(docs_tables.ROOT.glob("docs/*.md"))]


@pytest.mark.parametrize("page", [*PAGES, "README.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md"])
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]+)(#[^)\s]+)?\)", committed(page)):
        if not re.match(r"[a-z]+:", target):
            found = site_pages.in_tree(posixpath.normpath(posixpath.join(posixpath.dirname(page), target)))
            assert found is not None, target
            heads = re.findall(r"^#+ (.*)", found.read_text(), re.M) if anchor else []
            assert not anchor or anchor[1:] in map(slug, heads), (target, anchor)


def slug(head: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", head).strip().lower().replace(" ", "-")


def test_every_page_is_in_the_navigation():
    config = committed("mkdocs.yml")
    pages = [page.name for page in docs_tables.ROOT.glob("docs/*.*") if page.suffix in (".md", ".ipynb")]
    assert not [name for name in [*pages, *site_pages.PAGES.values()] if not re.search(rf"[ :-] {name}$", config, re.M)]


def test_links_out_of_the_docs_become_links_to_the_repository():
    there = "https://github.com/tokenprune/tokenprune"
    text = "[a](../eval/results) [b](bench.md#results) [c](../CHANGELOG.md) [d](https://x.org/y) ![e](demo.png)"
    made = text.replace("../eval/results", f"{there}/tree/main/eval/results").replace("../CHANGELOG.md", "changelog.md")
    assert site_pages.links_of_site(text, "docs", there) == made
    assert site_pages.links_of_site("[a](../../policies.md)", "docs/bench/llava", there) == "[a](../../policies.md)"
    with pytest.raises(ValueError, match="nowhere"):
        site_pages.links_of_site("[a](../nowhere)", "docs", there)


def test_every_block_of_the_readme_is_typed_or_not_for_a_reason():
    found = first_minutes.blocks(docs_tables.ROOT / "README.md")
    assert not [line for block in found for line in block.untold()], "say in tests/first_minutes.py how it is typed"
    starts = [line for block in found for line in block.lines]
    for table in (first_minutes.TYPED, first_minutes.NOT_TYPED, first_minutes.BEFORE, first_minutes.AFTER):
        stale = [start for start in table if not any(line.startswith(start) for line in starts)]
        assert not stale, "the README has no such line any more"


def test_a_new_block_is_noticed():
    block = first_minutes.Block("", "tokenprune demo\ntokenprune dance --slowly\n")
    assert block.untold() == ["tokenprune dance --slowly"]


def test_the_command_checks(capsys):
    docs_tables.main(["--check"])
    assert "up to date" in capsys.readouterr().out


@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("nowhere.md", 2)])
def test_the_command_names_its_pages(argument, code, capsys):
    with pytest.raises(SystemExit) as stop:
        docs_tables.main([argument])
    assert stop.value.code == code
    assert "docs/compatibility.md" in "".join(capsys.readouterr())
