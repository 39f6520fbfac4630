"""Tokens that leave inside the vision tower: equal to hiding them there, and to a stock language model behind it."""

import pytest
import torch

from tokenprune import TowerCut, apply_pruning, pruning, remove_pruning
from tokenprune.policies import FlowCut

from ..families import FAMILIES, TOWER_FAMILIES, get_model, ragged_batch
from ..oracles import assert_same, check_against_oracles, deep_masked, generate, keep_mask, prune, upper_masks
from ..policies_table import TOWER
from ..support.tower_checks import flops_of
from ..support.towers import features, pixels, tower_of


def test_families_with_a_stage_in_the_tower():
    assert {"llava", "llava_next"} <= set(TOWER_FAMILIES) <= {*FAMILIES} - {"vipllava", "qwen2_vl"}


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("label", [label for label in TOWER if "fastv" not in label])
@pytest.mark.parametrize("family", TOWER_FAMILIES)
def test_oracle(family, label, positions):
    policy, options = TOWER[label]
    records = check_against_oracles(
        get_model(family), ragged_batch(family), policy, 0.3, positions, changes_features=True, **options
    )
    for r in records:
        if family == "llava_next":  # a budget for each tile, and of crops, padding is cut off afterwards
            assert 0.15 * r.n_before < r.n_after < 0.45 * r.n_before
            assert not set(r.indices) & set(r.separators)
        elif label == "downsample":  # three rows of four, or of three
            assert r.n_after in (9, 12)
        else:
            assert r.n_after == round(0.3 * r.n_before)


@pytest.mark.parametrize("label", [label for label in TOWER if "fastv" in label])
@pytest.mark.parametrize("family", [f for f in TOWER_FAMILIES if not FAMILIES[f].blocks])
def test_oracle_with_a_stage_in_the_decoder(family, label):
    policy, options = TOWER[label]
    model, batch = get_model(family), ragged_batch(family)
    run, fed, records = prune(model, batch, policy, 0.2, "original", **options)
    assert_same(run, deep_masked(model, batch, keep_mask(batch, records), upper_masks(batch, records), fed=fed))
    if family != "llava_next":
        assert all(len(r.deep_indices) == round(0.2 * r.n_before) for r in records)


@pytest.mark.parametrize("family", TOWER_FAMILIES)
def test_keeping_all_is_the_stock_model_to_the_bit(family):
    model, batch = get_model(family), ragged_batch(family)
    before = generate(model, batch.inputs)
    for policy in ("tome", "flowcut", "downsample"):
        with pruning(model, policy, 1.0):
            assert torch.equal(generate(model, batch.inputs).logits, before.logits)
    with pruning(model, "tome", 0.3):
        assert not torch.equal(generate(model, batch.inputs).logits, before.logits)
    assert torch.equal(generate(model, batch.inputs).logits, before.logits)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in TOWER_FAMILIES])
def test_other_families_say_why_not(family):
    with pytest.raises(ValueError, match=f"'{family}' does not allow: .* before the language model"):
        apply_pruning(get_model(family), "tome", 0.5)


@torch.no_grad()
def test_pictures_do_not_depend_on_their_neighbours(deep):
    images = pixels()
    for policy in ("tome", "flowcut"):
        with pruning(deep, policy, 0.2, budget="final"):
            together = features(deep, images)
            for i in range(len(images)):
                torch.testing.assert_close(features(deep, images[i : i + 1])[0], together[i], rtol=0, atol=1e-9)


@torch.no_grad()
def test_the_tower_gets_cheaper(deep):
    encode = lambda: features(deep, pixels(1))
    full = flops_of(encode)
    for policy in ("tome", "flowcut", "downsample"):
        with pruning(deep, policy, 0.1, budget="final"):
            assert flops_of(encode) < 0.8 * full


def test_what_cannot_be_is_said_at_once(deep, monkeypatch):
    monkeypatch.setattr(deep.config.vision_config, "_attn_implementation_internal", "flash_attention_2")
    for layer in tower_of(deep).encoder.layers:
        monkeypatch.setattr(layer.self_attn.config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(ValueError, match=r"flash_attention_2 does not take; use proportional_attention=False"):
        apply_pruning(deep, "tome", 0.5)
    apply_pruning(deep, "flowcut", 0.5)
    remove_pruning(deep)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="one policy can act at the encoder stage"):
        apply_pruning(deep, ["tome", "flowcut"], 0.5)


def test_features_from_before_are_refused(deep):
    batch = ragged_batch("llava")
    encoded = deep.model.get_image_features(batch.inputs["pixel_values"])
    if isinstance(encoded, (list, torch.Tensor)):
        pytest.skip("this transformers takes no features")
    inputs = {k: v for k, v in batch.inputs.items() if k != "pixel_values"} | {"mm_encoder_outputs": {"image": encoded}}
    with pruning(deep, "tome", 0.5), pytest.raises(ValueError, match="acts inside the vision tower"):
        deep(**inputs)


def test_a_policy_that_misses_its_budget_is_told(deep):
    class Deaf(FlowCut):
        def encoder_select(self, view):
            return None if view.cut else TowerCut(torch.arange(view.hidden.shape[1] - 1).expand(len(view.hidden), -1))

    with (
        pruning(deep, Deaf(), 0.25),
        pytest.raises(ValueError, match=r"left 35 tokens .*, asked for 9"),
    ):
        features(deep, pixels(1))
