"""`tokenprune eval`: a grid that resumes, pairs by question, and fails early."""

import csv
import json
import os
import shutil
import subprocess
import sys

import pytest

from tokenprune import cli
from tokenprune.eval import minivlm, published
from tokenprune.eval.lmms import grid, grid_report
from tokenprune.eval.lmms import model as model_module
from tokenprune.eval.setting import PruningSetting, settings_grid

TASK = "tokenprune_embedded_shape"


def _plan(**changes):
    settings = settings_grid(["divprune", "random"], [0.25], "original", True)
    return grid.Plan(
        **{"model": "embedded", "settings": settings, "tasks": (TASK,), "limit": 4, "batch_size": 4} | changes
    )


def test_an_interrupted_grid_goes_on(tmp_path, monkeypatch):
    run, ran = grid.evaluate, []

    def interrupted(cell, manager):
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(cell.name)
        return run(cell, manager)

    monkeypatch.setattr(grid, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        grid.run(_plan(), tmp_path)
    assert ran == ["full", "divprune 0.25"]
    monkeypatch.setattr(grid, "evaluate", lambda cell, manager: ran.append(cell.name) or run(cell, manager))
    notes = []
    cells = grid.run(_plan(), tmp_path, notes.append)
    assert ran == ["full", "divprune 0.25", "random 0.25"]
    assert notes == ["2 of 3 cells are there already", f"[1/1] random 0.25: {TASK}"]
    assert [cell.finished(tmp_path) for cell in cells] == [True] * 3
    grid.run(_plan(), tmp_path)
    assert len(ran) == 3
    # another limit, or more arguments, are another run
    grid.run(_plan(limit=5), tmp_path)
    assert len(ran) == 6
    assert not list(tmp_path.rglob("*.partial"))


def test_the_command_writes_tables(tmp_path, capsys):
    arguments = ["eval", "--policy", "divprune", "--keep", "0.25,9", "--tasks", f"{TASK},tokenprune_embedded_count"]
    cli.main(
        [*arguments, "--limit", "6", "--batch-size", "4", "--out", str(tmp_path), "--compare", "todre/llava-next-7b"]
    )
    printed = capsys.readouterr().out
    for word in ("full", "divprune 0.25", "divprune 9", "difference to full", "n=6", "published", "not measured"):
        assert word in printed
    read = json.loads((tmp_path / "results.json").read_text())
    rows = read["rows"]
    assert {"device", "torch", "transformers"} <= set(read["machine"])
    assert [(r["policy"], r["keep"], r["task"]) for r in rows] == [
        (policy, keep, task)
        for policy, keep in (("full", None), ("divprune", "0.25"), ("divprune", "9"))
        for task in (TASK, "tokenprune_embedded_count")
    ]
    assert [r["kept_tokens"] for r in rows] == [0, 0, 36, 36, 9, 9]
    assert all(r["n"] == r["n_paired"] == 6 for r in rows)
    for row in rows:
        full = next(r for r in rows if r["policy"] == "full" and r["task"] == row["task"])
        assert row["difference"] == pytest.approx(row["value"] - full["value"])
        assert row["low"] <= row["difference"] <= row["high"]
    with (tmp_path / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    table = (tmp_path / "results.md").read_text().splitlines()
    assert len(table) == 2 + 3
    assert table[3].startswith("| `divprune` 0.25 | 36 |")
    # the standard results of the harness, with every sample
    (path,) = tmp_path.glob(f"cells/embedded/full/{TASK}-*.json")
    cell = json.loads(path.read_text())
    assert {"results", "configs", "samples", "n-samples", "lmms_eval_version"} <= set(cell)
    assert f"tokenprune_version={__import__('tokenprune').__version__}" in cell["config"]["model_args"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "tokenprune_embeded"], "no task 'tokenprune_embeded'; did you mean tokenprune_embedded"),
        (["--model", "/nowhere"], "there is no such folder"),
        (["--backend", "llava_hf"], "backend 'llava_hf' is none of tokenprune_hf"),
        (["--compare", "divprune/llava"], "Did you mean divprune/llava-"),
        (["--tasks", "gqa"], "the data of task 'gqa' cannot be fetched"),
        (["--tasks", "gqa"], "tasks that need no network: tokenprune_embedded, tokenprune_embedded_colour"),
    ],
)
def test_what_cannot_run_fails_before_the_model_loads(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(model_module, "_load", lambda *a: pytest.fail("the model was loaded"))
    with pytest.raises(SystemExit) as stop:
        cli.main(["eval", *arguments, "--out", str(tmp_path)])
    printed = capsys.readouterr().err
    assert stop.value.code == 2 and message in printed
    assert printed.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_bad_policy_is_told_by_the_parser(capsys):
    with pytest.raises(SystemExit):
        cli.main(["eval", "--policy", "divprun"])
    assert "Did you mean 'divprune'" in capsys.readouterr().err


def _evaluate(out, *more):
    arguments = ["eval", "--policy", "divprune", "--keep", "0.25", "--tasks", TASK, "--limit", "3", "--out", str(out)]
    cli.main([*arguments, *more])
    return json.loads((out / "results.json").read_text())["rows"]


def _settings(rows):
    return [(r["model"].rpartition("/")[2], r["policy"], r["keep"], r["positions"]) for r in rows]


def test_runs_of_models_policies_and_positions_add_up(tmp_path, capsys):
    out, twins = tmp_path / "out", [tmp_path / side / "twin" for side in ("a", "b")]
    for twin in twins:  # models whose paths end alike
        shutil.copytree(minivlm.WEIGHTS["llava"], twin)
    first = _evaluate(out)
    assert _settings(first) == [("embedded", "full", None, "original"), ("embedded", "divprune", "0.25", "original")]
    both = _evaluate(out, "--policy", "random", "--no-full", "--positions", "compact")
    assert _settings(both) == [
        ("embedded", "full", None, "original"),
        ("embedded", "random", "0.25", "compact"),
        ("embedded", "divprune", "0.25", "original"),
    ]
    assert all("difference" in row for row in both[1:])  # the full model is that of the first run
    assert [row for row in both if row["policy"] == "divprune"] == first[1:]
    for twin in twins:
        rows = _evaluate(out, "--model", str(twin))
    assert _settings(rows)[:2] == [("twin", "full", None, "original"), ("twin", "divprune", "0.25", "original")]
    assert [row["model"] for row in rows] == [str(twins[1])] * 2 + ["embedded"] * 3 + [str(twins[0])] * 2 or [
        row["model"] for row in rows
    ] == [str(twins[1])] * 2 + [str(twins[0])] * 2 + ["embedded"] * 3
    tables = (out / "results.md").read_text()
    assert all(f"{model}:\n\n| | kept |" in tables for model in ("embedded", *map(str, twins)))
    capsys.readouterr()
    few = _evaluate(out, "--limit", "2")  # other questions do not go together with these
    assert _settings(few) == _settings(first)
    assert "7 cells in" in capsys.readouterr().out
    assert len(list((out / "cells").rglob("*.json"))) == 9


def test_cells_of_a_former_version_are_read(tmp_path):
    rows = _evaluate(tmp_path)
    for path in list((tmp_path / "cells").rglob("*.json")):
        results = json.loads(path.read_text())
        del results["names"]
        for key in grid.Cell.ADDED:
            del results["identity"][key]
        former = tmp_path / "cells" / path.parent.name.replace("-original", "") / f"{TASK}.json"
        former.parent.mkdir()
        former.write_text(json.dumps(results))
        path.unlink()
    again = _evaluate(tmp_path, "--policy", "random")
    assert [row for row in again if row["policy"] != "random"] == rows
    assert len(list((tmp_path / "cells").rglob("*.json"))) == 3


def test_pairs_are_joined_by_question():
    full = {("t", i): float(i % 2) for i in range(40)}
    same = dict(reversed(full.items()))
    assert grid_report.paired(full, same) == {"n_paired": 40, "difference": 0.0, "low": 0.0, "high": 0.0}
    # a few questions of a limited run, in whatever order
    some = {("t", i): 0.0 for i in (7, 3, 2, 0)}
    paired = grid_report.paired(full, some)
    assert paired["n_paired"] == 4
    assert paired["difference"] == -0.5
    assert -1 <= paired["low"] < paired["difference"] < paired["high"] <= 0
    assert grid_report.paired(full, {("other", 1): 1.0})["n_paired"] == 0


def test_published_tasks_are_the_harness_s(manager):
    tasks = {
        task
        for name in published.available()
        for source in published.load(name)["sources"]
        for row in source["rows"]
        for task in row.get("scores", {})
    }
    assert len(tasks) > 10
    assert [task for task in tasks if task not in manager.task_index] == []
    assert [task for task in grid_report.PRIMARY if task not in manager.task_index] == []


def _launch(tmp_path, processes, model, out, *more):
    arguments = [
        "eval",
        "--model",
        model,
        "--policy",
        "divprune",
        "--keep",
        "0.25",
        "--limit",
        "7",
        "--batch-size",
        "2",
    ]
    arguments += ["--tasks", f"{TASK},tokenprune_embedded_where", "--out", str(tmp_path / out), *more]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "tokenprune", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=180)
    assert result.returncode == 0, result.stderr[-3000:]
    return {
        path.relative_to(tmp_path / out): json.loads(path.read_text())
        for path in (tmp_path / out / "cells").rglob("*.json")
    }


