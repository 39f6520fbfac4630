"""Tokens that leave between layers of a packed tower: equal to hiding their patches from that layer on."""

import pytest
import torch

from tokenprune import TowerCut, apply_pruning, pruning, pruning_report, remove_pruning
from tokenprune.patches.packed_tower import no_packed_geometry
from tokenprune.policies import FlowCut

from ..families import CASES, FAMILIES, get_model, ragged_batch
from ..oracles import assert_same, deep_masked, keep_mask, masked, native_short, prune, upper_masks
from ..support.hidden_patches import DERIVED, hidden_patches
from ..support.packed_towers import DEEP_FAMILIES, Halving, deep_model, packed_features, record_layers
from ..support.seen_tokens import seen_tokens
from ..support.tower_checks import check_keeping_all, check_pictures_alone, flops_of

pytestmark = pytest.mark.skipif(no_packed_geometry() is not None, reason="this transformers has no seam in its towers")
#: Windows; and planes from layers below and above a cut.
USUAL = ("qwen2_5_vl", "qwen3_vl")


@pytest.mark.parametrize("family", DEEP_FAMILIES)
@torch.no_grad()
def test_the_tower_is_as_if_patches_were_hidden_from_a_layer_on(family):
    model, batch = deep_model(family), ragged_batch(family, video=True)
    stock = packed_features(model, batch)
    features, keeps, _ = record_layers(model, batch, Halving(), 0.4)
    counts = torch.cat([torch.cat(each, 1) for each in keeps.values()], 1).sum(1)
    assert len(counts.unique()) == (3 if family == "qwen2_5_vl" else 4)  # some leave at every border
    with hidden_patches(model, batch, keeps):
        hidden = packed_features(model, batch)
    for kind, by_input in keeps.items():
        last = torch.cat(by_input, 1)[-1]
        torch.testing.assert_close(features[kind][last], hidden[kind][last], rtol=0, atol=1e-9)
        assert not features[kind][~last, 0].any()
        assert (stock[kind] - hidden[kind])[last, 0].abs().max() > 1e-4  # the others would have made a difference


@pytest.mark.parametrize("family", USUAL)
@torch.no_grad()
def test_behind_tokens_that_left_before_the_tower(family):
    """Frames of which nothing is left before the tower, and inside it."""
    model, batch = deep_model(family), ragged_batch(family, video=True)
    for keep in ([0.7, 0.3], [3, 1]):
        features, keeps, records = record_layers(model, batch, ["grid@pixels", Halving()], keep)
        with hidden_patches(model, batch, keeps):
            hidden = packed_features(model, batch)
        for kind, by_input in keeps.items():
            last = torch.cat(by_input, 1)[-1]
            torch.testing.assert_close(features[kind][last], hidden[kind][last], rtol=0, atol=1e-9)
        for r in records:
            assert set(r.indices) == set(r.kept_after["encoder"]) < set(r.kept_after["pixels"]) < set(range(r.n_before))


@pytest.mark.parametrize("family", [f for f in DEEP_FAMILIES if f in FAMILIES])
def test_oracle(family):
    model, batch = deep_model(family), ragged_batch(family, video=True)
    hybrid = FAMILIES[family].hybrid
    for policy, positions in (([Halving(), "divprune"], "original"), ("flowcut", "compact")):
        _, keeps, _ = record_layers(model, batch, policy, 0.3)
        run, _, records = prune(model, batch, policy, 0.3, positions)
        assert all(r.n_after == max(1, round(0.3 * r.n_before)) for r in records)
        assert all(set(r.indices) <= set(r.kept_after["encoder"]) for r in records)
        keep = keep_mask(batch, records)
        with hidden_patches(model, batch, keeps):
            oracles = [native_short(model, batch, keep, positions)]
            oracles += [] if hybrid else [masked(model, batch, keep, positions)]
        for oracle in oracles:
            assert_same(run, oracle, atol=1e-3 if hybrid else 1e-5)


def test_oracle_with_a_stage_in_the_decoder():
    model, batch = deep_model("qwen3_vl"), ragged_batch("qwen3_vl")
    policy = ["flowcut", "fastv"]
    _, keeps, _ = record_layers(model, batch, policy, 0.3)
    run, _, records = prune(model, batch, policy, 0.3, "original")
    assert all(r.cuts for r in records)
    with hidden_patches(model, batch, keeps):
        assert_same(run, deep_masked(model, batch, keep_mask(batch, records), upper_masks(batch, records)))


@pytest.mark.parametrize("family", USUAL)
def test_keeping_all_is_the_stock_model_to_the_bit(family):
    model, batch = deep_model(family), ragged_batch(family, video=True)
    check_keeping_all(model, batch, "flowcut")
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.model.visual.modules())


@torch.no_grad()
def test_inputs_do_not_depend_on_their_neighbours():
    model, batch = deep_model("qwen2_5_vl"), ragged_batch("qwen2_5_vl")
    with pruning(model, "flowcut", 0.3):
        check_pictures_alone(model, batch)


@torch.no_grad()
def test_the_tower_gets_cheaper():
    model, batch = deep_model("qwen3_vl"), ragged_batch("qwen3_vl")

    encode = lambda: packed_features(model, batch)
    full = flops_of(encode)
    with pruning(model, "flowcut", 0.25, by_entropy=False):
        assert flops_of(encode) < 0.75 * full


