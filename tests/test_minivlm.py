"""The embedded models, what they are asked, how they are trained, and the demo on the command line."""

import itertools
import json

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)

from tokenprune import cli, list_policies
from tokenprune.eval import demo
from tokenprune.eval.asking import TYPES, Setting, answer, held_out, right
from tokenprune.eval.bench.tasks import TASKS, samples
from tokenprune.eval.minivlm import NAMES, WEIGHTS, llava, load, prompt, qwen, train
from tokenprune.eval.minivlm.data import (
    ABSENT,
    IGNORE,
    encode,
    encode_question,
    make_data,
    pair_questions,
    shapes_named,
    split,
)
from tokenprune.eval.minivlm.data import TYPES as TRAINED
from tokenprune.eval.minivlm.drawing import SHAPES
from tokenprune.eval.minivlm.losses import Grounding, Packing
from tokenprune.eval.minivlm.questions import all_questions, ask, compare
from tokenprune.eval.minivlm.scenes import GRID, SEEDS, cell_name, draw_scene
from tokenprune.policies import make_policy

FAMILIES = {"llava": llava, "qwen": qwen}
CLASSES = {
    "llava": (LlavaForConditionalGeneration, LlavaProcessor),
    "qwen": (Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor),
}


@pytest.fixture(scope="module")
def embedded():
    return load()


@pytest.mark.parametrize("name", NAMES)
def test_ships_small_and_loads_as_stock_classes(name):
    model, processor = load(name)
    assert type(model) is CLASSES[name][0]
    assert isinstance(processor, CLASSES[name][1])
    assert sum(f.stat().st_size for f in WEIGHTS[name].iterdir()) < 20e6
    record = json.loads((WEIGHTS[name] / "training.json").read_text())
    assert {"command", "machine", "wall_minutes", "validation_exact_match", "curve"} <= set(record)


def test_other_names_are_refused():
    with pytest.raises(ValueError, match="accepted: llava, qwen"):
        load("blip")


@pytest.mark.parametrize(("name", "overall"), [("llava", 0.95), ("qwen", 0.93)])
def test_answers_held_out_questions(name, overall):
    model, processor = load(name)
    scores = {}
    for task in TASKS:
        some = samples(task, 48, FAMILIES[name].SIZES)
        scores[task] = right(some, answer(model, processor, some, Setting())).mean()
    assert np.mean(list(scores.values())) >= overall, scores
    assert min(scores.values()) >= 0.85, scores


def test_answers_from_a_tenth_of_the_tokens(embedded):
    some = held_out(120)
    pruned = answer(*embedded, some, Setting(make_policy("divprune"), 0.1))
    assert set(pruned.kept) == {14}
    assert demo.exact_match(some, pruned)["all"] >= 0.6


def test_scenes_are_deterministic_and_splits_are_apart():
    for seed, size in ((0, (96, 96)), (SEEDS["train"] + 5, (128, 96))):
        a, b = draw_scene(seed, *size), draw_scene(seed, *size)
        assert a.image.shape == (*size, 3)
        assert np.array_equal(a.image, b.image)
        assert (a.shapes, a.tiles, a.word, a.table, a.dot) == (b.shapes, b.tiles, b.word, b.table, b.dot)
    starts = sorted(SEEDS.values())
    for name in NAMES:
        record = json.loads((WEIGHTS[name] / "training.json").read_text())
        scenes = int(record["command"].split("--scenes ")[1].split()[0])
        assert all(b - a > scenes for a, b in itertools.pairwise(starts))


def test_sizes_that_are_no_rasters_are_refused():
    with pytest.raises(ValueError, match="width=100: accepted are multiples of 8 from 96"):
        draw_scene(0, 96, 100)


def test_questions_have_one_right_answer():
    for seed in range(60):
        scene = draw_scene(seed)
        cells = [s.cell for s in scene.shapes] + [t.cell for t in scene.tiles]
        assert len(set(cells)) == len(cells)
        answers: dict[str, str] = {}
        for q in all_questions(scene, np.random.default_rng(seed)):
            assert answers.setdefault(q.text, q.answer) == q.answer
            for family in FAMILIES.values():
                assert all(word in family.IDS for word in q.answer.split())
        for s in scene.shapes:
            assert answers[f"Where is the {s.colour} {s.kind}?"] == cell_name(s.cell)
        for key, value in scene.table:
            assert answers[f"What is the value of {key}?"] == value
        assert answers["How many shapes are there?"] == str(len(scene.shapes))
        asked = ask(scene, seed)
        assert asked == ask(scene, seed)
        assert len({q.type for q in asked}) >= 4


