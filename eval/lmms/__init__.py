"""Plugin for lmms-eval: pruned models, and the embedded benchmark as tasks.

The harness finds models by the entry-point group `lmms_eval.models`. It has no entry point for tasks, which need
`--include_path "$(python -m tokenprune.eval.lmms)"`.
"""

from __future__ import annotations

from pathlib import Path

#: Name of the group of the embedded models' tasks.
EMBEDDED_TASKS = "tokenprune_embedded"


def tasks_path() -> str:
    """The folder of our tasks, for the harness's `--include_path`."""
    return str(Path(__file__).parent / "tasks")