@torch.no_grad()
def test_a_policy_behind_it_reads_the_layer_before_and_after_a_cut():
    """The layer with full attention that is read is below the last cut of one tower, and the last layer of another."""
    for family in USUAL:
        model, batch = deep_model(family), ragged_batch(family)
        with pruning(model, ["flowcut", "fopru"], keep=[0.5, 0.25]):
            seen = seen_tokens(model.model._tokenprune.config.vision.policy)
            model(**batch.inputs)
            records = pruning_report(model)
        assert [len(t) for t in seen] == [r.n_by_stage["encoder"] for r in records] == [3, 4, 4, 4]
        assert all(t.encoder_attention.min() > 0 for t in seen)
        assert all(r.select_ms_by_stage.keys() == {"encoder", "vision"} for r in records)


@torch.no_grad()
def test_what_a_policy_gets_and_which_frames_share_a_budget():
    model, batch = deep_model("qwen2_5_vl"), ragged_batch("qwen2_5_vl", video=True)
    seen = []

    class Watch(FlowCut):
        def encoder_select(self, view):
            seen.append(view)
            return super().encoder_select(view)

    with pruning(model, Watch(every=1), 0.5):
        model.model.get_video_features(batch.inputs["pixel_values_videos"], batch.inputs["video_grid_thw"])
    first = [view for view in seen if view.cut == 0]
    tokens = [(t, h * w // 4) for t, h, w in batch.inputs["video_grid_thw"].tolist()]
    assert [view.n_before for view in first] == [n for t, n in tokens for _ in range(t)]
    assert sum(view.n_keep for view in first) == sum(round(0.5 * t * n) for t, n in tokens)
    for view in seen:
        assert view.group == 4 and view.n_cuts == 2 and not view.cls
        assert view.hidden.shape[1] == view.query.shape[2] == view.sizes.shape[1] == 4 * (view.surplus + view.n_keep)
    assert all(view.memory is first[i].memory for i, view in enumerate(v for v in seen if v.cut == 1))


def test_gradients_reach_layers_below_the_cut():
    model, batch = deep_model("qwen3_vl"), ragged_batch("qwen3_vl")
    weight = model.model.visual.blocks[0].attn.qkv.weight
    with pruning(model, "flowcut", 0.5):
        model(**batch.inputs, labels=batch.inputs["input_ids"]).loss.backward()
    assert weight.grad is not None and weight.grad.abs().max() > 0
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("family", [f for f in DERIVED if f not in DEEP_FAMILIES])
@torch.no_grad()
def test_families_with_the_facts_of_another(family):
    """Where their small model has a border at all."""
    model, batch = get_model(family), ragged_batch(family)
    full = getattr(model.model.visual, "fullatt_block_indexes", [0])
    if full == [len(model.model.visual.blocks) - 1]:
        with pytest.raises(ValueError, match="a layer of full attention below the last"):
            apply_pruning(model, "flowcut", 0.4)
        return
    features, keeps, records = record_layers(model, batch, "flowcut", 0.4)
    assert all(r.n_after < r.n_before for r in records)
    with hidden_patches(model, batch, keeps):
        hidden = packed_features(model, batch)
    last = torch.cat(keeps["image"], 1)[-1]
    torch.testing.assert_close(features["image"][last], hidden["image"][last], rtol=0, atol=1e-9)


def test_what_cannot_be_is_said():
    model, batch = deep_model("qwen2_5_vl"), ragged_batch("qwen2_5_vl")
    for policy in ("tome", "downsample"):
        with pytest.raises(ValueError, match=r"not allow: its merger makes one token of 4 .* before the lang"):
            apply_pruning(model, policy, 0.5)
    with pytest.raises(ValueError, match="a layer of full attention below the last, and this one has 2 layers"):
        apply_pruning(get_model("qwen2_5_vl"), "flowcut", 0.5)

    class Merging(FlowCut):
        def encoder_select(self, view):
            return TowerCut(torch.arange(view.n_keep)[None], view.hidden[:, : view.n_keep])

    class Deaf(FlowCut):
        def encoder_select(self, view):
            return TowerCut(torch.arange(view.n_keep + 1)[None])

    class Greedy(FlowCut):
        def encoder_select(self, view):
            return TowerCut(torch.arange(view.n_keep - 1)[None])

    class Wild(FlowCut):
        def encoder_select(self, view):
            return TowerCut(torch.arange(view.n_keep)[None] + 1000)

    for policy, said in (
        (Merging(), "neither hidden states nor sizes where one token is made of 4 patches"),
        (Deaf(), "left 4 tokens in the vision tower, asked for 3"),
        (Greedy(), "left 2 tokens in the vision tower, asked for 3"),
        (Wild(), r"ascending, distinct indices in \[0, 6\) inside the vision tower"),
    ):
        with pruning(model, policy, 0.5), pytest.raises(ValueError, match=said), torch.no_grad():
            model(**batch.inputs)


def test_features_from_before_are_refused():
    model, batch = deep_model("qwen2_5_vl"), ragged_batch("qwen2_5_vl")
    with torch.no_grad():
        encoded = model.model.get_image_features(batch.inputs["pixel_values"], batch.inputs["image_grid_thw"])
    inputs = {k: v for k, v in batch.inputs.items() if k != "pixel_values"} | {"mm_encoder_outputs": {"image": encoded}}
    with pruning(model, "flowcut", 0.5), pytest.raises(ValueError, match="acts inside the vision tower, but these"):
        model(**inputs)
    remove_pruning(model)
    assert set(DEEP_FAMILIES) <= set(CASES)