@pytest.mark.parametrize("name", ["embedded", "qwen2_5_vl"])
def test_two_processes_answer_as_one(tmp_path, qwen, name):
    model = "embedded" if name == "embedded" else str(qwen[name])
    one, two = (_launch(tmp_path, n, model, str(n)) for n in (1, 2))
    assert one.keys() == two.keys()
    assert len(one) == 4
    for place in one:
        assert one[place]["throughput"]["avg_processes"] == 1
        assert two[place]["throughput"]["avg_processes"] == 2
        assert one[place]["throughput"]["avg_samples"] == two[place]["throughput"]["avg_samples"] == 7  # no padding
        for kept in ("avg_kept_tokens", "avg_visual_tokens"):
            assert one[place]["throughput"][kept] == two[place]["throughput"][kept]
        samples = [
            {s["doc_id"]: (s["filtered_resps"], s["exact_match"]) for ss in run[place]["samples"].values() for s in ss}
            for run in (one, two)
        ]
        assert samples[0] == samples[1]
        assert len(samples[0]) == 7
        values = [{t: m["exact_match,none"] for t, m in run[place]["results"].items()} for run in (one, two)]
        assert values[0] == pytest.approx(values[1])
    rows = [json.loads((tmp_path / str(n) / "results.json").read_text())["rows"] for n in (1, 2)]
    for a, b in zip(*rows, strict=True):
        assert (a["value"], a["difference"], a["low"]) == (b["value"], b["difference"], b["low"])


def test_builtin_wrappers_refuse_several_cpu_processes(monkeypatch):
    from tokenprune.eval.lmms import builtin

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="use tokenprune_hf"):
        builtin.tokenprune_llava_hf(policy="divprune")


def test_settings():
    options = settings_grid(["divprune", "divprune+fastv"], [0.5, 64], "original", True)
    assert options[0] == PruningSetting()
    assert [grid.Cell(_plan(), o, TASK).name for o in options] == [
        "full", "divprune 0.5", "divprune 64", "divprune+fastv 0.5", "divprune+fastv 64",
    ]  # fmt: skip
    paths = {grid.Cell(_plan(), o, TASK).path(grid.Path("x")) for o in options}
    assert len(paths) == 5
