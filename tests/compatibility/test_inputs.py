"""Prompts and pictures out of the ordinary."""

from __future__ import annotations

import contextlib
import inspect

import pytest
import torch

from tokenprune import pruning, pruning_report

from ..families import Picture, get_model, make_batch, one_row, picture, ragged_batch
from ..oracles import assert_same, generate
from ..patches import test_visual_inputs
from .cells import alike, area

AREA = "Inputs"
cell = area(AREA)


@cell("no image at all", "the stock model, to the bit")
def test_no_image(family):
    model, batch = get_model(family), make_batch(family, [[7], [4]])
    before = generate(model, batch.inputs)
    with pruning(model, "divprune", 0.3):
        assert torch.equal(generate(model, batch.inputs).logits, before.logits)


@cell("32 images in a row")
def test_many_images(family):
    alike(family, make_batch(family, [[1, picture(family)] * 32 + [3]]), do_sample=False)


@cell("an image of one token", "it stays", families=("qwen2_5_vl", "qwen3_vl"))
def test_one_token(family):
    batch = make_batch(family, [[3, Picture((2, 2)), 5], [2, Picture((4, 6)), 3]])
    with pruning(get_model(family), "divprune", 0.1):
        generate(get_model(family), batch.inputs, steps=2)
        assert [(r.n_before, r.n_after) for r in pruning_report(get_model(family))] == [(1, 1), (6, 1)]
    alike(family, batch, do_sample=False)


@cell("images of extreme aspect ratio", families=("llava_next", "qwen2_5_vl"))
def test_narrow_images(family):
    thin, flat = ((2, 44), (40, 2)) if family.startswith("qwen") else ((6, 48), (48, 4))
    alike(family, make_batch(family, [[3, Picture(thin), 5], [2, Picture(flat), 3]]), do_sample=False)


@cell("`inputs_embeds` instead of `input_ids` (`forward`)", "same logits", families=("llava", "llava_next"))
def test_embeds_given(family):
    model, batch = get_model(family), ragged_batch(family)
    inputs = dict(batch.inputs)
    ids = inputs.pop("input_ids")
    with torch.no_grad(), pruning(model, "divprune", 0.3):
        expected = model(input_ids=ids, **inputs).logits
        assert torch.equal(model(inputs_embeds=model.get_input_embeddings()(ids), **inputs).logits, expected)
        assert expected.shape[1] < ids.shape[1]


@cell("precomputed `mm_encoder_outputs`", "same answer; policies that read the encoder want it computed pruned")
def test_features_given(family):
    model, batch = get_model(family), ragged_batch(family)
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        pytest.skip("this transformers takes none")
    pictures = {k: v for k, v in batch.inputs.items() if k.startswith(("pixel_values", "image_"))}
    rest = {k: v for k, v in batch.inputs.items() if k not in pictures}
    grids = {k: v for k, v in pictures.items() if k.startswith("image_")}  # Qwen numbers its positions by them
    stock = model.model.get_image_features(**pictures)
    with torch.no_grad(), pruning(model, "divprune", 0.3):
        expected = model(**batch.inputs).logits
        assert torch.equal(model(**rest, **grids, mm_encoder_outputs={"image": stock}).logits, expected)
    with torch.no_grad(), pruning(model, "fopru", 0.3):
        heard = model.model.get_image_features(**pictures)
        expected = model(**batch.inputs).logits
        assert torch.equal(model(**rest, **grids, mm_encoder_outputs={"image": heard}).logits, expected)
        with pytest.raises(ValueError, match="compute the features with pruning applied"):
            model(**rest, **grids, mm_encoder_outputs={"image": stock})
        moved = type(heard)(**heard)  # as generate and accelerate copy features to the model's device
        assert torch.equal(model(**rest, **grids, mm_encoder_outputs={"image": moved}).logits, expected)


@cell("a budget above the number of tokens", "everything stays")
def test_big_budget(family):
    model, batch = get_model(family), ragged_batch(family)
    before = generate(model, batch.inputs)
    with pruning(model, "divprune", 10_000):
        assert torch.equal(generate(model, batch.inputs).logits, before.logits)


@cell("videos of 1 and of 64 frames", families=("llava_onevision", "qwen2_5_vl"))
def test_videos(family):
    for frames in (1, 64):
        alike(family, make_batch(family, [[2, Picture((4, 4), frames), 5]]), do_sample=False)


@cell("no attention mask", "as with one of ones")
def test_no_mask(family):
    model, batch = get_model(family), one_row(family)
    with pruning(model, "divprune", 0.3):
        expected = generate(model, batch.inputs)
        assert_same(generate(model, {k: v for k, v in batch.inputs.items() if k != "attention_mask"}), expected)


@cell("right padding (`forward`)", "stays where it is; logits of each row as with left padding")
def test_right_padding(family):
    model, batch = get_model(family), ragged_batch(family)
    mask = batch.inputs["attention_mask"]
    order = torch.argsort(mask, dim=1, descending=True, stable=True)  # padding goes to the right
    flipped = {k: v.gather(1, order) for k, v in batch.inputs.items() if v.shape == mask.shape}
    with torch.no_grad(), pruning(model, "divprune", 0.3, positions="original"):
        right = model(**{**batch.inputs, **flipped}).logits
        left = model(**batch.inputs).logits
        records = pruning_report(model)
    for row, n in enumerate(mask.sum(1).tolist()):
        end = right.shape[1] - (mask.shape[1] - n)
        n -= sum(r.n_before - r.n_after for r in records if r.sample == row)
        torch.testing.assert_close(right[row, end - n : end], left[row, -n:], rtol=0, atol=1e-5)


@cell(
    "visual tokens that the attention mask hides",
    "neither counted nor offered nor reported",
    ("llava", "llava_next", "internvl"),
)
def test_hidden_tokens(family):
    test_visual_inputs.test_placeholders_that_the_mask_hides_are_no_candidates(family, "auto")


@cell("NaN or infinite features", "an error that says so, or a choice within range; never a hang")
def test_broken_features(family):
    model, batch = get_model(family), one_row(family)
    for value in (float("nan"), float("inf")):
        pixels = {k: torch.full_like(v, value) for k, v in batch.inputs.items() if k.startswith("pixel")}
        for policy in ("divprune", "fopru", "todre", "random", "grid"):
            with torch.no_grad(), pruning(model, policy, 0.3, budget="final"), contextlib.suppress(ValueError):
                model(**{**batch.inputs, **pixels})
                record = pruning_report(model)[0]
                assert record.indices == sorted(set(record.indices))
                assert set(record.indices) <= set(range(record.n_before))
    model(**batch.inputs)
