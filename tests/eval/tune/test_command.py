"""The command: what it writes, says and refuses."""

import dataclasses
import json

import pytest

from tokenprune import Recipe, cli

KEEPS = ["--policy", "divprune", "--keep", "0.9,0.02", "--cost", "flops", "--batch-size", "8", "--new-tokens", "5"]


@pytest.fixture(scope="module")
def data(prompts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for i, prompt in enumerate(prompts(16)):
        prompt.images[0].save(folder / f"{i}.png")
        rows.append({"image": f"{i}.png", "question": prompt.question, "answer": prompt.answers[0]})
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_a_recipe_a_picture_and_results_are_written(data, tmp_path, capsys):
    out, plot = tmp_path / "r.json", tmp_path / "r.svg"
    cli.main(["tune", "--data", str(data), "--tolerance", "0.4", *KEEPS, "--out", str(out), "--plot", str(plot)])
    told = " ".join(capsys.readouterr().out.split())
    assert "divprune 0.9 holds 130 of 144 visual tokens" in told
    assert "With 95 % confidence over the draw of the prompts, the risk is at most 0.4" in told
    assert "exchangeable" in told
    assert Recipe.read(out).keep == 0.9
    assert "divprune 0.9" in plot.read_text()
    results = json.loads((tmp_path / "r.tune" / "results.json").read_text())
    assert [row["certified"] for row in results["tested"]] == [True, False]
    assert results["certificate"] == Recipe.read(out).measured["certificate"]
    page = tmp_path / "report.html"
    cli.main(["report", "--no-gallery", "--tune", str(tmp_path / "r.tune"), "--out", str(page)])
    html = page.read_text()
    assert "divprune 0.9 holds 130 of 144 visual tokens" in html
    assert '<h2 id="tuned">Tuning</h2>' in html
    assert html.count("<svg") == 2


def test_where_nothing_is_certified_there_is_no_recipe_and_a_status_of_1(data, tmp_path, capsys):
    out = tmp_path / "r.json"
    with pytest.raises(SystemExit) as caught:
        cli.main(["tune", "--data", str(data), "--tolerance", "0.05", *KEEPS, "--out", str(out)])
    assert caught.value.code == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "Nothing can be certified" in told
    assert "about 102 more prompts would certify it" in told  # 2 * 59 of them, and 16 are there
    assert not out.exists()


def test_a_model_that_transformers_places_gives_the_same(data, tmp_path, capsys):
    found = []
    for name, more in (("own", []), ("placed", ["--device-map", "auto"])):
        out = tmp_path / f"{name}.json"
        cli.main(["tune", "--data", str(data), "--tolerance", "0.4", *KEEPS, *more, "--out", str(out)])
        found.append(dataclasses.replace(Recipe.read(out), measured={}))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "no such file"),
        ("{", "is no JSON"),
        ('{"rows": []}', "is not what `tokenprune tune` writes"),
        ("[]", "lacks"),
    ],
)
def test_a_report_wants_what_tuning_wrote(tmp_path, capsys, content, told):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(SystemExit):
        cli.main(["report", "--no-gallery", "--tune", str(tmp_path), "--out", str(tmp_path / "report.html")])
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--tolerance", "1"], "'1' is no number between 0 and 1"),
        (["--confidence", "x"], "'x' is no number between 0 and 1"),
        (["--minutes", "0"], "'0' is no number above 0"),
        (["--metric", "bleu"], "invalid choice: 'bleu'"),
        (["--out", "r.txt"], "--out r.txt ends in .txt; accepted: .json"),
        (["--data", "none.jsonl"], "none.jsonl: no such file or folder"),
        (["--samples", "4"], "4 prompts are too few"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(data, tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        cli.main(["tune", "--data", str(data), *arguments])
    assert caught.value.code == 2
    assert told in capsys.readouterr().err
