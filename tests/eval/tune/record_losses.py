"""Records what `test_coverage.py` draws from: `python -m tests.eval.tune.record_losses qwen 60`, a model and how many
questions of each task of the bench. Those of the Qwens are made by it; the LLaVA's have other policies and budgets."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from tokenprune.eval import minivlm
from tokenprune.eval.bench.tasks import asked, tasks_of
from tokenprune.eval.setting import PruningSetting
from tokenprune.eval.tune import Options, Prompt
from tokenprune.eval.tune.asking import Asker
from tokenprune.eval.tune.cost import Costs
from tokenprune.eval.tune.metrics import METRICS, exact_match, loss
from tokenprune.eval.tune.workers import Workers

FOLDER = Path(__file__).parent / "recorded"
#: From safe to cheap.
POLICIES, KEEPS = ("auto", "divprune", "vispruner"), (0.9, 0.7, 0.5, 0.25)


def record(model: str, of_task: int) -> None:
    """Write the losses of an embedded model under all settings, on so many questions of each task of the bench."""
    options = Options()
    samples = [sample for task in tasks_of(model) for sample in asked(model, task, of_task)]
    prompts = [
        Prompt(each.question.text, [*map(Image.fromarray, each.images)], answers=(each.question.answer,))
        for each in samples
    ]
    batches = [prompts[i : i + options.batch] for i in range(0, len(prompts), options.batch)]
    settings = [PruningSetting(policy, keep) for policy in POLICIES for keep in KEEPS]
    with tempfile.TemporaryDirectory() as work:
        asker = Asker(*minivlm.load(model), batches, options, Path(work), Workers())
        asker.answer()
        costs, found = Costs(asker, "flops"), {name: [] for name in METRICS}
        held = []
        for setting in settings:
            answered = asker.ask(setting, range(len(batches)), True)
            each = [
                triple
                for batch, replies, told in zip(batches, asker.replies, answered, strict=True)
                for triple in zip(batch, replies, told.pruned, strict=True)
            ]
            for name, metric in METRICS.items():
                found[name].append([loss(metric, exact_match, *triple) for triple in each])
            held.append(costs.counted(setting)[0].means()["visual_tokens"])
    dtype = {name: np.uint8 if metric.binary else np.float16 for name, metric in METRICS.items()}
    np.savez_compressed(
        FOLDER / f"{model}.npz",
        settings=np.array([f"{setting.name}|{setting.keep:g}" for setting in settings]),
        tokens_held=np.array(held, np.float32),
        **{name: np.array(rows).astype(dtype[name]) for name, rows in found.items()},
    )


if __name__ == "__main__":
    record(sys.argv[1], int(sys.argv[2]))
