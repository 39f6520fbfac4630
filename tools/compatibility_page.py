"""Makes docs/compatibility.md from the cells of `tests/compatibility`."""

from importlib import import_module

from tests.compatibility.cells import CELLS, Cell

#: Modules of cells, in the order of the page.
MODULES = ("decoding", "training", "caches", "inputs", "around_the_model")
HEAD = """\
# What works with pruning

Each line of the tables is a test in `tests/compatibility`, and the tables are generated from these tests. A test
calls the stock `generate` or `forward` on the families that the line names. The *masked original* is the stock model
with the dropped tokens masked in attention.

Further tests:

- `tests/test_oracle.py` compares families and policies with oracles.
- `tests/test_fuzz.py` runs random batches with random settings: 500 cases by default, 10,000 with `make fuzz`. The last
  long run had 10,000 cases (SEED=58, transformers 5.24.0) and no failure.
- `tests/test_conversations.py` runs random conversations of one to four turns. Each turn is compared with the stock
  model under the same calls, with the dropped tokens masked layer by layer: 200 conversations by default, 3,000 with
  `make fuzz`. The last long run had 3,000 conversations (SEED=102, transformers 5.24.0) and no failure.
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
