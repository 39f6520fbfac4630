"""Executes the notebook of the docs and writes what it prints into it: `python -m tools.run_notebook`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"
#: A tag of cells that print times or dates.
VARIES = "varies"


def executed(timeout: int = 300) -> Any:
    """The notebook with the outputs of a run in this environment and with this source tree.

    Args:
        timeout: of a cell, seconds.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised an error.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    folder = {"metadata": {"path": str(ROOT)}}
    client = NotebookClient(notebook, timeout=timeout, kernel_name="python3", resources=folder)
    client.execute(env=environment)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of a run
        _tidy(cell)
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    return notebook


def _tidy(cell: Any) -> None:
    """Leave out warnings, progress bars and pictures in a second format, and join what is printed."""
    outputs: list[Any] = []
    for output in cell.get("outputs", ()):
        output.get("data", {}).pop("image/jpeg", None)
        if output.get("name") == "stderr":
            continue
        if output.output_type == "stream" and outputs and outputs[-1].output_type == "stream":
            outputs[-1].text += output.text
        else:
            outputs.append(output)
    if "outputs" in cell:
        cell.outputs = outputs


def printed(cell: Any) -> str:
    """What a cell prints."""
    return "".join(output.text for output in cell.get("outputs", ()) if output.output_type == "stream")


if __name__ == "__main__":
    nbformat.write(executed(), NOTEBOOK)
