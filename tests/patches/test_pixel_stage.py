"""Tokens that leave before the vision tower: equal to hiding their patches in it, and to a stock model behind it."""

import pytest
import torch

from tokenprune import Selection, apply_pruning, pruning, pruning_report, remove_pruning
from tokenprune.patches.families.registry import family_by_type
from tokenprune.patches.packed_tower import no_packed_geometry
from tokenprune.policies import AtPixels, DivPrune, FastV, PixelPrune, make_policy

from ..builders import PATCH
from ..families import FAMILIES, TOWER_FAMILIES, get_model, ragged_batch
from ..oracles import assert_same, keep_mask, masked, native_short, prune
from ..policies_table import PIXELS
from ..support.hidden_patches import DERIVED, PIXEL_FAMILIES, hidden_patches, keeps_by_kind
from ..support.packed_towers import packed_features
from ..support.products import product
from ..support.seen_tokens import seen_tokens
from ..support.tower_checks import check_keeping_all, check_pictures_alone, flops_of

#: Windows; and positions that are learned, with deepstack planes.
OF_ALL_POLICIES, OF_ALL_FAMILIES = ("qwen2_5_vl", "qwen3_vl"), ("grid+divprune",)
supported = pytest.mark.skipif(no_packed_geometry() is not None, reason="this transformers has no seam in its towers")


def beside_hidden(model, batch, policy, keep):
    """By kind: which tokens stay before the tower, features with the others gone, and with their patches hidden."""
    with pruning(model, policy, keep):
        pruned = packed_features(model, batch)
        model(**batch.inputs)
        keeps = keeps_by_kind(batch, pruning_report(model))
    with hidden_patches(model, batch, keeps):
        hidden = packed_features(model, batch)
    return [(kind, torch.cat(each), pruned[kind], hidden[kind]) for kind, each in keeps.items()]


@supported
@pytest.mark.parametrize(
    ("family", "video"), [*((f, True) for f in PIXEL_FAMILIES), ("qwen2_5_vl", False), *((f, False) for f in DERIVED)]
)
@torch.no_grad()
def test_the_tower_is_as_if_the_other_patches_were_hidden(family, video):
    model, batch = get_model(family), ragged_batch(family, video)
    stock = packed_features(model, batch)
    for kind, keep, pruned, hidden in beside_hidden(model, batch, "divprune@pixels", 0.4):
        torch.testing.assert_close(pruned[keep], hidden[keep], rtol=0, atol=1e-9)
        assert not pruned[~keep].any()
        assert (stock[kind] - hidden)[keep].abs().max() > 1e-4  # the others would have made a difference


@supported
@pytest.mark.parametrize(("family", "label"), product(PIXEL_FAMILIES, PIXELS, OF_ALL_POLICIES, OF_ALL_FAMILIES))
def test_oracle(family, label):
    policy, options = PIXELS[label]
    model, batch = get_model(family), ragged_batch(family, video=True)
    positions = "compact" if label == "grid" else "original"
    run, _, records = prune(model, batch, policy, 0.3, positions, **options)
    assert any(r.kept_after for r in records)
    for r in records:
        assert set(r.indices) <= set(r.kept_after.get("pixels", range(r.n_before)))
        assert r.n_after == max(1, round(0.3 * r.n_before))
    keep = keep_mask(batch, records)
    with hidden_patches(model, batch, keeps_by_kind(batch, records)):
        oracles = [native_short(model, batch, keep, positions)]
        if not FAMILIES[family].hybrid:
            oracles.append(masked(model, batch, keep, positions))
    for oracle in oracles:
        assert_same(run, oracle, atol=1e-3 if FAMILIES[family].hybrid else 1e-5)


@supported
@pytest.mark.parametrize("family", PIXEL_FAMILIES)
def test_keeping_all_is_the_stock_model_to_the_bit(family):
    model, batch = get_model(family), ragged_batch(family, video=True)
    check_keeping_all(model, batch, "divprune@pixels")