def test_pairs_are_compared_by_kind():
    first, second = draw_scene(3), draw_scene(4)
    for q in compare(first, second):
        kind = q.text.split()[-1].rstrip("?")
        held = [any(s.kind == kind for s in scene.shapes) for scene in (first, second)]
        assert q.answer == {(1, 0): "first", (0, 1): "second", (1, 1): "both", (0, 0): "neither"}[tuple(held)]


# ---------------------------------------------------------------- training

current = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.17"), reason="what ships runs everywhere; it is trained on this one"
)


def random_model(name):
    torch.manual_seed(0)
    model = FAMILIES[name].build_model().double().eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(std=0.15)
    return model


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@current
def test_windows_of_many_pictures_at_once_are_the_stock_tower(float64):
    model = random_model("qwen")
    for height, width in qwen.SIZES:
        images = torch.randint(0, 256, (3, height, width, 3), dtype=torch.uint8)
        pixels = qwen.patches(images).double()
        stock = model.model.visual(pixels, grid_thw=qwen.grids(3, height, width))
        stock = stock if isinstance(stock, torch.Tensor) else stock.pooler_output
        torch.testing.assert_close(qwen.tower(model, images)[0].flatten(0, 1), stock)


@current
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("n_images", [1, 2])
def test_packed_questions_are_answered_as_one_by_one(name, n_images, float64):
    """What training sees is what the processor and the model make of a conversation."""
    family, model = FAMILIES[name], random_model(name)
    processor = family.build_processor()
    size = family.SIZES[-1]
    scenes = [draw_scene(seed, *size) for seed in (6, 7)[:n_images]]
    asked = compare(*scenes) if n_images == 2 else ask(scenes[0], 6, 6)
    encoded = [encode_question(family, q.text, q.answer) for q in asked]
    ids, targets = (torch.from_numpy(np.stack(column)) for column in zip(*encoded, strict=True))
    images = torch.from_numpy(np.stack([s.image for s in scenes]))
    tokens = family.project(model, family.tower(model, images, pooled=False)[0]).flatten(0, 1)[None]
    packed = Packing(family, model, n_images, size, len(asked))(model, tokens, ids[None])[0][0]
    for question, logits, target in zip(asked, packed, targets, strict=True):
        text = processor.apply_chat_template(prompt(question.text, n_images), add_generation_prompt=True)
        inputs = processor(images=[s.image for s in scenes], text=[text], return_tensors="pt")
        inputs["pixel_values"] = inputs["pixel_values"].double()
        stock = model(**inputs).logits[0, -1]
        first = int((target != IGNORE).nonzero()[0])
        torch.testing.assert_close(logits[first - 1], stock.to(logits.dtype), rtol=1e-5, atol=1e-5)


@current
@pytest.mark.parametrize("name", FAMILIES)
def test_words_are_tokenized_as_the_tokenizer_does(name):
    family, tokenizer = FAMILIES[name], FAMILIES[name].build_processor().tokenizer
    for seed in range(8):
        for q in ask(draw_scene(seed), seed, 20):
            for text in (q.text, q.answer):
                assert encode(text, family.IDS) == tokenizer(text, add_special_tokens=False).input_ids


def test_training_scenes_alike_share_two_colours_and_two_kinds():
    for seed in range(40):
        plain, alike = draw_scene(seed), draw_scene(seed, alike=True)
        assert len(alike.shapes) == len(plain.shapes) == len({(s.colour, s.kind) for s in alike.shapes})
        assert len({s.colour for s in alike.shapes}) <= 2 and len({s.kind for s in alike.shapes}) <= 2


def test_names_in_questions_know_their_cells():
    for seed in range(20):
        scene = draw_scene(seed)
        cells = {f"{s.colour} {s.kind}": s.cell for s in scene.shapes}
        for q in ask(scene, seed, 40):
            words, named = split(q.text), shapes_named(q.text, scene)
            found = {" ".join(words[i - 1 : i + 1]): cell for i, cell in named.tolist() if i >= 0}
            assert len(found) == {"exists": 1, "where": 1, "relation": 2}.get(q.type, 0)
            assert all(cells.get(name, ABSENT) == cell for name, cell in found.items())
            if q.type == "exists":
                assert (q.answer == "no") == (ABSENT in found.values())


def test_grounding_reads_the_names_and_nothing_else():
    """States that tell the cell at the named places: right there, whatever stands elsewhere."""
    named = torch.tensor([[[[2, 4], [5, ABSENT]], [[-1, -1], [-1, -1]]]])
    hidden = torch.randn(1, 2, 7, ABSENT + 1)
    for place, cell in named[0, 0].tolist():
        hidden[0, 0, place] = 9 * torch.nn.functional.one_hot(torch.tensor(cell), ABSENT + 1)
    grounding = Grounding(ABSENT + 1)
    with torch.no_grad():
        grounding.places.weight.copy_(torch.eye(ABSENT + 1))
        grounding.places.bias.zero_()
    loss, share = grounding.loss(hidden, named)
    assert loss < 0.01 and share == 1


