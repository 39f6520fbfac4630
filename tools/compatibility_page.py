"""docs/compatibility.md, and its summary in the README, from the cells of `tests/compatibility`."""

from importlib import import_module

from tests.compatibility.cells import CELLS, Cell

#: Modules of cells, in the order of the page.
MODULES = ("decoding", "training", "caches", "inputs", "around_the_model")
HEAD = """\
# What works with pruning

Every line is a test, on the families named, through the stock `generate` or `forward`:
`tests/compatibility` is both the tests and this page. The masked original is the stock model with the
dropped tokens masked in attention. Oracles over all families and policies are in `tests/test_oracle.py`,
random batches on random settings in `tests/test_fuzz.py`: 500 in every run of the tests; `make fuzz` runs
10,000. The last long run: 10,000 cases, SEED=58, transformers 5.24.0, no failure.

Random conversations of one to four turns are in `tests/test_conversations.py`, held turn by turn against the
stock model under the same calls, with what was dropped hidden layer by layer: 200 in every run of the tests,
3,000 by `make fuzz`. The last long run: 3,000 conversations, SEED=102, transformers 5.24.0, no failure.
"""


def areas() -> dict[str, list[Cell]]:
    """Cells by area, both in the order of the page."""
    order = [import_module(f"tests.compatibility.test_{module}").AREA for module in MODULES]
    return {area: [cell for cell in CELLS if cell.area == area] for area in order}


def page() -> str:
    """The page: a table for each area."""
    lines = [HEAD.rstrip()]
    for area, cells in areas().items():
        lines += ["", f"## {area}", "", "| | what holds | tested on |", "|---|---|---|"]
        for cell in cells:
            families = ", ".join(f"`{family}`" for family in cell.families)
            lines.append(f"| {cell.feature} | {cell.says} | {families} |")
    return "\n".join(lines) + "\n"


def summary() -> str:
    """The README's table: what is tested, by area."""
    rows = ["| | tested against the masked original, or to fail clearly |", "|---|---|"]
    rows += [f"| **{area}** | {'; '.join(cell.feature for cell in cells)} |" for area, cells in areas().items()]
    return "\n".join(rows)
