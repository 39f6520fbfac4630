"""Several runs of `tokenprune bench` in one folder: their results add up."""

import json
import shutil

import pytest

from tokenprune import cli
from tokenprune.eval.bench.tasks import ALL


def bench(out, *arguments, samples=1):
    given = ["--keep", "0.25", "--tasks", "word,counting", "--samples", str(samples), *arguments]
    cli.main(["bench", *given, "--out", str(out)])
    return json.loads((out / "results.json").read_text())


def settings(results):
    return {(r["model"], r["policy"], r["keep"], r["positions"]) for r in results["rows"]}


def rows_of(results, policy, model="llava"):
    return [row for row in results["rows"] if (row["model"], row["policy"]) == (model, policy)]


BASELINES = {("random", 0.25), ("grid", 0.25), ("downsample", 0.25), ("full", 1.0)}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A folder with one run."""
    out = tmp_path_factory.mktemp("bench")
    return out, bench(out, "--policy", "divprune")


@pytest.fixture
def out(first, tmp_path):
    """A copy of that folder."""
    return shutil.copytree(first[0], tmp_path / "out")


def test_policies_and_positions_add_up(first, out):
    before = first[1]
    both = bench(out, "--policy", "fastv+divprune", "--positions", "compact")
    llava = lambda pairs, positions: {("llava", name, keep, positions) for name, keep in pairs}
    assert settings(both) == (
        llava(BASELINES | {("divprune", 0.25)}, "original")
        | llava({("random", 0.25), ("grid", 0.25), ("fastv+divprune", 0.25)}, "compact")
    )
    assert rows_of(both, "divprune") == rows_of(before, "divprune")
    assert set(both["commands"]) == {before["command"], both["command"]}
    assert (out / "results.md").read_text().count("| `") == 7
    assert all("vs_random" in row for row in rows_of(both, "divprune") + rows_of(both, "fastv+divprune"))


def test_models_stand_beside_each_other(first, out, capsys):
    both = bench(out, "--policy", "grid", "--model", "qwen")
    assert settings(both) == settings(first[1]) | {("qwen", name, keep, "original") for name, keep in BASELINES}
    assert [row for row in both["rows"] if row["model"] == "llava"] == first[1]["rows"]
    assert set(both["models"]) == {"llava", "qwen"}
    text = (out / "results.md").read_text()
    assert "per task (llava)" in text and "per task (qwen)" in text
    assert {path.name for path in out.glob("*.png")} == {
        f"{name}{model}.png" for name in ("curves", "tasks") for model in ("", "-llava", "-qwen")
    }
    printed = capsys.readouterr().out
    assert "llava, keep 0.25" in printed and "qwen, keep 0.25" in printed


def test_other_questions_do_not_mix(first, out, capsys):
    more = bench(out, "--policy", "grid", samples=2)
    assert {row["n"] for row in more["rows"]} == {2, 4}
    assert rows_of(more, "divprune") == []
    assert "10 cells in" in capsys.readouterr().out  # five settings, two tasks
    again = bench(out, "--policy", "grid")  # the first run's are still there, and nothing is asked again
    assert settings(again) == settings(first[1])
    assert "8 of 8 cells are there already" in capsys.readouterr().out


def test_rows_whose_cells_are_gone_stay(first, out):
    shutil.rmtree(out / "cells")  # as in docs/bench
    both = bench(out, "--policy", "todre")
    assert settings(both) == settings(first[1]) | {("llava", "todre", 0.25, "original")}
    assert rows_of(both, "divprune") == rows_of(first[1], "divprune")
    assert first[1]["command"] in both["commands"]
    results = json.loads((out / "results.json").read_text())
    results["identity"]["weights"] = results["models"]["llava"] = "of another training"
    (out / "results.json").write_text(json.dumps(results))
    shutil.rmtree(out / "cells")
    assert rows_of(bench(out, "--policy", "grid"), "divprune") == []


def test_fewer_tasks_have_no_mean_over_all(first, out):
    both = bench(out, "--policy", "vtw", "--tasks", "word")
    assert [row["task"] for row in rows_of(both, "vtw")] == ["word"]
    assert [row["task"] for row in rows_of(both, "divprune")] == ["counting", "word", ALL]
    lines = (out / "results.md").read_text().splitlines()
    head, line = (next(line for line in lines if name in line) for name in ("| positions |", "`vtw`"))
    assert line.count("|") == head.count("|") and "**" not in line


def test_one_token_and_all_tokens_differ(out):
    both = bench(out, "--policy", "divprune", "--keep", "1,1.0")
    kept = {json.dumps(row["keep"]): row["visual_tokens"] for row in rows_of(both, "divprune") if row["task"] == "word"}
    assert kept["1"] == 1
    assert kept["1.0"] > 100


def test_cells_of_a_former_version_are_read(first, out, capsys):
    for path in list((out / "cells").rglob("*.json")):
        results = json.loads(path.read_text())
        del results["names"], results["command"]
        path.with_name(f"{results['identity']['task']}.json").write_text(json.dumps(results))
        path.unlink()
    again = bench(out, "--policy", "divprune")
    assert again["rows"] == first[1]["rows"]
    assert "10 of 10 cells are there already" in capsys.readouterr().out
    assert settings(bench(out, "--policy", "todre")) > settings(first[1])


def test_results_of_eval_are_not_overwritten(tmp_path, capsys):
    (tmp_path / "results.json").write_text(json.dumps({"machine": {}, "rows": [{"metric": "exact_match"}]}))
    with pytest.raises(SystemExit) as stop:
        bench(tmp_path, "--policy", "grid")
    assert stop.value.code == 2
    assert f"--out {tmp_path} has the results of `tokenprune eval`; name another folder\n" in capsys.readouterr().err


def test_policies_find_their_own_count(tmp_path, capsys):
    found = bench(tmp_path, "--policy", "prumerge,divprune", "--keep", "default,energy:0.9")
    assert settings(found) == {
        ("llava", "full", 1.0, "original"),
        ("llava", "prumerge", None, "original"),
        *(("llava", name, "energy:0.9", "original") for name in ("random", "grid", "divprune", "prumerge")),
    }
    (whole,) = {row["visual_tokens"] for row in rows_of(found, "full")}
    own = [row["visual_tokens"] for row in rows_of(found, "prumerge") if row["keep"] is None]
    assert own and all(0 < count < whole for count in own)
    assert "keep default" in capsys.readouterr().out
    assert "--keep default,energy:0.9" in (tmp_path / "results.md").read_text()
