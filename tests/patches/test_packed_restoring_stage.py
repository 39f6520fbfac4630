"""Patches that leave inside a packed tower and come back: equal to computing the same by hand, frame by frame."""

import pytest
import torch

from tokenprune import pruning, pruning_report
from tokenprune.patches.packed_tower import no_packed_geometry
from tokenprune.policies import IPCV

from ..families import get_model, ragged_batch
from ..oracles import assert_same, keep_mask, masked, prune
from ..support.packed_towers import deep_model, packed_features
from ..support.restored_layers import Inputs
from ..support.seen_tokens import seen_tokens
from ..support.tower_checks import check_keeping_all, check_pictures_alone, flops_of

pytestmark = pytest.mark.skipif(no_packed_geometry() is not None, reason="this transformers has no seam in its towers")
#: Windows; planes from layers below and above the cut; full attention without planes.
TOWERS = ("qwen2_5_vl", "qwen3_vl", "qwen2_vl")


def run(layer, states, named, borders, index):
    """A stock layer on states, (K, D), of patches with these indices in the sequence, (K,)."""
    of_patch = torch.tensor([int((borders[1:] <= i).sum()) for i in index.tolist()])
    lengths = torch.unique_consecutive(of_patch, return_counts=True)[1]
    positions = tuple(each[index] for each in named["position_embeddings"])
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to(torch.int32)
    more = {"max_seqlen": int(lengths.max())} if named.get("max_seqlen") is not None else {}
    return layer(states, cu_seqlens=cu_seqlens, position_embeddings=positions, **more)


def by_hand(given, layers, frames, policy):
    """By layer from the first cut on, (N, D), what IPCV makes of the stock layers' inputs, patch by patch.

    `frames` are the first and last patch of each, and how many tokens of it stay.
    """
    first = min(max(1, round(policy.depth * len(layers))), len(layers) - 1)
    x, before = given[first][0], given[first - 1][0]
    outputs = {i: torch.empty_like(x) for i in range(first, len(layers))}
    for start, stop, n_keep in frames:
        moved = (x - before).norm(dim=1)
        patches = sorted(range(start, stop), key=lambda i: (-float(moved[i]), i))
        kept, gone = sorted(patches[: 4 * n_keep]), sorted(patches[4 * n_keep :])
        near = {g: sorted(kept, key=lambda k: float((x[g] - x[k]).norm()))[: policy.neighbours] for g in gone}

        def whole(states, start=start, stop=stop, kept=kept, gone=gone, near=near):
            full = torch.zeros_like(x)
            full[kept] = states
            for g in gone:
                full[g] = x[g] + torch.stack([full[k] - x[k] for k in near[g]]).mean(0)
            return full[start:stop]

        states, everything, index = x[kept], torch.arange(start, stop), torch.tensor(kept)
        for i in range(first, len(layers)):
            named = given[i][1]
            borders = named["cu_seqlens"].long()
            if i < first + policy.stabilised:
                states = run(layers[i], whole(states), named, borders, everything)[index - start]
            else:
                states = run(layers[i], states, named, borders, index)
            outputs[i][start:stop] = whole(states)
    return outputs


