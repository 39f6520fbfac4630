"""Tokens of several patches that leave before towers of single pictures or tiles, of Pixtral, and of Gemma 4."""

import contextlib

import pytest
import torch

from tokenprune import apply_pruning, pruning, pruning_report
from tokenprune.patches.families.registry import family_by_type
from tokenprune.policies import PixelPrune

from ..builders import PATCH
from ..families import CASES, FAMILIES, Picture, get_model, make_batch, ragged_batch, small_batch
from ..oracles import assert_same, generate, keep_mask, masked, native_short, prune
from ..support.hidden_keys import hidden_keys
from ..support.seen_tokens import seen_tokens
from ..support.tower_checks import check_keeping_all, flops_of
from ..support.towers import skip_where_recorded

#: A shuffle behind a CLS token, a shuffle with masks, pooling; one sequence of pictures of any size.
TILES = [f for f in ("internvl", "idefics3", "gemma3") if f in FAMILIES]
PIXTRAL = ["mistral3"]


def _in(attribute):
    found = []
    for name in CASES:
        encoder = None if CASES[name].model_type else family_by_type(name).encoder
        if encoder is not None and getattr(encoder, attribute) is not None:
            found.append(name)
    return found


def features(model, batch) -> torch.Tensor:
    more = {k: v for k, v in batch.inputs.items() if k in ("image_sizes", "pixel_attention_mask")}
    out = model.model.get_image_features(batch.inputs["pixel_values"], **more)
    return torch.cat([each.flatten(0, -2) for each in getattr(out, "pooler_output", out)])


def keeps_of(records) -> list[torch.Tensor]:
    """(N,) bool of each visual input, what is left before the tower."""
    keeps = []
    for record in records:
        keep = torch.zeros(record.n_before, dtype=torch.bool)
        keep[record.kept_after.get("pixels", range(record.n_before))] = True
        keeps.append(keep)
    return keeps