@supported
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_counts_that_the_policy_finds(family):
    """Pictures of flat blocks beside noise: of each another number stays."""
    model, batch = get_model(family), ragged_batch(family)
    pixels = batch.inputs["pixel_values"].clone()
    pixels[: 4 * 5] = 0.5  # of the first picture all but one token
    batch = batch.to(pixel_values=pixels)
    for policy, keep, counts in (
        ("pixelprune", None, [2, 8, 9, 9]),
        (["pixelprune", "divprune"], [None, 0.5], [2, 4, 4, 4]),
        (["pixelprune", "divprune"], [None, 0.2], [1, 2, 2, 2]),
    ):
        run, _, records = prune(model, batch, policy, keep, "original")
        assert [r.n_after for r in records] == counts
        assert records[0].n_by_stage["pixels"] == 2
        kept = keep_mask(batch, records)
        with hidden_patches(model, batch, keeps_by_kind(batch, records)):
            assert_same(run, masked(model, batch, kept))


@supported
@torch.no_grad()
def test_a_policy_before_the_tower_takes_two_thirds_of_the_way_to_one_budget():
    """What leaves there saves more than what leaves behind the tower; with a policy that weighs 3, 2 of 5 parts."""

    class Heavy(DivPrune):
        budget_weight = 3.0

    model, batch = get_model("qwen2_5_vl"), ragged_batch("qwen2_5_vl")
    for policies, share in ((["grid@pixels", "divprune"], 2 / 3), (["pixelprune", Heavy()], 2 / 5)):
        with pruning(model, policies, 0.25):
            model(**batch.inputs)
            for r in pruning_report(model):
                assert r.n_by_stage["pixels"] == max(1, round(0.25**share * r.n_before))
                assert r.n_after == max(1, round(0.25 * r.n_before))
    assert make_policy("divprune@pixels").budget_weight == make_policy("rlt").budget_weight == 2


@supported
@torch.no_grad()
def test_noise_is_kept_to_the_bit():
    model, batch = get_model("qwen2_5_vl"), ragged_batch("qwen2_5_vl")
    before = model(**batch.inputs).logits
    with pruning(model, "pixelprune"):
        assert torch.equal(model(**batch.inputs).logits, before)
        assert all(r.n_by_stage == {"vision": r.n_before} for r in pruning_report(model))
        assert all(r.select_ms_by_stage["pixels"] > 0 for r in pruning_report(model))


@supported
@torch.no_grad()
def test_policies_get_pixels_as_they_are_laid_out():
    model, batch = get_model("qwen2_5_vl"), ragged_batch("qwen2_5_vl", video=True)
    seen = []

    class Watch(PixelPrune):
        def select(self, tokens, n_keep):
            seen.append(tokens)
            return super().select(tokens, n_keep)

    with pruning(model, Watch()):
        model(**batch.inputs)
    assert [t.kind for t in seen] == ["image"] + ["video"] * 6
    assert len({(t.kind, t.index) for t in seen}) == len(seen)
    assert {t.pixel_shape for t in seen} == {(4, 3, 2, PATCH**2)}
    image = batch.inputs["pixel_values"].view(len(seen[0]), -1)
    assert torch.equal(seen[0].features, image) and seen[0].grid == (1, 2, 3)


@supported
@torch.no_grad()
def test_a_frame_of_which_nothing_is_left():
    class First(DivPrune):
        def select_many(self, tokens, n_keep):
            return [Selection(torch.arange(k)) for k in n_keep]

    for family in ("qwen2_5_vl", "qwen3_vl"):
        model, batch = get_model(family), ragged_batch(family, video=True)
        for _, keep, pruned, hidden in beside_hidden(model, batch, AtPixels(First()), 2):
            torch.testing.assert_close(pruned[keep], hidden[keep], rtol=0, atol=1e-9)


@supported
@torch.no_grad()
def test_inputs_do_not_depend_on_their_neighbours():
    model, batch = get_model("qwen2_5_vl"), ragged_batch("qwen2_5_vl")
    with pruning(model, "divprune@pixels", 0.3):
        check_pictures_alone(model, batch)


@supported
@torch.no_grad()
def test_the_tower_gets_cheaper():
    model, batch = get_model("qwen2_5_vl"), ragged_batch("qwen2_5_vl")

    encode = lambda: packed_features(model, batch)
    full = flops_of(encode)
    with pruning(model, "grid@pixels", 0.25):
        assert flops_of(encode) < 0.5 * full


