"""Patches that leave before the first layer of a CLIP or SigLIP tower: equal to hiding them there."""

import contextlib

import pytest
import torch

from tokenprune import apply_pruning, pruning, pruning_report
from tokenprune.policies import PixelPrune, make_policy

from ..builders import LLAVA_SIDE, PATCH
from ..families import TOWER_FAMILIES, get_model, ragged_batch
from ..oracles import check_against_oracles
from ..support.tower_checks import check_keeping_all
from ..support.towers import deep_llava, features, pixels


@contextlib.contextmanager
def hidden(model, keep: torch.Tensor):
    """Tokens that are False in (B, M) get no attention in any layer of the tower."""
    encoder = model.model._tokenprune_test_layers
    bias = torch.zeros(keep.shape, dtype=torch.float64).masked_fill(~keep, -1e300)[:, None, None]

    def mask(module, args, kwargs):
        full = bias.expand(-1, -1, keep.shape[1], -1)
        return (args[0], full, *args[2:]) if len(args) > 1 else args, kwargs if len(args) > 1 else {
            **kwargs, "attention_mask": full
        }  # fmt: skip

    handles = [layer.register_forward_pre_hook(mask, with_kwargs=True) for layer in encoder]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("policy", ["grid@pixels", "divprune@pixels", "pixelprune"])
@pytest.mark.parametrize("family", ["llava", "paligemma"])
@torch.no_grad()
def test_the_tower_is_as_if_the_other_patches_were_hidden(family, policy):
    if family not in TOWER_FAMILIES:
        pytest.skip("not in this transformers")
    model = deep_llava() if family == "llava" else get_model(family)
    images = pixels()
    with pruning(model, policy, 0.3):
        stage = model.model._tokenprune.encoder
        pruned = features(model, images)
        n_cls, layers = stage.n_cls, stage.layers
    kept = pruned.abs().amax(2) > 0
    n = (LLAVA_SIDE // PATCH) ** 2
    assert kept.sum(1).tolist() == [round(0.3 * n)] * len(images)
    keep = torch.cat([torch.ones(len(images), n_cls, dtype=torch.bool), kept], 1)
    model.model._tokenprune_test_layers = list(layers)
    try:
        with hidden(model, keep):
            stock = features(model, images)
    finally:
        del model.model._tokenprune_test_layers
    torch.testing.assert_close(pruned[kept], stock[kept], rtol=0, atol=1e-9)
    assert (features(model, images) - stock)[kept].abs().max() > 1e-4


@pytest.mark.parametrize("family", TOWER_FAMILIES)
def test_oracle(family):
    records = check_against_oracles(
        get_model(family), ragged_batch(family), ["grid@pixels", "visionzip"], 0.3, "original", changes_features=True
    )
    for r in records:
        assert r.n_before > r.n_by_stage["pixels"] > r.n_after == r.n_by_stage["vision"]
        assert set(r.indices) <= set(r.kept_after["pixels"])


@pytest.mark.parametrize("family", TOWER_FAMILIES)
def test_keeping_all_is_the_stock_model_to_the_bit(family):
    model, batch = get_model(family), ragged_batch(family)
    check_keeping_all(model, batch, "pixelprune")


@torch.no_grad()
def test_raw_pixels_are_those_of_the_patch():
    model, seen = get_model("llava"), []

    class Watch(PixelPrune):
        def select(self, tokens, n_keep):
            seen.append(tokens)
            return super().select(tokens, n_keep)

    batch = ragged_batch("llava")
    with pruning(model, Watch(), 0.5):
        model(**batch.inputs)
        assert all(r.n_after == r.n_by_stage["pixels"] == r.n_before // 2 for r in pruning_report(model))
    images = batch.inputs["pixel_values"]
    assert len(seen) == len(images) and seen[0].pixel_shape == (1, 3, 1, PATCH**2)
    row, column = 2, 4
    patch = images[1, :, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
    side = LLAVA_SIDE // PATCH
    assert torch.equal(seen[1].features[row * side + column], patch.flatten())


def test_what_cannot_be_is_said_at_once():
    model = get_model("llava")
    with pytest.raises(ValueError, match="acts before the vision tower, which keeps the same number of every picture"):
        apply_pruning(model, "pixelprune")
    with pytest.raises(ValueError, match="act before and inside the vision tower, of which model type 'llava' takes"):
        apply_pruning(model, ["grid@pixels", "tome"], 0.5)
    assert make_policy("pixelprune@pixels") == PixelPrune()
