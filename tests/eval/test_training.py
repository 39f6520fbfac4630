"""How the embedded models are trained."""

import json
import sys

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoModelForImageTextToText, LlavaProcessor

from tokenprune.eval.minivlm import llava, prompt, qwen, qwen3, train
from tokenprune.eval.minivlm.data import (
    ABSENT,
    IGNORE,
    QA_LEN,
    encode,
    encode_question,
    make_data,
    pair_questions,
    shapes_named,
    split,
)
from tokenprune.eval.minivlm.data import TYPES as TRAINED
from tokenprune.eval.minivlm.drawing import SHAPES
from tokenprune.eval.minivlm.losses import Grounding
from tokenprune.eval.minivlm.muon import BatchedMuon
from tokenprune.eval.minivlm.packing import PACKED, Packing
from tokenprune.eval.minivlm.questions import ask, compare
from tokenprune.eval.minivlm.qwen_tower import grids, patches
from tokenprune.eval.minivlm.scenes import draw_scene

from .embedded import CLASSES, FAMILIES

current = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.17"), reason="what ships runs everywhere; it is trained on this one"
)


OPTIMIZER_STEP = train.Optimizer.step


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
        pixels = patches(images).double()
        stock = model.model.visual(pixels, grid_thw=grids(3, height, width))
        stock = stock if isinstance(stock, torch.Tensor) else stock.pooler_output
        torch.testing.assert_close(qwen.tower(model, images)[0].flatten(0, 1), stock)


@current
def test_deepstack_of_many_pictures_at_once_is_the_stock_towers(float64):
    model = random_model("qwen3")
    images = torch.randint(0, 256, (2, 96, 128, 3), dtype=torch.uint8)
    stock = model.model.visual(patches(images).double(), grid_thw=grids(2, 96, 128))
    tokens, *planes = qwen3.tower(model, images)[0].flatten(0, 1).split(128, -1)
    torch.testing.assert_close(tokens, stock.pooler_output)
    torch.testing.assert_close(planes, list(stock.deepstack_features))


@current
@pytest.mark.parametrize("name", FAMILIES)
def test_packed_attention_leaves_out_what_the_mask_forbids(name, float64):
    family, model = FAMILIES[name], random_model(name)
    packing = Packing(family, model, 1, family.SIZES[0], 3)
    tokens = torch.randn(2, 144, 128 * (3 if name == "qwen3" else 1))
    ids = torch.randint(len(family.IDS), (2, 3, QA_LEN))
    masked = packing(model, tokens, ids)
    model.set_attn_implementation({"text_config": PACKED})
    for expected, got in zip(masked, packing(model, tokens, ids), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_matrices_are_orthogonalized_together_as_one_by_one():
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in ((6, 4), (4, 6), (6, 4))]
    steps = []
    for cls in (torch.optim.Muon, BatchedMuon):
        parameters = [torch.nn.Parameter(p.clone()) for p in start]
        optimizer = cls(parameters, lr=0.1, weight_decay=0.1)
        for _ in range(3):
            sum((p**3).sum() for p in parameters).backward()
            optimizer.step()
            optimizer.zero_grad()
        steps.append([p.detach() - p0 for p, p0 in zip(parameters, start, strict=True)])
    for expected, got in zip(*steps, strict=True):  # torch's is in bfloat16
        torch.testing.assert_close(got, expected, rtol=0, atol=0.02)


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


def interrupt_after(steps, monkeypatch):
    """Let training stop before it takes one step more; None: let it run."""
    left = [steps]

    def counted(self, loss):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        OPTIMIZER_STEP(self, loss)

    monkeypatch.setattr(train.Optimizer, "step", OPTIMIZER_STEP if steps is None else counted)


def without_times(curve):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in curve]


@current
@pytest.mark.usefixtures("denormals")
@pytest.mark.parametrize("name", ["llava", "qwen3"])  # the third has the trainer of these
def test_training_runs_and_resumes(name, tmp_path, monkeypatch):
    arguments = ["train", "--model", name, "--out", str(tmp_path), "--scenes", "96", "--steps", "3", "3"]
    monkeypatch.setattr("sys.argv", [*arguments, "--batch", "4", "--threads", "1", "--fp32", "--fast"])
    monkeypatch.setattr(train.Trainer, "validate", lambda self: dict.fromkeys(TRAINED, 0.0))
    monkeypatch.setattr(train.Curve, "EVERY", 1)
    monkeypatch.setattr(train.Checkpoint, "EVERY", 2)
    interrupt_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train.main()
    interrupt_after(3, monkeypatch)  # one step of the first stage, and two of the second
    with pytest.raises(KeyboardInterrupt):
        train.main()
    interrupt_after(None, monkeypatch)
    train.main()
    if name == "qwen3":  # an uninterrupted run had the same losses
        monkeypatch.setattr("sys.argv", [*sys.argv, "--out", str(tmp_path / "whole")])
        train.main()
        whole, resumed = (json.loads((f / "training.json").read_text()) for f in (tmp_path / "whole", tmp_path))
        assert without_times(whole["curve"]) == without_times(resumed["curve"])
    record = json.loads((tmp_path / "training.json").read_text())
    assert f"--model {name}" in record["command"]
    assert [row["stage"] for row in record["curve"]] == ["tower"] * 3 + ["language"] * 3
    tower, language = record["curve"][0], record["curve"][3]
    assert record["curve"][2]["patch"] < tower["patch"]
    assert record["curve"][5]["align"] < language["align"]
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(model) is CLASSES[name][0]
    processor = LlavaProcessor.from_pretrained(tmp_path) if name == "llava" else FAMILIES[name].load_processor(tmp_path)
    asked = processor.apply_chat_template(prompt("Is there a red circle?"), add_generation_prompt=True)
    inputs = processor(images=[draw_scene(0).image], text=[asked], return_tensors="pt")
    assert model.generate(**inputs).shape[1] > inputs["input_ids"].shape[1]
    assert not (tmp_path / "checkpoint.pt").exists()