@supported
@torch.no_grad()
def test_a_policy_behind_it_reads_the_tower_of_what_is_left():
    model, batch = get_model("qwen2_5_vl"), ragged_batch("qwen2_5_vl")
    with pruning(model, ["grid@pixels", "fopru"], keep=[0.5, 0.25]):
        seen = seen_tokens(model.model._tokenprune.config.vision.policy)
        model(**batch.inputs)
        records = pruning_report(model)
    assert [len(t) for t in seen] == [r.n_by_stage["pixels"] for r in records] == [3, 4, 4, 4]
    assert [r.n_by_stage for r in records] == [
        {"pixels": k, "vision": r.n_after} for k, r in zip((3, 4, 4, 4), records, strict=True)
    ]
    for t in seen:  # patches of dropped tokens would have taken part of it
        assert t.encoder_attention.min() > 0
    assert all(r.select_ms_by_stage.keys() == {"pixels", "vision"} for r in records)
    assert all(r.select_ms_in_prefill == r.select_ms_by_stage["vision"] for r in records)


@supported
def test_gradients_reach_the_tower():
    model, batch = get_model("qwen3_vl"), ragged_batch("qwen3_vl")
    weight = model.model.visual.blocks[0].attn.qkv.weight
    with pruning(model, "grid@pixels", 0.5):
        model(**batch.inputs, labels=batch.inputs["input_ids"]).loss.backward()
    assert weight.grad is not None and weight.grad.abs().max() > 0
    model.zero_grad(set_to_none=True)


@supported
def test_features_from_before_are_refused():
    model, batch = get_model("qwen2_5_vl"), ragged_batch("qwen2_5_vl")
    with torch.no_grad():
        encoded = model.model.get_image_features(batch.inputs["pixel_values"], batch.inputs["image_grid_thw"])
    inputs = {k: v for k, v in batch.inputs.items() if k != "pixel_values"} | {"mm_encoder_outputs": {"image": encoded}}
    with pruning(model, "grid@pixels", 0.5), pytest.raises(ValueError, match="acts before the vision tower, but these"):
        model(**inputs)


def _acts(family):
    encoder = family_by_type(family).encoder
    return encoder is not None and (encoder.patch_conv is not None or encoder.pixtral is not None)


@pytest.mark.parametrize(
    "family", [f for f in FAMILIES if f not in (*PIXEL_FAMILIES, *TOWER_FAMILIES) and not _acts(f)]
)
def test_other_families_say_why_not(family):
    with pytest.raises(ValueError, match=f"'{family}' does not allow: .* before the language model"):
        apply_pruning(get_model(family), "divprune@pixels", 0.5)


@pytest.mark.skipif(no_packed_geometry() is None, reason="this transformers has the seam")
def test_older_transformers_are_refused():
    with pytest.raises(ValueError, match=r"divprune@pixels' .* takes whole pictures only; install 5\.9"):
        apply_pruning(get_model("qwen2_5_vl"), "divprune@pixels", 0.5)


def test_which_policies_can_choose_there():
    for name in ("divprune", "grid", "evs"):
        assert make_policy(f"{name}@pixels").stages == ("pixels",)
    assert make_policy("evs@pixels").policy == make_policy("evs")
    with pytest.raises(ValueError, match="'fastv' has no preset 'pixels'"):
        make_policy("fastv@pixels")
    with pytest.raises(ValueError, match=r"'grid' has no preset 'x'; accepted: grid@final, grid@pixels$"):
        make_policy("grid@x")
    with pytest.raises(ValueError, match="'fastv' cannot act before the vision tower: it acts at the stage 'decoder'"):
        AtPixels(FastV())
    with pytest.raises(ValueError, match="it reads the text or the vision encoder"):
        AtPixels(make_policy("cdpruner"))
    with pytest.raises(TypeError, match="Policy instance"):
        AtPixels("divprune")


@supported
def test_what_cannot_be_is_said():
    model, batch = get_model("qwen2_5_vl"), ragged_batch("qwen2_5_vl")
    with pytest.raises(ValueError, match="only one policy can act at the pixels stage"):
        apply_pruning(model, ["grid@pixels", "divprune@pixels"], 0.5)

    class Merging(DivPrune):
        def select_many(self, tokens, n_keep):
            return [Selection(torch.arange(k), t.features[:k].clone()) for t, k in zip(tokens, n_keep, strict=True)]

    with pruning(model, AtPixels(Merging()), 0.3), pytest.raises(ValueError, match="gave new features"):
        model(**batch.inputs)
    apply_pruning(model, "grid@pixels", 0.5)
    assert len(model.model.visual._forward_pre_hooks) == 1
    remove_pruning(model)
    assert not model.model.visual._forward_pre_hooks and not model.model.visual._forward_hooks
