"""Tests of the lmms-eval plugin, against the real harness, offline: `make test-eval`."""

import importlib.util
import os
import sys

import pytest

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "WANDB_MODE": "disabled"}

if importlib.util.find_spec("lmms_eval") is None:  # the `eval` extra has an environment of its own
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def _command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lmms_eval"])  # the plugin looks for --use_cache there


@pytest.fixture(scope="session")
def manager():
    from lmms_eval.tasks import TaskManager

    from tokenprune.eval.lmms import tasks_path

    return TaskManager("WARNING", include_path=tasks_path(), model_name="tokenprune_hf")


@pytest.fixture(scope="session")
def evaluate(manager):
    """The harness's own entry, on the embedded tasks unless told otherwise."""
    from lmms_eval.evaluator import simple_evaluate

    def run(model_args, model="tokenprune_hf", tasks=("tokenprune_embedded",), limit=None, batch_size=16, **more):
        return simple_evaluate(
            model=model,
            model_args=model_args,
            tasks=list(tasks),
            task_manager=manager,
            batch_size=batch_size,
            limit=limit,
            bootstrap_iters=0,
            verbosity="WARNING",
            process_docs_parallel=1,
            **more,
        )

    return run


@pytest.fixture(scope="session")
def qwen(tmp_path_factory):
    """Folders of small Qwen checkpoints, by model type."""
    from . import support

    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: support.save(name, folder / name) for name in ("qwen2_5_vl", "qwen3_vl")}
