"""What is captured of the vision encoder equals its eager attention weights, token by token."""

import copy
import sys

import pytest
import torch

from tokenprune import Policy, Selection, pruning, pruning_report
from tokenprune.patches.families import llava_next_video, pixtral, square_tiles
from tokenprune.patches.families.base import EncoderValues
from tokenprune.patches.families.qwen2_vl import FAMILY as QWEN2_VL
from tokenprune.patches.families.qwen2_vl import _window_order
from tokenprune.policies.types import EncoderSpec

from ..families import ENCODES_FIRST, FAMILIES, VIDEO_FAMILIES, Picture, get_model, make_batch, ragged_batch
from ..oracles import generate


class Ear(Policy):
    """Notes what it is given; keeps the first tokens."""

    per_frame = False

    def __init__(self, spec):
        self.spec, self.seen = spec, []

    def encoder_spec(self):
        return self.spec

    def select(self, tokens, n_keep):
        self.seen.append(tokens)
        return Selection(torch.arange(n_keep))


def hear(family, spec, video=False):
    ear = Ear(spec)
    with pruning(get_model(family), ear, 0.5):
        generate(get_model(family), ragged_batch(family, video).inputs, steps=1)
    return ear.seen


@torch.no_grad()
def eager_maps(family, inputs, layer):
    """Softmax attention of a tower's layer, computed by the model's own eager code."""
    model = get_model(family)
    tower = model.model.visual if family.startswith("qwen") else model.model.vision_tower
    blocks = tower.blocks if family.startswith("qwen") else getattr(tower, "vision_model", tower).encoder.layers
    module = blocks[layer].attn if family.startswith("qwen") else blocks[layer].self_attn
    source, maps = sys.modules[type(module).__module__], []
    original = source.eager_attention_forward

    def spy(mod, *args, **kwargs):
        out, weights = original(mod, *args, **kwargs)
        if mod is module:
            if weights is None:  # transformers 4 gives them on request only
                weights = original(mod, *args, **{**kwargs, "output_attentions": True})[1]
            maps.append(weights)
        return out, weights

    before = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    source.eager_attention_forward = spy
    try:
        generate(model, inputs, steps=1)
    finally:
        source.eager_attention_forward = original
        tower.set_attn_implementation(before)
    return maps


@pytest.mark.parametrize("rows", ["cls", "received", "patches"])
def test_clip(rows):
    spec = EncoderSpec("feature", "cls" if rows == "cls" else "received", cls_query=rows != "patches")
    seen = hear("llava", spec)
    weights = eager_maps("llava", ragged_batch("llava").inputs, -2)[0].mean(1)
    expected = {"cls": weights[:, 0, 1:], "received": weights.mean(1)[:, 1:], "patches": weights[:, 1:].mean(1)[:, 1:]}
    assert len(seen) == len(weights) == 4
    for tokens, row in zip(seen, expected[rows], strict=True):
        torch.testing.assert_close(tokens.encoder_attention, row, rtol=0, atol=1e-6)


def test_clip_last_layer_joined_heads_keys_and_features():
    spec = EncoderSpec("last", "cls", joined_heads=True, keys="joined", features=True)
    seen = hear("llava", spec)
    model, inputs = get_model("llava"), ragged_batch("llava").inputs
    tower = model.model.vision_tower
    layer = getattr(tower, "vision_model", tower).encoder.layers[-1]
    with torch.no_grad():
        states = tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
        normed = layer.layer_norm1(states[-2])
        q, k = layer.self_attn.q_proj(normed), layer.self_attn.k_proj(normed)
        attention = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)[:, 0, 1:]
    for i, tokens in enumerate(seen):
        torch.testing.assert_close(tokens.encoder_attention, attention[i], rtol=0, atol=1e-9)
        torch.testing.assert_close(tokens.encoder_keys, k[i, 1:], rtol=0, atol=1e-9)
        torch.testing.assert_close(tokens.encoder_features, states[-2][i, 1:], rtol=0, atol=1e-9)
        torch.testing.assert_close(tokens.project(tokens.encoder_features), tokens.features, rtol=0, atol=1e-9)


def test_crops_are_mapped_to_packed_places():
    """Features before the projector land beside the very tokens they became, newlines left out."""
    for tokens in hear("llava_next", EncoderSpec(features=True)):
        torch.testing.assert_close(tokens.project(tokens.encoder_features), tokens.features, rtol=0, atol=1e-9)
        assert tokens.encoder_attention.shape == (len(tokens),)


