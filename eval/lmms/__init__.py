"""Plugin for lmms-eval: pruned models, and the embedded benchmark as tasks.

Models reach the harness through the entry-point group `lmms_eval.models`; tasks by
`--include_path "$(python -m tokenprune.eval.lmms)"`, since the harness has no entry point for them.
"""

from __future__ import annotations

from pathlib import Path

#: Group of the embedded model's tasks.
EMBEDDED_TASKS = "tokenprune_embedded"


def tasks_path() -> str:
    """Folder to give as the harness's `--include_path`."""
    return str(Path(__file__).parent / "tasks")