def frames_of(grids, keep):
    """First and last patch of each frame, and how many of its tokens stay."""
    found, start = [], 0
    for t, h, w in grids.tolist():
        n = h * w // 4
        total = max(1, round(keep * t * n))
        shares = [total * (f + 1) // t - total * f // t for f in range(t)]
        for share in shares:
            found.append((start, start + 4 * n, max(1, share)))
            start += 4 * n
    return found


def expected_of(model, batch, policy, keep, kind):
    """By layer, what comes out of the tower's layers when a kind of visual inputs is encoded, computed by hand."""
    layers = list(model.model.visual.blocks)
    with Inputs(layers) as seen:
        packed_features(model, batch)
    return by_hand(seen.given, layers, frames_of(batch.inputs[f"{kind}_grid_thw"], keep), policy)


def of_kind(batch, kind):
    """A batch with the images or the videos of another alone."""
    names = {"image": ("pixel_values", "image_grid_thw"), "video": ("pixel_values_videos", "video_grid_thw")}[kind]
    return type(batch)({name: batch.inputs[name] for name in names}, [])


@pytest.mark.parametrize("family", TOWERS)
@torch.no_grad()
def test_the_tower_does_what_the_paper_says(family):
    """Pictures of several sizes, and videos of several frames, in one sequence each; planes of restored states."""
    model, whole = deep_model(family), ragged_batch(family, video=True)
    layers = list(model.model.visual.blocks)
    for kind, policy in (("image", IPCV(neighbours=3, stabilised=1)), ("video", IPCV(stabilised=0, neighbours=2))):
        batch = of_kind(whole, kind)
        expected = expected_of(model, batch, policy, 0.4, kind)
        stock = packed_features(model, batch)[kind]
        with Inputs(layers) as seen:
            seen.instead = expected
            behind = packed_features(model, batch)[kind]
        with pruning(model, policy, 0.4):
            pruned = packed_features(model, batch)[kind]
        torch.testing.assert_close(pruned, behind, rtol=0, atol=1e-9)
        assert (pruned - stock).abs().max() > 1e-4


@torch.no_grad()
def test_oracle_with_a_policy_behind_it_and_one_before_it():
    """The language model is stock on the restored features; alone, the policy leaves it all tokens."""
    model, batch, policy = deep_model("qwen3_vl"), ragged_batch("qwen3_vl"), IPCV(stabilised=1)
    layers = list(model.model.visual.blocks)
    expected = expected_of(model, of_kind(batch, "image"), policy, 0.4, "image")
    for policies, keep, share in (([policy, "divprune"], [0.4, 0.3], 0.3), (policy, 0.4, 1.0)):
        found, _, records = prune(model, batch, policies, keep, "original")
        assert all(r.n_after == max(1, round(share * r.n_before)) for r in records)
        assert all("encoder" in r.select_ms_by_stage and "encoder" not in r.kept_after for r in records)
        with Inputs(layers) as seen:
            seen.instead = expected
            assert_same(found, masked(model, batch, keep_mask(batch, records)))
    with pruning(model, ["grid@pixels", policy], keep=[0.6, 0.3]):
        model(**batch.inputs)
        records = pruning_report(model)
    assert all(r.n_by_stage["pixels"] == r.n_after == round(0.6 * r.n_before) for r in records)


@torch.no_grad()
def test_behind_tokens_that_left_before_the_tower():
    """Patches that left before are no neighbours: the tower is as on a picture that never had them."""
    model, batch = deep_model("qwen2_5_vl"), of_kind(ragged_batch("qwen2_5_vl"), "image")
    layers, policy = list(model.model.visual.blocks), IPCV(neighbours=3, stabilised=1)
    with pruning(model, "grid@pixels", 0.6), Inputs(layers) as seen:
        packed_features(model, batch)
    borders = seen.given[1][1]["cu_seqlens"].tolist()  # of a layer with full attention
    counts = [max(1, round(0.3 * (t * h * w // 4))) for t, h, w in batch.inputs["image_grid_thw"].tolist()]
    frames = list(zip(borders[:-1], borders[1:], counts, strict=True))
    expected = by_hand(seen.given, layers, frames, policy)
    with pruning(model, "grid@pixels", 0.6), Inputs(layers) as seen:
        seen.instead = expected
        behind = packed_features(model, batch)["image"]
    with pruning(model, ["grid@pixels", policy], keep=[0.6, 0.3]):
        pruned = packed_features(model, batch)["image"]
    torch.testing.assert_close(pruned, behind, rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_keeping_all_is_the_stock_model_to_the_bit(family):
    model, batch = deep_model(family), ragged_batch(family, video=True)
    check_keeping_all(model, batch, "ipcv")
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.model.visual.modules())


@torch.no_grad()
def test_inputs_do_not_depend_on_their_neighbours_and_the_tower_gets_cheaper():
    model, batch = deep_model("qwen2_5_vl"), of_kind(ragged_batch("qwen2_5_vl"), "image")
    full = flops_of(lambda: packed_features(model, batch))
    with pruning(model, "ipcv", 0.3, stabilised=0):
        check_pictures_alone(model, batch)
        assert flops_of(lambda: packed_features(model, batch)) < 0.75 * full


@torch.no_grad()
def test_a_policy_behind_it_reads_values_of_all_tokens():
    model, batch = get_model("qwen3_vl"), ragged_batch("qwen3_vl")
    with pruning(model, [IPCV(stabilised=0), "fopru"], keep=[0.4, 0.25]):
        seen = seen_tokens(model.model._tokenprune.config.vision.policy)
        model(**batch.inputs)
        records = pruning_report(model)
    assert [len(t) for t in seen] == [r.n_before for r in records]
    assert all(t.encoder_attention.min() > 0 for t in seen)


def test_gradients_reach_layers_below_the_cut():
    model, batch = deep_model("qwen3_vl"), ragged_batch("qwen3_vl")
    weight = model.model.visual.blocks[0].attn.qkv.weight
    with pruning(model, "ipcv", 0.5):
        model(**batch.inputs, labels=batch.inputs["input_ids"]).loss.backward()
    assert weight.grad is not None and weight.grad.abs().max() > 0
    model.zero_grad(set_to_none=True)