@current
@pytest.mark.parametrize("name", FAMILIES)
def test_heads_that_start_by_looking_for_likes(name):
    """Such a head gives a state its largest logit with itself; of the others, this cannot be said."""
    torch.manual_seed(0)
    model = FAMILIES[name].build_model()
    train.attend_to_likes(model)
    states = torch.nn.functional.rms_norm(torch.randn(50, 128), (128,))
    for layer in model.model.language_model.layers:
        query, key = (p(states).unflatten(1, (-1, 32)) for p in (layer.self_attn.q_proj, layer.self_attn.k_proj))
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
        most = torch.einsum("ihd,jhd->hij", query, key).argmax(-1)
        likes = (most == torch.arange(50)).float().mean(1)
        assert (likes[:2] > 0.95).all() and (likes[2:] < 0.5).all()


def test_pairs_of_pictures_are_encoded_as_they_are_asked():
    scenes = [draw_scene(seed) for seed in range(4)]
    kinds = torch.stack([part.kinds[0] for part in make_data(llava, "test", 1)])
    assert kinds[0].tolist() == [any(s.kind == k for s in scenes[0].shapes) for k in SHAPES]
    held = torch.tensor([[any(s.kind == k for s in scene.shapes) for k in SHAPES] for scene in scenes])
    ids, targets = pair_questions(llava, held[:2], held[2:])
    for i in range(2):
        for k, q in enumerate(compare(scenes[i], scenes[i + 2])):
            expected = encode_question(llava, q.text, q.answer)
            assert np.array_equal(ids[i, k], expected[0])
            assert np.array_equal(targets[i, k], expected[1])


@pytest.fixture
def denormals():
    """Training flushes them; what is tested next had better not."""
    yield
    torch.set_flush_denormal(False)


@current
@pytest.mark.usefixtures("denormals")
@pytest.mark.parametrize("name", FAMILIES)
def test_training_runs_and_resumes(name, tmp_path, monkeypatch):
    arguments = ["train", "--model", name, "--out", str(tmp_path), "--scenes", "96", "--steps", "6", "6"]
    monkeypatch.setattr("sys.argv", [*arguments, "--batch", "8", "--threads", "1", "--fp32"])
    original, stopped = train.Trainer.language, []

    def interrupted(self, *args):
        if not stopped:
            stopped.append(True)
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(train.Trainer, "language", interrupted)
    monkeypatch.setattr(train.Trainer, "validate", lambda self: dict.fromkeys(TRAINED, 0.0))
    monkeypatch.setattr(train.Curve, "EVERY", 2)
    with pytest.raises(KeyboardInterrupt):
        train.main()
    train.main()
    record = json.loads((tmp_path / "training.json").read_text())
    assert f"--model {name}" in record["command"]
    assert [row["stage"] for row in record["curve"]] == ["tower"] * 3 + ["language"] * 3
    tower, language = record["curve"][0], record["curve"][3]
    assert record["curve"][2]["patch"] < tower["patch"]
    assert record["curve"][5]["align"] < language["align"]
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(model) is CLASSES[name][0]
    processor = LlavaProcessor.from_pretrained(tmp_path) if name == "llava" else qwen.load_processor(tmp_path)
    asked = processor.apply_chat_template(prompt("Is there a red circle?"), add_generation_prompt=True)
    inputs = processor(images=[draw_scene(0).image], text=[asked], return_tensors="pt")
    assert model.generate(**inputs).shape[1] > inputs["input_ids"].shape[1]
    assert not (tmp_path / "checkpoint.pt").exists()


# ---------------------------------------------------------------- the demo


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
    arguments = ["--policy", ",".join(names), "--keep", "0.25", "--samples", "8", "--json", str(figures)]
    cli.main(["demo", *arguments, "--out", str(tmp_path / "demo.png")])
    rows = {r["policy"]: r for r in json.loads(figures.read_text())["rows"]}
    assert set(rows) == {"full", *names}
    assert rows["fastv"]["visual_tokens"] == (144 + 144 + 36 + 36) / 4  # a mean over decoder layers
    vision = ("divprune", "fopru", "grid", "random", "tokenflex", "recoverable")
    assert all(rows[n]["visual_tokens"] == 36 for n in vision)
    assert all(r["kv_cache_bytes"] < rows["full"]["kv_cache_bytes"] for n, r in rows.items() if n != "full")


def test_dropped_patches_are_dimmed(embedded):
    sample = held_out(1)[0]
    records = answer(*embedded, [sample], Setting(make_policy("random"), 20)).records[0]
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


def test_list_of_policies(capsys):
    cli.main(["policies"])
    printed = capsys.readouterr().out
    for words in (*list_policies(), "2503.02175", "encoder_attention", "decoder", "tau=0.1"):
        assert words in printed
