"""The demo on the command line."""

import json

import numpy as np
import pytest
from PIL import Image

from tokenprune import cli, list_policies
from tokenprune.eval import demo
from tokenprune.eval.answers import TYPES, answer, held_out
from tokenprune.eval.minivlm.scenes import GRID
from tokenprune.eval.setting import PruningSetting
from tokenprune.policies import make_policy


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch):
    """No test reads how fast the demo is, so it measures twice instead of 15 times."""
    monkeypatch.setattr(demo, "_ROUNDS", 2)


def test_demo_writes_table_picture_and_figures(tmp_path, capsys):
    out, figures = tmp_path / "deep" / "demo.png", tmp_path / "demo.json"
    cli.main(
        [
            "demo",
            "--policy",
            "grid,random",
            "--keep",
            "0.5,9",
            "--samples",
            "20",
            "--out",
            str(out),
            "--json",
            str(figures),
        ]
    )
    printed = capsys.readouterr().out
    for word in ("full", "grid", "random", "ratio", "20 held-out questions", *TYPES):
        assert word in printed
    with Image.open(out) as picture:
        assert min(picture.size) > 400
    rows = json.loads(figures.read_text())["rows"]
    assert [(r["policy"], r["keep"]) for r in rows] == [("full", 1.0)] + [
        (p, k) for p in ("grid", "random") for k in (0.5, 9)
    ]
    assert [r["visual_tokens"] for r in rows] == [144, 72, 9, 72, 9]
    assert rows[0]["prefill_ratio"] == 1
    per_token = (rows[0]["kv_cache_bytes"] - rows[1]["kv_cache_bytes"]) / 72
    assert rows[2]["kv_cache_bytes"] == rows[0]["kv_cache_bytes"] - 135 * per_token
    assert all(0 <= r["exact_match"]["all"] <= 1 and r["prefill_ms"] > 0 for r in rows)


def test_demo_takes_every_policy(tmp_path):
    figures, names = tmp_path / "demo.json", list_policies()
    arguments = ["--policy", ",".join(names), "--keep", "0.5", "--samples", "8", "--json", str(figures)]
    cli.main(["demo", *arguments, "--out", str(tmp_path / "demo.png")])
    rows = {r["policy"]: r for r in json.loads(figures.read_text())["rows"]}
    assert set(rows) == {"full", *names}
    assert rows["fastv"]["visual_tokens"] == (144 + 144 + 1 + 1) / 4  # the nearest mean that it reaches
    vision = ("divprune", "fopru", "grid", "random", "tokenflex", "recoverable")
    assert all(rows[n]["visual_tokens"] == 72 for n in vision)
    smaller = {n for n, r in rows.items() if r["kv_cache_bytes"] < rows["full"]["kv_cache_bytes"]}
    assert smaller == set(names) - {"ipcv"}  # whose tokens come back behind the vision encoder


def test_dropped_patches_are_dimmed(embedded):
    sample = held_out(1)[0]
    records = answer(*embedded, [sample], PruningSetting(make_policy("random"), 20)).records[0]
    full, dim = demo.dimmed(sample, [], 1), demo.dimmed(sample, records, 1)
    same = (full == dim).reshape(GRID, 8, GRID, 8, 3).all((1, 3, 4)).ravel()
    assert set(records[0].indices) <= set(np.flatnonzero(same))
    assert dim[~np.kron(same.reshape(GRID, GRID), np.ones((8, 8), bool))].max() < 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "divprun"], "Did you mean 'divprune'"),
        (["--policy", ","], "no policy given"),
        (["--keep", "1.5"], "accepted: a float in (0, 1]"),
        (["--keep", "0.5,x"], "'x' is no number"),
        (["--keep", "0"], "keep=0 is too small"),
        (["--samples", "0"], "no whole number above 0"),
        (["--positions", "packed"], "invalid choice"),
    ],
)
def test_bad_arguments_are_explained(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
