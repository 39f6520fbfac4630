"""Pages, short videos and descriptions, and the embedded model that is asked about them."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version

from tokenprune import cli
from tokenprune.eval.answers import answer, encode, exact_matches
from tokenprune.eval.bench import PAGES
from tokenprune.eval.bench.downsample import Downsampled
from tokenprune.eval.bench.page_tasks import samples
from tokenprune.eval.bench.tasks import asked
from tokenprune.eval.minivlm import NAMES, WEIGHTS, load, qwen, qwen_pages
from tokenprune.eval.minivlm.data import IGNORE, split
from tokenprune.eval.minivlm.drawing import CHARACTERS, COLOUR_NAMES, LETTERS
from tokenprune.eval.minivlm.packing import PACKED, Packing
from tokenprune.eval.minivlm.qwen_pages import train
from tokenprune.eval.minivlm.qwen_pages.clips import DIRECTIONS, draw_clip
from tokenprune.eval.minivlm.qwen_pages.data import LENGTHS, QUESTIONS, SIZES, make_batch
from tokenprune.eval.minivlm.qwen_pages.pages import PagePainter, draw_page
from tokenprune.eval.minivlm.qwen_pages.questions import TYPES, clip_questions, describe, page_questions
from tokenprune.eval.minivlm.qwen_tower import patches
from tokenprune.eval.minivlm.scenes import cell_name, draw_scene
from tokenprune.eval.play.examples import examples
from tokenprune.eval.setting import PruningSetting
from tokenprune.policies import make_policy
from tokenprune.policies.types import VisualTokens

SEEDS = range(20)
KINDS = PagePainter.kinds

current = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.17"),
    reason="what ships runs everywhere; training and the stage `pixels` do not",
)
builds = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.0"), reason="processors are built of parts from transformers 5 on"
)
trained = pytest.mark.skipif("qwen-pages" not in NAMES, reason="this checkout has no weights of qwen-pages")


@pytest.fixture(scope="module")
def untrained():
    """The model before its training, and its processor."""
    torch.manual_seed(0)
    return qwen_pages.build_model().eval(), qwen_pages.build_processor()


def cells_of(where):
    """The 3 x 3 cells in which most of the tokens of a page lie for which `where` (16, 16) is true."""
    rows, columns = np.nonzero(where)
    return round((rows.mean() + 0.5) * 3 / 16 - 0.5) * 3 + round((columns.mean() + 0.5) * 3 / 16 - 0.5)


def test_pages_are_drawn_as_their_questions_say():
    for seed in SEEDS:
        page, again = draw_page(seed), draw_page(seed)
        assert page.image.shape == (128, 128, 3) and np.array_equal(page.image, again.image)
        colour, kind, character, slot, key = page.labels
        answers = {q.text: q.answer for q in page_questions(page)}
        buttons = kind == KINDS.index("button") + 1
        assert answers["How many buttons are there?"] == str(len(page.buttons))
        assert set(colour[buttons]) == {COLOUR_NAMES.index(b.colour) + 1 for b in page.buttons}
        for button in page.buttons:
            own = buttons & (colour == COLOUR_NAMES.index(button.colour) + 1)
            assert answers[f"Where is the {button.colour} button?"] == cell_name(cells_of(own))
            assert CHARACTERS.index(answers[f"Which letter is on the {button.colour} button?"]) + 1 in character[own]
        for i, letter in enumerate(page.heading):
            assert set(character[slot == i + 1]) == {CHARACTERS.index(letter) + 1}
        for name, value in page.table:
            assert answers[f"What is the value of {name}?"] == value
            assert set(character[key == LETTERS.index(name) + 1]) == {CHARACTERS.index(value) + 1}
        for name, there in (("panel", page.panel), ("dot", page.dot)):
            found = colour[kind == KINDS.index(name) + 1]
            assert set(found) == ({COLOUR_NAMES.index(there) + 1} if there else set())
            assert answers.get(f"What colour is the {name}?") == there


def test_half_of_a_page_is_predicted_by_the_other():
    shares = []
    for seed in SEEDS:
        blocks = patches(torch.from_numpy(draw_page(seed).image)[None]).view(256, -1)
        kept = make_policy("pixelprune").select(VisualTokens(blocks, grids=((1, 16, 16),)), None)
        shares.append(len(kept.indices) / 256)
    assert 0.2 <= np.mean(shares) <= 0.6 and max(shares) < 0.8


def test_short_videos_are_drawn_as_their_questions_say():
    ways = set()
    for seed in SEEDS:
        clip = draw_clip(seed)
        assert clip.frames.shape == (8, 64, 64, 3) and np.array_equal(clip.frames, draw_clip(seed).frames)
        answers = {q.text: q.answer for q in clip_questions(clip)}
        assert answers["In which frame does the dot appear?"] == str(clip.appears)
        dot = clip.changes >= 6
        first = (clip.appears - 1) // 2
        assert [d.any() for d in dot] == [i >= first for i in range(4)]
        assert set(clip.changes[first][dot[first]]) == {6 + (clip.appears % 2 == 0)}
        for mover in clip.movers:
            ways.add(answers[f"Which way does the {mover.colour} {mover.kind} move?"])
            found = [np.nonzero(labels[0] == COLOUR_NAMES.index(mover.colour) + 1) for labels in clip.labels]
            y, x = (np.array([f[axis].mean() for f in found if len(f[0])]) for axis in (0, 1))
            down, right = y[-1] - y[0], x[-1] - x[0]
            named = {"left": -right, "right": right, "up": -down, "down": down}
            assert mover.way == "stays" or named[mover.way] == max(named.values()) > 1
        still = (clip.labels[:, 1] == 0).all(0).repeat(8, 0).repeat(8, 1)
        assert (clip.frames[:, still] == clip.frames[0, still]).all()
        tokens = patches(torch.from_numpy(clip.frames).unflatten(0, (4, 2))).view(256, -1)
        changed = VisualTokens(tokens, grids=((4, 8, 8),), pixel_shape=(4, 3, 2, 16))
        assert 64 <= len(make_policy("rlt").select(changed, None).indices) < 180
    assert ways == set(DIRECTIONS)


def test_descriptions_are_in_reading_order():
    for seed in SEEDS:
        scene = draw_scene(seed)
        words = describe(scene).answer.split(" and ")
        names = {cell_name(s.cell): f"{s.colour} {s.kind}" for s in scene.shapes}
        names |= {cell_name(t.cell): f"{t.colour} tile {t.letter}" for t in scene.tiles}
        assert words == [f"{names[place]} {place}" for place in map(cell_name, range(9)) if place in names]


@builds
def test_words_are_known_and_fit():
    tokenizer = qwen_pages.build_processor().tokenizer
    assert list(qwen_pages.IDS)[: len(qwen.IDS)] == list(qwen.IDS)  # whose weights they go on with
    for kind in SIZES:
        batch = make_batch(kind, "test", 0, 20)
        assert ((batch.targets != IGNORE).sum(-1) > 0).sum(-1).max() <= QUESTIONS[kind]
        assert batch.ids.shape[-1] == LENGTHS[kind]
    for text in {q.text + " " + q.answer for seed in SEEDS for q in page_questions(draw_page(seed))}:
        assert [qwen_pages.IDS[w] for w in split(text)] == tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("task", PAGES)
def test_tasks_ask_the_same_questions_each_time(task):
    some = asked("qwen-pages", task, 8)
    assert [s.question for s in some] == [s.question for s in asked("qwen-pages", task, 8)]
    assert {s.question.type for s in some} == {task}
    validation = asked("qwen-pages", task, 2, "validation")
    assert not any(np.array_equal(a.scene.image, b.scene.image) for a in some for b in validation)
    if task in ("motion", "frame"):
        assert max(Counter(s.question.answer for s in some).values()) <= 2


def test_all_types_are_asked():
    assert tuple(PAGES) == TYPES


@builds
def test_frames_are_patches_as_the_image_processor_makes_them(untrained):
    image = draw_page(0).image
    stock = untrained[1].image_processor([image], return_tensors="pt")["pixel_values"]
    twice = torch.from_numpy(np.stack([image, image]))[None]
    torch.testing.assert_close(patches(twice), stock)


@current
@pytest.mark.parametrize("kind", SIZES)
def test_packed_questions_are_answered_as_one_by_one(kind, untrained):
    """What training sees is what the model makes of the benchmark's inputs."""
    model, processor = untrained
    batch = make_batch(kind, "test", 0, 1)
    task = {"page": "heading", "clip": "frame", "scene": "caption"}[kind]
    model.set_attn_implementation({"text_config": PACKED})
    tokens = qwen_pages.tower(model, batch.images)[0].flatten(0, 1)[None]
    packing = Packing(qwen_pages, model, 1, SIZES[kind], QUESTIONS[kind], LENGTHS[kind])
    with torch.inference_mode():
        packed = packing(model, tokens, batch.ids)[0][0]
        model.set_attn_implementation({"text_config": "sdpa"})
        for slot in range(QUESTIONS[kind]):
            if batch.types[0, slot] == TYPES.index(task):
                (sample,) = samples(task, 1)
                sample = type(sample)((draw_page(0) if kind == "page" else draw_clip(0),), sample.question)
                if kind == "scene":
                    sample = type(sample)((draw_scene(0, *SIZES["scene"]),), sample.question)
                stock = model(**encode(processor, [sample], [sample.images])).logits[0, -1]
                first = int((batch.targets[0, slot] != IGNORE).nonzero()[0])
                torch.testing.assert_close(packed[slot, first - 1], stock, rtol=1e-3, atol=1e-3)
                return
    raise AssertionError("no such question")


