"""`tokenprune bench`: its tasks, its statistics, and the command."""

import csv
import json
from collections import Counter

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from tokenprune import cli
from tokenprune.commands.bench import ALL_TASKS, EASY_VQA
from tokenprune.commands.bench import TASKS as COMMAND_TASKS
from tokenprune.eval import minivlm
from tokenprune.eval.answers import answer, encode
from tokenprune.eval.bench import PAGES, costs, report
from tokenprune.eval.bench import run as bench
from tokenprune.eval.bench.downsample import Downsampled, raster
from tokenprune.eval.bench.tasks import TASKS, samples
from tokenprune.eval.intervals import bootstrap_interval
from tokenprune.eval.minivlm import llava, qwen
from tokenprune.eval.minivlm.drawing import KINDS
from tokenprune.eval.minivlm.easy_vqa import data as easy_vqa
from tokenprune.eval.profile.counting import count_flops
from tokenprune.eval.setting import PruningSetting


@pytest.mark.parametrize("sizes", [llava.SIZES, qwen.SIZES])
@pytest.mark.parametrize("task", TASKS)
def test_tasks_ask_the_same_questions_each_time(task, sizes):
    some = samples(task, 24, sizes)
    assert [s.question for s in some] == [s.question for s in samples(task, 24, sizes)]
    assert {s.scene.image.shape[:2] for s in some} == set(sizes)
    assert Counter(s.question.type for s in some) == dict.fromkeys(TASKS[task], 24 // len(TASKS[task]))
    assert all(len(s.scenes) == (2 if task == "pair" else 1) for s in some)


def test_guessing_does_not_pay():
    assert Counter(s.question.answer for s in samples("existence", 40, llava.SIZES)) == {"yes": 20, "no": 20}
    answers = Counter(s.question.answer for s in samples("pair", 40, llava.SIZES))
    assert answers == dict.fromkeys(("first", "second", "both", "neither"), 10)
    assert max(Counter(s.question.answer for s in samples("counting", 200, llava.SIZES)).values()) < 90


def test_the_small_object_is_small():
    scene = samples("small", 1, llava.SIZES)[0].scene
    patches = (scene.labels[1] == KINDS.index("dot") + 1).sum()
    assert 1 <= patches <= 4
    assert 0.02 * scene.image.shape[0] * scene.image.shape[1] > 7 * 7


def test_command_line_names_the_tasks():
    named = {"attribute", "existence", "counting", "spatial", "letter", "word", "table", "pair", "small"}
    assert set(COMMAND_TASKS) == set(TASKS) == named
    assert tuple(EASY_VQA) == easy_vqa.TASKS and set(ALL_TASKS) == named | set(EASY_VQA) | set(PAGES)


@pytest.mark.parametrize(
    ("size", "budget", "expected"), [((12, 12), 36, (6, 6)), ((12, 12), 144, (12, 12)), ((12, 16), 48, (6, 8))]
)
def test_raster_of_a_budget(size, budget, expected):
    assert raster(*size, budget) == expected


def test_raster_keeps_the_shape():
    for budget in range(2, 193):
        rows, columns = raster(12, 16, budget)
        assert abs(rows * columns - budget) <= max(2, 0.15 * budget)
        assert 3 / 4 <= rows / columns * 16 / 12 <= 4 / 3


@pytest.mark.parametrize("name", minivlm.OF_SCENES)
def test_downsampling_is_undone(name):
    model, processor = minivlm.load(name)
    some = samples("pair", 3, minivlm.family(name).SIZES)
    full = answer(model, processor, some, PruningSetting())
    fewer = answer(model, processor, some, Downsampled(keep=0.25))
    for sample, before, after in zip(some, full.kept, fewer.kept, strict=True):
        pixels = sum(scene.image[..., 0].size for scene in sample.scenes)
        assert before == pixels / 64
        assert after == pixels / 64 / 4
    assert answer(model, processor, some, PruningSetting()) == full


def test_intervals_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    values = (np.random.default_rng(3).random(300) < 0.8).astype(float)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(1)).confidence_interval
    assert bootstrap_interval(values) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    assert bootstrap_interval(np.ones(5)) == (1, 1)


def test_precision_and_recall_are_those_of_sklearn():
    rng = np.random.default_rng(0)
    answers, texts = (rng.choice(["yes", "no"], 50).tolist() for _ in range(2))
    ours = report.yes_no([*texts, "red"], [*answers, "no"])
    theirs = precision_recall_fscore_support([*answers, "no"], [*texts, "no"], pos_label="yes", average="binary")
    assert [ours["precision"], ours["recall"], ours["f1"]] == pytest.approx(theirs[:3])
    assert report.yes_no(["no"], ["yes"])["f1"] == 0


SAMPLES = 2  # of each task


@pytest.fixture(scope="module", params=["llava", "qwen"])
def finished(request, tmp_path_factory):
    """A small benchmark: its arguments, and what it wrote."""
    out = tmp_path_factory.mktemp(request.param)
    arguments = ["bench", "--model", request.param, "--policy", "divprune", "--keep", "1.0,0.1"]
    arguments += ["--samples", str(SAMPLES), "--positions", "original,compact"]
    arguments += ["--out", str(out), "--json", str(out / "rows.json")]
    cli.main(arguments)
    return arguments, out