def test_siglip_and_its_pooled_videos():
    weights = eager_maps("llava_onevision", ragged_batch("llava_onevision", video=True).inputs, -1)
    seen = {t.kind: t for t in hear("llava_onevision", EncoderSpec(), video=True)}
    frames = weights[-1].mean(1).mean(1)  # three videos of two frames
    pooled = torch.nn.functional.interpolate(frames.view(-1, 1, 6, 6), (3, 3), mode="bilinear").flatten(1)
    torch.testing.assert_close(seen["video"].encoder_attention, pooled[-2:].flatten(), rtol=0, atol=1e-6)
    thumbnail = weights[0].mean(1).mean(1)[0]
    torch.testing.assert_close(seen["image"].encoder_attention[:36], thumbnail, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("layer", ["feature", "last"])
def test_qwen(family, layer):
    """Chunks are joined, groups of patches averaged, windows undone."""
    model, inputs = get_model(family), ragged_batch(family).inputs
    seen = hear(family, EncoderSpec(layer))
    received = torch.cat([w[0].mean(0).mean(0) for w in eager_maps(family, inputs, -1)])
    merged = received.view(-1, 4).mean(1)
    if family == "qwen2_5_vl":
        merged = merged[_window_order(model.model.visual, inputs["image_grid_thw"]).argsort()]
    for tokens, expected in zip(seen, merged.split([len(t) for t in seen]), strict=True):
        torch.testing.assert_close(tokens.encoder_attention, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_patches_from_before_the_merger(family):
    """What the merger got, averaged four by four; where windows are undone, a token's mean moves with it."""
    model, given = get_model(family), []
    handle = model.model.visual.merger.register_forward_hook(lambda m, args, out: given.append((args[0], out)))
    try:
        seen = hear(family, EncoderSpec(rows=None, patches=True))
    finally:
        handle.remove()
    patches, merged = given[0]
    means = patches.view(-1, 4, patches.shape[-1]).mean(1)
    for tokens in seen:
        assert tokens.encoder_features is None and tokens.encoder_attention is None
        at = (tokens.features[:, None] - merged[None]).abs().amax(-1).argmin(1)  # where the merger made it
        torch.testing.assert_close(tokens.encoder_patches, means[at], rtol=0, atol=1e-12)
    assert all(tokens.encoder_patches is None for tokens in hear("llava", EncoderSpec(patches=True)))


@pytest.mark.parametrize(("layer", "block"), [("last", 1), ("feature", 0)])
def test_windowed_layers(layer, block, monkeypatch):
    """Attention within windows, one kernel call each, comes back in picture order."""
    model, inputs = get_model("qwen2_5_vl"), ragged_batch("qwen2_5_vl").inputs
    monkeypatch.setattr(model.model.visual, "fullatt_block_indexes", [0])  # block 1 looks through windows now
    maps = eager_maps("qwen2_5_vl", inputs, block)
    assert len(maps) == (4 if block == 0 else 12)  # whole pictures, or their windows of 2 x 2 tokens
    merged = torch.cat([w[0].mean(0).mean(0) for w in maps]).view(-1, 4).mean(1)
    merged = merged[_window_order(model.model.visual, inputs["image_grid_thw"]).argsort()]
    seen = hear("qwen2_5_vl", EncoderSpec(layer))
    for tokens, expected in zip(seen, merged.split([len(t) for t in seen]), strict=True):
        torch.testing.assert_close(tokens.encoder_attention, expected, rtol=0, atol=1e-6)


def test_windows_are_undone_as_the_tower_undoes_them():
    """A value that marks a patch in the tower's order comes back beside the token it is merged into."""
    model, inputs = get_model("qwen2_5_vl"), ragged_batch("qwen2_5_vl").inputs
    seen = []
    handle = model.model.visual.merger.register_forward_hook(lambda m, a, out: seen.append((a[0], out)))
    with torch.no_grad():
        out = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    handle.remove()
    features = getattr(out, "pooler_output", out)
    windowed = seen[0][1]  # merged tokens, still in window order
    values = windowed.repeat_interleave(4, 0)[None]
    lengths, arguments = [len(f) for f in features], dict(image_grid_thw=inputs["image_grid_thw"])
    again = QWEN2_VL.encoder.regroup(EncoderValues(model.model, "image", values, lengths, arguments))
    for a, b in zip(again, features, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_listening_changes_nothing(family):
    model, batch = get_model(family), ragged_batch(family)
    implementation = [getattr(m, "config", None) and m.config._attn_implementation for m in model.modules()]
    before = generate(model, batch.inputs)
    with pruning(model, "fopru", 1.0):
        assert torch.equal(generate(model, batch.inputs).logits, before.logits)
        configs = {id(m.config): m.config._attn_implementation for m in model.modules() if hasattr(m, "config")}
        assert sum("tokenprune" in name for name in configs.values()) == 1  # one module, not the model
        assert "tokenprune" not in model.config._attn_implementation
    assert implementation == [getattr(m, "config", None) and m.config._attn_implementation for m in model.modules()]


@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_videos_are_heard(family):
    for tokens in hear(family, EncoderSpec(), video=True):
        assert tokens.encoder_attention.shape == (len(tokens),)


def test_cls_alone_is_not_made_up():
    (first, *_) = hear("qwen2_vl", EncoderSpec(rows="cls", without_cls=None))
    assert first.encoder_attention is None


@pytest.mark.skipif(not ENCODES_FIRST, reason="this transformers takes no encoded pictures")
def test_features_computed_unheard_are_refused():
    model, batch = get_model("llava"), ragged_batch("llava")
    with torch.no_grad():
        encoded = model.model.get_image_features(batch.inputs["pixel_values"], return_dict=True)
    inputs = {k: v for k, v in batch.inputs.items() if k != "pixel_values"}
    with pruning(model, "fopru", 0.3), pytest.raises(ValueError, match="without it listening"):
        model(**inputs, mm_encoder_outputs={"image": encoded})
    with pruning(model, "divprune", 0.3):
        model(**inputs, mm_encoder_outputs={"image": encoded})


SHUFFLES = {
    "internvl": lambda base, x: base.pixel_shuffle(x.unflatten(1, (6, 6)), base.config.downsample_ratio).flatten(1, 2),
    "aya_vision": lambda base, x: base.multi_modal_projector.pixel_shuffle(x).flatten(1, 2),
    "cohere2_vision": lambda base, x: base.multi_modal_projector.pixel_shuffle(x).flatten(1, 2),
    "idefics3": lambda base, x: base.connector.pixel_shuffle(x, base.connector.scale_factor),
    "smolvlm": lambda base, x: base.connector.pixel_shuffle(x, base.connector.scale_factor),
}


@pytest.mark.parametrize("family", SHUFFLES)
def test_tokens_get_the_saliency_of_the_patches_they_are_made_of(family):
    """What the model's own pixel shuffle puts side by side in a token is averaged."""
    base = get_model(family).model
    patches = torch.randn(2, 36, 8, dtype=torch.float64)
    tokens = SHUFFLES[family](base, patches)
    assert tokens.shape == (2, 9, 32)
    mine = square_tiles.regroup(EncoderValues(base, "image", patches.sum(-1, keepdim=True), [9, 9], {}))
    torch.testing.assert_close(torch.stack(mine)[..., 0], tokens.sum(-1) / 4)


def test_tokens_of_mistral_get_the_saliency_of_their_patches():
    base = copy.deepcopy(get_model("mistral3").model)
    sizes = torch.tensor([(24, 32), (40, 24)])
    merger = base.multi_modal_projector.patch_merger
    merger.merging_layer.weight.data.fill_(0.25)
    patches = torch.randn(6 * 8 + 10 * 6, 16, dtype=torch.float64)
    tokens = merger(patches, sizes)[:, 0]
    mine = pixtral.regroup(
        EncoderValues(base, "image", patches.sum(-1)[None, :, None], [12, 15], {"image_sizes": sizes})
    )
    torch.testing.assert_close(torch.cat(mine)[:, 0], tokens)


def test_frames_of_llava_next_video_get_the_saliency_of_what_is_pooled():
    base = get_model("llava_next_video").model
    frames = torch.randn(4, 36, 16, dtype=torch.float64)
    mine = llava_next_video.regroup(EncoderValues(base, "video", frames, [18, 18], {}))
    torch.testing.assert_close(torch.cat(mine), base.vision_resampler(frames).flatten(0, 1))


def test_a_packed_tower_attends_within_pictures_alone():
    """Two pictures in one sequence have the saliency they have alone."""
    model = get_model("mistral3")
    both = make_batch("mistral3", [[3, Picture((24, 32)), 2, Picture((24, 32)), 3]])
    with torch.no_grad(), pruning(model, "fopru", 0.5):
        model(**both.inputs)
        together = [r.indices for r in pruning_report(model)]
        for i, row in enumerate(both.inputs["pixel_values"]):
            one = make_batch("mistral3", [[3, Picture((24, 32)), 3]])
            model(**{**one.inputs, "pixel_values": row[None]})
            assert pruning_report(model)[0].indices == together[i]
