"""The embedded model, what it is asked, and the demo on the command line."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image
from tokenprune.eval import demo
from tokenprune.eval.minivlm import WEIGHTS, load
from tokenprune.eval.minivlm.questions import QUESTION_TYPES, TOKEN_ID, all_questions, ask
from tokenprune.eval.minivlm.scenes import GRID, SEEDS, cell_name, draw_scene
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from tokenprune import cli, list_policies
from tokenprune.policies import make_policy


@pytest.fixture(scope="module")
def embedded():
    return load()


def test_ships_small_and_loads_as_stock_classes(embedded):
    model, processor = embedded
    assert type(model) is LlavaForConditionalGeneration
    assert type(processor) is LlavaProcessor
    assert sum(f.stat().st_size for f in WEIGHTS.iterdir()) < 12e6
    record = json.loads((WEIGHTS / "training.json").read_text())
    assert {"command", "machine", "wall_minutes", "validation_exact_match", "curve"} <= set(record)


def test_answers_held_out_questions(embedded):
    samples = demo.held_out(120)
    full = demo.exact_match(samples, demo.answer(*embedded, samples, demo.Setting()))
    assert full["all"] >= 0.95
    assert all(full[t] >= 0.85 for t in QUESTION_TYPES)
    pruned = demo.Setting(make_policy("divprune"), 0.1)
    some = demo.answer(*embedded, samples, pruned)
    assert {r.n_after for r in some.records} == {14}
    assert demo.exact_match(samples, some)["all"] >= 0.8


def test_scenes_are_deterministic_and_splits_are_apart():
    for seed in (0, SEEDS["train"] + 5):
        a, b = draw_scene(seed), draw_scene(seed)
        assert np.array_equal(a.image, b.image)
        assert (a.shapes, a.tiles) == (b.shapes, b.tiles)
    starts = sorted(SEEDS.values())
    record = json.loads((WEIGHTS / "training.json").read_text())
    scenes = int(record["command"].split("--scenes ")[1].split()[0])
    assert all(b - a > scenes for a, b in itertools.pairwise(starts))


def test_questions_have_one_right_answer():
    for seed in range(60):
        scene = draw_scene(seed)
        assert scene.image.shape == (96, 96, 3)
        assert len({s.cell for s in scene.shapes} | {t.cell for t in scene.tiles}) == len(scene.shapes) + len(
            scene.tiles
        )
        answers: dict[str, str] = {}
        for q in all_questions(scene, np.random.default_rng(seed)):
            assert answers.setdefault(q.text, q.answer) == q.answer
            assert all(word in TOKEN_ID for word in q.answer.split())
        for s in scene.shapes:
            assert answers[f"Where is the {s.colour} {s.kind}?"] == cell_name(s.cell)
        assert answers["How many shapes are there?"] == str(len(scene.shapes))
        asked = ask(scene, seed)
        assert asked == ask(scene, seed)
        assert len({q.type for q in asked}) >= 4


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
    for word in ("full", "grid", "random", "ratio", "20 held-out questions", *QUESTION_TYPES):
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
    arguments = ["--policy", ",".join(names), "--keep", "0.25", "--samples", "8", "--json", str(figures)]
    cli.main(["demo", *arguments, "--out", str(tmp_path / "demo.png")])
    rows = {r["policy"]: r for r in json.loads(figures.read_text())["rows"]}
    assert set(rows) == {"full", *names}
    assert rows["fastv"]["visual_tokens"] == (144 + 144 + 36) / 3  # a mean over decoder layers
    vision = ("divprune", "fopru", "grid", "random", "tokenflex", "recoverable")
    assert all(rows[n]["visual_tokens"] == 36 for n in vision)
    assert all(r["kv_cache_bytes"] < rows["full"]["kv_cache_bytes"] for n, r in rows.items() if n != "full")


def test_dropped_patches_are_dimmed(embedded):
    sample = demo.held_out(1)[0]
    record = demo.answer(*embedded, [sample], demo.Setting(make_policy("random"), 20)).records[0]
    full, dim = demo.dimmed(sample, None, 1), demo.dimmed(sample, record, 1)
    same = (full == dim).reshape(GRID, 8, GRID, 8, 3).all((1, 3, 4)).ravel()
    assert set(record.indices) <= set(np.flatnonzero(same))
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


def test_list_of_policies(capsys):
    cli.main(["policies"])
    printed = capsys.readouterr().out
    for words in (*list_policies(), "2503.02175", "encoder_attention", "decoder", "tau=0.1"):
        assert words in printed