def test_rows(finished):
    arguments, out = finished
    model = arguments[2]
    written = json.loads((out / "rows.json").read_text())
    assert written == json.loads((out / "results.json").read_text())
    assert written["identity"]["samples"] == SAMPLES
    assert {"device", "threads"} <= set(written["machine"])
    rows = written["rows"]
    settings = {(r["policy"], r["keep"], r["positions"]) for r in rows}
    names = ("random", "grid", "divprune")
    assert settings == {("full", 1.0, "original")} | {("downsample", k, "original") for k in (1.0, 0.1)} | {
        (n, k, p) for n in names for k in (1.0, 0.1) for p in ("original", "compact")
    }
    assert len(rows) == len(settings) * (len(TASKS) + 1)
    for row in rows:
        assert row["model"] == model
        assert row["n"] == (SAMPLES * len(TASKS) if row["task"] == "all" else SAMPLES)
        assert 0 <= row["low"] <= row["exact_match"] <= row["high"] <= 1
        assert ("f1" in row) == (row["task"] == "existence")
    by = {(r["policy"], r["keep"], r["positions"], r["task"]): r for r in rows}
    full = by["full", 1.0, "original", "all"]
    for name in (*names, "downsample"):  # at full tokens all are the model itself
        assert by[name, 1.0, "original", "all"]["exact_match"] == full["exact_match"]
    row, other = (by[n, 0.1, "compact", "all"] for n in ("divprune", "random"))
    assert row["vs_random"] == pytest.approx(row["exact_match"] - other["exact_match"])
    assert row["vs_random_low"] <= row["vs_random"] <= row["vs_random_high"]
    assert {"vs_grid", "vs_downsample", "vs_full"} <= set(row)
    assert "vs_random" not in other


def test_files(finished):
    _, out = finished
    with (out / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert [r["policy"] for r in table] == [r["policy"] for r in rows]
    text = (out / "results.md").read_text()
    assert "`divprune` | 0.1 | compact" in text
    assert all((out / name).stat().st_size > 5000 for name in ("curves.png", "tasks.png"))
    assert not (out / "flops.png").exists() and "MFLOP" not in text  # they were not counted


def test_goes_on_where_it_was_interrupted(finished, monkeypatch, capsys):
    arguments, out = finished
    before = json.loads((out / "results.json").read_text())["rows"]
    lost = next((out / "cells").rglob("divprune-0.1-compact/word-*.json"))
    lost.unlink()
    asked = []
    original = bench._evaluate
    monkeypatch.setattr(bench, "_evaluate", lambda *a: asked.append(a[3].name) or original(*a))
    cli.main(arguments)
    assert asked == ["divprune"]
    assert json.loads((out / "results.json").read_text())["rows"] == before
    assert "134 of 135 cells are there already" in capsys.readouterr().out.replace("\n", " ")
    asked.clear()
    cli.main([*arguments, "--samples", "3", "--tasks", "word", "--keep", "0.1", "--positions", "original"])
    assert asked == ["full", "downsample", "random", "grid", "divprune"]


def test_flops_are_those_of_encoder_and_prefill(tmp_path, capsys):
    arguments = ["bench", "--model", "llava", "--policy", "divprune,divprune@pixels", "--keep", "0.25"]
    arguments += ["--tasks", "letter", "--samples", "1", "--out", str(tmp_path), "--flops", "1"]
    cli.main(arguments)
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    flops = {row["policy"]: row["flops"] for row in rows if row["task"] == "all"}
    assert 0 < flops["divprune@pixels"] < flops["divprune"] < flops["full"]
    model, processor = minivlm.load("llava")
    inputs = encode(processor, samples("letter", 1, llava.SIZES), [samples("letter", 1, llava.SIZES)[0].images])
    with count_flops() as counter:
        model(**inputs, logits_to_keep=1)
    assert flops["full"] == counter.get_total_flops()
    assert "| MFLOP |" in (tmp_path / "results.md").read_text() and (tmp_path / "flops.png").stat().st_size > 5000
    assert "counting FLOPs of 1 questions of 6 cells" in capsys.readouterr().out
    settings = bench.settings(["divprune", "divprune@pixels"], [0.25], ["original"])
    notes = []
    costs.add_flops(bench.Plan("llava", settings, ("letter",), 1), tmp_path, 1, notes.append)
    assert not notes  # all are counted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "blip"], "invalid choice: 'blip'"),
        (["--policy", "divprun"], "Did you mean 'divprune'"),
        (["--tasks", "word,poetry"], "'poetry' is none of attribute"),
        (["--positions", "packed"], "'packed' is none of original, compact"),
        (["--samples", "0"], "no whole number above 0"),
    ],
)
def test_bad_arguments_are_explained(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_weights_are_part_of_what_a_cell_is(tmp_path, monkeypatch):
    cell = bench.Plan("llava", bench.settings(["divprune"], [0.1], ["original"]), ("word",), 2).cells()[-1]
    cell.write(tmp_path, {})
    assert cell.finished(tmp_path)
    monkeypatch.setattr(bench, "weights", lambda model: "others")
    assert not cell.finished(tmp_path)
