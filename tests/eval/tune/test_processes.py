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


#: Without GPUs, `--multi_gpu` starts processes that talk by gloo; `--cpu` of accelerate starts one.
LAUNCHERS = {
    "accelerate": "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no "
    "--dynamo_backend no",
    "torchrun": "torch.distributed.run --nproc-per-node 2",
}
GIVEN = "--tolerance 0.15 --policy divprune,random --keep 0.9,0.5,0.1 --cost flops --batch-size 8"


def tuned(data, out, launcher=""):
    """What the command writes, without its date, and what it says."""
    command = ["-m", *launcher.split(), "-m", "tokenprune", "tune", "-v"] if launcher else ["-m", "tokenprune", "tune"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    call = [sys.executable, *command, "--data", str(data), "--out", str(out), *GIVEN.split()]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    recipe = json.loads(out.read_text())
    recipe.pop("made")
    return recipe, done.stdout, done.stderr


@pytest.mark.skipif(not FULL, reason="processes of their own take long: FULL=1")
def test_two_processes_find_the_recipe_of_one(prompts, tmp_path):
    rows = []
    for i, prompt in enumerate(prompts(48)):
        prompt.images[0].save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "question": prompt.question, "answer": prompt.answers[0]})
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    alone, *_ = tuned(data, tmp_path / "alone.json")
    for name, launcher in LAUNCHERS.items():
        recipe, found, said = tuned(data, tmp_path / f"{name}.json", launcher)
        assert recipe == alone, name
        assert "2 processes share the prompts (gloo)" in " ".join(said.split()), name
        assert found.count("visual tokens, and costs") == 1, "one of the processes tells"
