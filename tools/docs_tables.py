"""Writes the tables of the documentation: `python -m tools.docs_tables`, or `make docs`.

The tables come from the registries of policies and families, the parsers of the commands, the settings of the vLLM
plugin, the committed results of the benchmark, and the cells of `tests/compatibility`. `tests/test_docs.py` checks that
the committed pages have them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from rich.progress import track

from tokenprune.commands.policies import markdown, summary
from tokenprune.serve import tables as serving

from . import bench_tables, commands_page, compatibility_page, policies_page
from .marked_tables import put
from .models_table import models

ROOT = Path(__file__).parents[1]
#: Tables by page and marker.
TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"bench auto": bench_tables.lead, "models": models, "policies": summary},
    "docs/choosing.md": {"bench auto": bench_tables.lead},
    "docs/models.md": {"models": models},
    "docs/policies.md": {"policies: tokenprune policies --markdown": markdown},
    "docs/serving.md": {"architectures": serving.architectures, "served": serving.policies},
    "docs/bench.md": bench_tables.TABLES,
}
#: Pages that are generated as a whole.
PAGES: dict[str, Callable[[], str]] = {
    "docs/compatibility.md": compatibility_page.page,
    "docs/cli.md": commands_page.page,
    "docs/api-policies.md": policies_page.page,
}


def written(name: str) -> str:
    """The text of a page with its tables generated anew.

    Args:
        name: path from the root of the repository; a key of `TABLES` or `PAGES`.

    Raises:
        KeyError: no table of the page is generated.
    """
    if name in PAGES:
        return PAGES[name]()
    text = (ROOT / name).read_text()
    for marker, table in TABLES[name].items():
        text = put(text, marker, table())
    return text


def main(arguments: list[str] | None = None) -> None:
    pages = [*TABLES, *PAGES]
    parser = argparse.ArgumentParser(prog="python -m tools.docs_tables", description="Write the tables of the docs.")
    parser.add_argument("pages", nargs="*", metavar="page", help=f"one of {', '.join(pages)}; default: all")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is not up to date")
    options = parser.parse_args(arguments)
    for name in options.pages:
        if name not in pages:
            parser.error(f"no table is made for {name!r}; accepted: {', '.join(pages)}")
    old = []
    for name in track(options.pages or pages, description="docs", transient=True):
        text = written(name)
        if not (ROOT / name).exists() or (ROOT / name).read_text() != text:
            old.append(name)
            if not options.check:
                (ROOT / name).write_text(text)
    if old and options.check:
        parser.exit(1, f"not up to date: {', '.join(old)}; run `make docs`\n")
    print(f"written: {', '.join(old)}" if old else "all pages are up to date")


if __name__ == "__main__":
    main()