@contextlib.contextmanager
def hidden(model, batch, keeps):
    """Patches of the other tokens are hidden in every layer of the stock tower."""
    base, encoder = model.model, family_by_type(model.case_name).encoder
    if encoder.pixtral is not None:
        tower, _, merge = encoder.pixtral(base)
        layers, rows = tower.transformer.layers, []
        for keep, size in zip(keeps, batch.inputs["image_sizes"].tolist(), strict=True):
            height, width = (int(side) // PATCH for side in size)
            raster = torch.ones(height, width, dtype=torch.bool)
            tokens = keep.view(height // merge, width // merge)
            raster[: height // merge * merge, : width // merge * merge] = _patches(tokens, merge)
            rows.append(raster.flatten())
        visible = torch.cat(rows)[None]
    else:
        layers, merge = encoder.raster_layers(base), int(encoder.patches_per_token(base) ** 0.5)
        side = int(len(keeps[0]) ** 0.5)
        visible = torch.stack([_patches(keep.view(side, side), merge).flatten() for keep in keeps])
        cls = torch.ones(len(visible), int(encoder.has_cls(base)), dtype=torch.bool)
        visible = torch.cat([cls, visible], 1)
    with hidden_keys([getattr(layer, "self_attn", None) or layer.attention for layer in layers], visible):
        yield


def _patches(tokens, merge):
    return tokens.repeat_interleave(merge, 0).repeat_interleave(merge, 1)


def check_tower(model, batch, policy, keep):
    stock = features(model, batch)
    with pruning(model, policy, keep):
        pruned = features(model, batch)
        with torch.no_grad():
            model(**batch.inputs)
        records = pruning_report(model)
    keeps = keeps_of(records)
    with hidden(model, batch, keeps):
        expected = features(model, batch)
    kept = torch.cat(keeps)
    torch.testing.assert_close(pruned[kept], expected[kept], rtol=0, atol=1e-9)
    assert (stock - expected)[kept].abs().max() > 1e-4
    return records


@pytest.mark.parametrize("family", sorted({*_in("patch_conv"), *_in("pixtral")}))
@torch.no_grad()
def test_the_tower_is_as_if_the_other_patches_were_hidden(family):
    skip_where_recorded(get_model(family), "divprune@pixels")
    records = check_tower(get_model(family), small_batch(family), "divprune@pixels", 0.4)
    assert all(len(r.kept_after["pixels"]) == max(1, round(0.4 * r.n_before)) for r in records)


@torch.no_grad()
def test_patches_that_belong_to_no_token_stay():
    """Of pictures whose sides are no multiple of a token's."""
    batch = make_batch("mistral3", [[3, Picture((28, 36)), 4], [2, Picture((36, 28)), 2, Picture((24, 24)), 2]])
    records = check_tower(get_model("mistral3"), batch, "grid@pixels", 0.3)
    assert [r.n_before for r in records] == [12, 12, 9]


@torch.no_grad()
def test_masks_of_padded_tiles_shrink_as_well():
    batch = small_batch("idefics3")
    pixels = batch.inputs["pixel_values"]
    mask = torch.ones(*pixels.shape[:2], *pixels.shape[-2:], dtype=torch.long)
    mask[:, :, 16:] = 0
    check_tower(get_model("idefics3"), batch.to(pixel_attention_mask=mask), "grid@pixels", 0.5)


@pytest.mark.parametrize("family", [*TILES, *PIXTRAL])
def test_oracle(family):
    model, batch = get_model(family), ragged_batch(family)
    for policy, positions in ((["grid@pixels", "divprune"], "original"), ("pixelprune", "compact")):
        run, _, records = prune(model, batch, policy, 0.3, positions)
        assert all(r.n_after == max(1, round(0.3 * r.n_before)) for r in records)
        assert all(set(r.indices) <= set(r.kept_after["pixels"]) < set(range(r.n_before)) for r in records)
        keep = keep_mask(batch, records)
        with hidden(model, batch, keeps_of(records)):
            assert_same(run, masked(model, batch, keep, positions))
            assert_same(run, native_short(model, batch, keep, positions))


@pytest.mark.parametrize("family", [*TILES, *PIXTRAL])
def test_keeping_all_is_the_stock_model_to_the_bit(family):
    model, batch = get_model(family), ragged_batch(family)
    check_keeping_all(model, batch, "pixelprune")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.model.modules() if "Conv" in str(type(m)))


@torch.no_grad()
def test_a_pixtral_tower_keeps_what_the_policy_finds():
    model, batch = get_model("mistral3"), ragged_batch("mistral3")
    pixels = batch.inputs["pixel_values"].clone()
    pixels[0, :, 8:] = 0.5  # one flat area below the first row of tokens
    batch = batch.to(pixel_values=pixels)
    run, _, records = prune(model, batch, "pixelprune", None, "original")
    assert [r.n_after for r in records] == [5, *(r.n_before for r in records[1:])]
    with hidden(model, batch, keeps_of(records)):
        assert_same(run, masked(model, batch, keep_mask(batch, records)))


@pytest.mark.parametrize("family", ["internvl", "mistral3"])
@torch.no_grad()
def test_the_tower_gets_cheaper_and_pictures_do_not_depend_on_their_neighbours(family):
    model, batch = get_model(family), ragged_batch(family)

    encode = lambda: features(model, batch)
    full = flops_of(encode)
    with pruning(model, "grid@pixels", 0.25):
        assert flops_of(encode) < 0.6 * full
        together = features(model, batch)
        for i in range(len(batch.inputs["pixel_values"])):
            one = {k: batch.inputs[k][i : i + 1] for k in ("pixel_values", "image_sizes") if k in batch.inputs}
            alone = features(model, batch.to(**one))
            torch.testing.assert_close(alone, together[: len(alone)], rtol=0, atol=1e-9)
            together = together[len(alone) :]


@torch.no_grad()
def test_policies_get_the_pixels_of_all_patches_of_a_token():
    for family in ("internvl", "mistral3"):
        model, batch, seen = get_model(family), ragged_batch(family), []

        class Watch(PixelPrune):
            def select(self, tokens, n_keep, seen=seen):
                seen.append(tokens)
                return super().select(tokens, n_keep)

        with pruning(model, Watch(), 0.5):
            features(model, batch)
        assert {t.pixel_shape for t in seen} == {(4, 3, 1, PATCH**2)}
        width = seen[1].grid[2]
        row, column = 1, width - 1
        patches = seen[1].features[row * width + column].view(2, 2, 3, PATCH, PATCH)
        picture = batch.inputs["pixel_values"][1]
        for y in range(2):
            for x in range(2):
                top, left = (2 * row + y) * PATCH, (2 * column + x) * PATCH
                assert torch.equal(patches[y, x], picture[:, top : top + PATCH, left : left + PATCH])


@pytest.mark.parametrize("family", ["internvl", "mistral3"])
@torch.no_grad()
def test_a_policy_behind_it_reads_the_tower_of_what_is_left(family):
    model, batch = get_model(family), ragged_batch(family)
    with pruning(model, ["grid@pixels", "fopru"], keep=[0.5, 0.25]):
        seen = seen_tokens(model.model._tokenprune.config.vision.policy)
        model(**batch.inputs)
        records = pruning_report(model)
    assert [len(t) for t in seen] == [r.n_by_stage["pixels"] for r in records]
    assert all(t.encoder_attention.min() > 0 for t in seen)


def pooled_features(model, batch, kind) -> torch.Tensor:
    pixels = "pixel_values" if kind == "image" else "pixel_values_videos"
    more = {k: batch.inputs[k] for k in (f"{kind}_position_ids", "num_frames_per_video") if k in batch.inputs}
    more = more if kind == "video" else {"image_position_ids": more["image_position_ids"]}
    return torch.cat(list(getattr(model.model, f"get_{kind}_features")(batch.inputs[pixels], **more).pooler_output))


@contextlib.contextmanager
def hidden_positions(model, batch, kind, keep):
    """Patches of tokens that are False in (N,), of all inputs of a kind, are hidden in every layer of Gemma's tower."""
    rows, start = [], 0
    for positions in batch.inputs[f"{kind}_position_ids"]:
        width, height = (int(side) + 1 for side in positions.amax(0))
        token = positions[:, 0] // 2 + (width // 2) * (positions[:, 1] // 2)
        rows.append((positions[:, 0] >= 0) & keep[(start + token).clamp(min=start)])
        start += width * height // 4
    assert start == len(keep)
    with hidden_keys([layer.self_attn for layer in model.model.vision_tower.encoder.layers], torch.stack(rows)):
        yield


@pytest.mark.skipif("gemma4" not in CASES, reason="not in this transformers")
@pytest.mark.parametrize("policy", ["divprune@pixels", "pixelprune"])
@torch.no_grad()
def test_patches_that_carry_their_positions(policy):
    """Pictures of several sizes, with padding and patches in any order; frames of videos."""
    model, batch = get_model("gemma4"), ragged_batch("gemma4", video=True)
    order = torch.randperm(batch.inputs["pixel_values"].shape[1], generator=torch.Generator().manual_seed(0))
    moved = {k: batch.inputs[k][:, order] for k in ("pixel_values", "image_position_ids")}
    batch = batch.to(**moved)
    for kind in ("image", "video"):
        stock = pooled_features(model, batch, kind)
        with pruning(model, policy, 0.4):
            pruned = pooled_features(model, batch, kind)
            model(**batch.inputs)
            keep = torch.cat(keeps_of([r for r in pruning_report(model) if r.kind == kind]))
        assert 0.3 * len(keep) < keep.sum() < 0.5 * len(keep)
        with hidden_positions(model, batch, kind, keep):
            expected = pooled_features(model, batch, kind)
        torch.testing.assert_close(pruned[keep], expected[keep], rtol=0, atol=1e-9)
        assert (stock - expected)[keep].abs().max() > 1e-4


@pytest.mark.skipif("gemma4" not in CASES, reason="not in this transformers")
def test_oracle_of_patches_that_carry_their_positions():
    model, batch = get_model("gemma4"), ragged_batch("gemma4")
    pixels, places = batch.inputs["pixel_values"].clone(), batch.inputs["image_position_ids"]
    pixels[0, (places[0, :, 1] >= 2).logical_and(places[0, :, 0] >= 0)] = 0.25  # flat below the first row of tokens
    flat = batch.to(pixel_values=pixels)
    for each, policy, keep in ((batch, ["grid@pixels", "visionzip"], 0.3), (flat, "pixelprune", None)):
        run, fed, records = prune(model, each, policy, keep, "original")
        keeps = keeps_of(records)
        assert any(not keep.all() for keep in keeps)
        assert keep is not None or [r.n_after for r in records] == [4, *(r.n_before for r in records[1:])]
        with hidden_positions(model, each, "image", torch.cat(keeps)):
            assert_same(run, masked(model, each, keep_mask(each, records), fed=fed, changed=True))
    before = generate(model, batch.inputs, 2)
    with pruning(model, "pixelprune", 1.0):
        assert torch.equal(generate(model, batch.inputs, 2).logits, before.logits)


def test_gradients_reach_the_tower():
    for family in ("internvl", "mistral3"):
        model, batch = get_model(family), ragged_batch(family)
        conv = next(m for m in model.model.modules() if isinstance(m, torch.nn.Conv2d))
        with pruning(model, "grid@pixels", 0.5):
            model(**batch.inputs, labels=batch.inputs["input_ids"]).loss.backward()
        assert conv.weight.grad is not None and conv.weight.grad.abs().max() > 0
        model.zero_grad(set_to_none=True)


def test_what_cannot_be_is_said():
    model = get_model("internvl")
    with pytest.raises(ValueError, match="acts before the vision tower, which keeps the same number of every picture"):
        apply_pruning(model, "pixelprune")
    with pytest.raises(ValueError, match=r"'internvl' does not allow: .* use ipcv, whose patches come back behind the"):
        apply_pruning(model, ["grid@pixels", "flowcut"], 0.5)
    with pytest.raises(ValueError, match=r"act.* inside the vision tower, which model type 'mistral3' does not allow"):
        apply_pruning(get_model("mistral3"), ["grid@pixels", "ipcv"], 0.5)
