"""The notebook of the docs runs, and prints what it shows."""

import nbformat
import pytest

from tools.run_notebook import NOTEBOOK, VARIES, executed, printed

pytest.importorskip("ipykernel")


@pytest.fixture(scope="module")
def runs():
    """The cells as committed and as executed now, in pairs."""
    committed, now = nbformat.read(NOTEBOOK, as_version=4), executed()
    return [pair for pair in zip(committed.cells, now.cells, strict=True) if pair[0].cell_type == "code"]


def test_it_prints_what_it_shows(runs):
    for shown, now in runs:
        if VARIES in shown.metadata.get("tags", ()):
            assert bool(printed(now)) == bool(printed(shown))
        else:
            assert printed(now) == printed(shown), f"{shown.source}\nrun `python -m tools.run_notebook`"


def test_it_shows_pictures_and_the_pruned_model_still_answers(runs):
    pictures = [output for _, now in runs for output in now.outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2
    text = "".join(printed(now) for _, now in runs)
    assert "14 of 144 tokens" in text
    assert text.rstrip().endswith("True")  # the stock model again


def test_no_times_of_a_run_are_committed():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any("execution" in cell.metadata for cell in notebook.cells)
    assert NOTEBOOK.stat().st_size < 200_000