@current
def test_videos_are_asked_in_batches_and_pruned(untrained):
    model, processor = untrained
    some = samples("motion", 3)
    full = answer(model, processor, some, PruningSetting())
    assert full.kept == [256] * 3
    assert answer(model, processor, some[1:2], PruningSetting()).texts == full.texts[1:2]
    still = answer(model, processor, some, PruningSetting("rlt"))
    assert all(64 <= kept < 180 for kept in still.kept)
    half = answer(model, processor, some, PruningSetting("divprune", 0.5))
    assert half.kept == [128] * 3 and len(half.records[0]) == 1
    assert answer(model, processor, some, Downsampled(keep=0.25)).kept == [64] * 3
    many = [some[0]] * 24  # more than a prompt has tokens
    assert answer(model, processor, many, Downsampled(keep=1), batch=24).kept == [4] * 24
    assert answer(model, processor, some, PruningSetting()) == full


@current
def test_training_runs_and_resumes(tmp_path, monkeypatch):
    arguments = ["train", "--out", str(tmp_path), "--steps", "3", "4", "--batch", "1", "1"]
    monkeypatch.setattr("sys.argv", arguments)
    monkeypatch.setattr(train, "_HEADS_ALONE", 1)
    monkeypatch.setattr(train.Trainer, "validate", lambda self: dict.fromkeys(TYPES, 0.0))
    monkeypatch.setattr(train.Curve, "EVERY", 1)
    monkeypatch.setattr(train.Checkpoint, "EVERY", 1)
    step, left = train.Optimizer.step, [4]

    def counted(self, loss):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        step(self, loss)

    monkeypatch.setattr(train.Optimizer, "step", counted)
    try:
        with pytest.raises(KeyboardInterrupt):
            train.main()
        left[0] = 3
        train.main()
    finally:
        torch.set_flush_denormal(False)
    record = json.loads((tmp_path / "training.json").read_text())
    assert [row["stage"] for row in record["curve"]] == ["tower"] * 3 + ["language"] * 4
    assert "change" in record["curve"][1] and "caption" in record["curve"][4] and "frame" in record["curve"][5]
    model = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert model.config.text_config.vocab_size == len(qwen_pages.IDS)
    assert model.generation_config.max_new_tokens == qwen_pages.MOST_WORDS
    before = load("qwen")[0].model.visual.blocks[0].attn.qkv.weight
    assert not torch.equal(model.model.visual.blocks[0].attn.qkv.weight, before)
    assert not (tmp_path / "checkpoint.pt").exists()


@trained
def test_pictures_to_begin_with_are_its_own():
    for name in ("qwen-pages", "embedded-qwen-pages", str(WEIGHTS["qwen-pages"])):
        assert {example.picture.size for example in examples(name)} == {(128, 128)}
    assert examples("embedded-qwen")[0].picture.size == (96, 96)


@trained
def test_tasks_about_scenes_are_refused(capsys):
    with pytest.raises(SystemExit):
        cli.main(["eval", "--model", "qwen-pages", "--policy", "grid"])
    assert "tokenprune bench --model qwen-pages asks what it can answer" in capsys.readouterr().err


@trained
def test_answers_held_out_questions():
    model, processor = load("qwen-pages")
    scores = {}
    for task in PAGES:
        some = samples(task, 8)
        scores[task] = exact_matches(some, answer(model, processor, some, PruningSetting())).mean()
    assert np.mean(list(scores.values())) >= 0.9, scores
    assert min(scores.values()) >= 0.6, scores  # of eight; the benchmark asks more
    assert "--seed 0" in json.loads((WEIGHTS["qwen-pages"] / "training.json").read_text())["command"]
