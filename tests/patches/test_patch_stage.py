"""Patches that leave before the first layer of a CLIP or SigLIP tower: equal to hiding them there."""

import contextlib

import pytest
import torch

from tokenprune import apply_pruning, pruning, pruning_report
from tokenprune.policies import FlowCut, PixelPrune, make_policy

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
        stage = model.model._tokenprune.pixels
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


@torch.no_grad()
def test_inside_the_tower_more_are_hidden_from_a_layer_on():
    """Of the patches that are left before it, which a policy inside takes for a whole picture; budgets do not."""
    model, images, left = deep_llava(), pixels(), []
    n = (LLAVA_SIDE // PATCH) ** 2
    with pruning(model, ["grid@pixels", FlowCut(every=1, by_entropy=False)], keep=[0.6, 0.25]):
        pixel_stage, stage = model.model._tokenprune.pixels, model.model._tokenprune.encoder
        choose_patches, choose = pixel_stage._choose_patches, stage._choose

        def watch_patches(call, *arguments):
            kept = choose_patches(call, *arguments)
            left.append(pixel_stage._with_cls(kept))
            return kept

        def watch(call, cut, hidden):
            chosen = choose(call, cut, hidden)
            left.append(left[-1] if chosen is None else left[-1].gather(1, chosen.keep))
            return chosen

        pixel_stage._choose_patches, stage._choose = watch_patches, watch
        pruned, layers = features(model, images), stage.layers
    counts = [each.shape[1] - 1 for each in left]
    assert counts[0] == round(0.6 * n) and counts[-1] == round(0.25 * n) and len(set(counts)) > 2

    def hide(i):
        bias = torch.full((len(images), 1, 1, n + 1), -torch.inf, dtype=torch.float64)
        bias[:, 0, 0].scatter_(1, left[i], 0.0)
        return lambda module, args, kwargs: ((args[0], bias.expand(-1, -1, n + 1, -1), *args[2:]), kwargs)

    handles = [layer.register_forward_pre_hook(hide(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        expected = features(model, images)
    finally:
        for handle in handles:
            handle.remove()
    index = (left[-1][:, 1:] - 1)[..., None].expand(-1, -1, expected.shape[2])
    torch.testing.assert_close(pruned.gather(1, index), expected.gather(1, index), rtol=0, atol=1e-9)
    assert (pruned == 0).all(-1).sum(1).tolist() == [n - counts[-1]] * len(images)


@pytest.mark.parametrize("family", [f for f in TOWER_FAMILIES if f in ("llava", "llava_next", "paligemma")])
def test_oracle_with_a_policy_inside_the_tower(family):
    """Between the two, one that merges; behind them, one that reads the tower of what is left."""
    records = check_against_oracles(
        get_model(family), ragged_batch(family), ["grid@pixels", "tome", "visionzip"], 0.2, "original",
        changes_features=True,
    )  # fmt: skip
    for r in records:
        assert r.n_before > r.n_by_stage["pixels"] > r.n_by_stage["encoder"] > r.n_after
        assert set(r.indices) <= set(r.kept_after["encoder"]) < set(r.kept_after["pixels"])


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
    with pytest.raises(ValueError, match="resizes pictures, and policy 'grid@pixels' chooses among the patches"):
        apply_pruning(model, ["grid@pixels", "downsample"], 0.5)
    assert make_policy("pixelprune@pixels") == PixelPrune()
