"""Two processes share the prompts."""

import json
import os
import subprocess
import sys

import pytest

from tokenprune.eval.tune.workers import Workers

from ...support.products import FULL


class State:
    """What accelerate says of one process."""

    def __init__(self, rank, count):
        self.process_index, self.num_processes, self.device = rank, count, "cpu"


def test_one_process_does_everything():
    workers = Workers.found()
    assert (workers.rank, workers.count, workers.leads) == (0, 1, True)
    assert workers.share([5, 6, 7], lambda i: i * i) == [25, 36, 49]
    assert workers.agree(lambda: "decided") == "decided"


@pytest.mark.parametrize("count", [2, 3])
def test_every_piece_is_done_once_and_comes_back_in_order(monkeypatch, count):
    """All processes in turn; what they gather is what they would have sent each other."""
    parts = []
    monkeypatch.setattr("accelerate.utils.gather_object", lambda own: parts.append(own) or own)
    for rank in range(count):
        Workers(State(rank, count)).share(range(7), lambda i: i * i)
    monkeypatch.setattr("accelerate.utils.gather_object", lambda own: [pair for part in parts for pair in part])
    assert sorted(i for part in parts for i, _ in part) == list(range(7))
    assert Workers(State(0, count)).share(range(7), lambda i: i * i) == [i * i for i in range(7)]


@pytest.mark.skipif(not FULL, reason="processes of their own take long: FULL=1")
def test_two_processes_find_the_recipe_of_one(prompts, tmp_path):
    rows = []
    for i, prompt in enumerate(prompts(48)):
        prompt.images[0].save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "question": prompt.question, "answer": prompt.answers[0]})
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = []
    for processes in (1, 2):
        out = tmp_path / f"{processes}.json"
        launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2"] if processes > 1 else []
        command = [sys.executable, *launch, "-m", "tokenprune", "tune", "--data", str(data), "--out", str(out)]
        given = ["--tolerance", "0.15", "--policy", "divprune,random", "--keep", "0.9,0.5,0.1"]
        given += ["--cost", "flops", "--batch-size", "8"]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        subprocess.run([*command, *given], check=True, env=environment, capture_output=True, timeout=600)
        recipe = json.loads(out.read_text())
        recipe.pop("made")
        found.append(recipe)
    assert found[0] == found[1]
