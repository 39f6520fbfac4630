"""Patches that leave inside the vision tower and come back: equal to computing the same by hand on the stock layers."""

import copy

import pytest
import torch

from tokenprune import TowerCut, apply_pruning, pruning, pruning_report, remove_pruning
from tokenprune.policies import IPCV

from ..builders import spread_weights
from ..families import CASES, get_model, ragged_batch
from ..oracles import assert_same, keep_mask, masked, prune
from ..support.restored_layers import Inputs
from ..support.seen_tokens import seen_tokens
from ..support.tower_checks import check_keeping_all, flops_of
from ..support.towers import skip_where_recorded

#: CLS token; tiles; a shuffle behind a CLS token; a shuffle and attention masks; SigLIP with pooling and with videos.
RESTORING = [
    f for f in ("llava", "llava_next", "internvl", "idefics3", "aya_vision", "gemma3", "llava_onevision") if f in CASES
]
KINDS = (("image", "pixel_values"), ("video", "pixel_values_videos"))
_MODELS: dict[str, torch.nn.Module] = {}


def deep_model(name):
    """A model whose tower has seven layers."""
    if name not in _MODELS:
        stock = get_model(name)
        config = copy.deepcopy(stock.config)
        config.vision_config.num_hidden_layers = 7
        torch.manual_seed(0)
        _MODELS[name] = spread_weights(type(stock)(config))
        _MODELS[name].case_name = name
    return _MODELS[name]


def layers_of(model):
    """Layers up to the one that is read, whether the first token is a CLS token, and patches of a token."""
    skip_where_recorded(model, "ipcv")
    with pruning(model, "ipcv", 0.5):
        stage = model.model._tokenprune.encoder
        return stage.layers, stage.n_cls, stage.group


def features(model, batch, kind):
    pixels = dict(KINDS)[kind]
    more = {k: v for k, v in batch.inputs.items() if k in ("image_sizes", "pixel_attention_mask", "image_sizes_videos")}
    out = getattr(model.model, f"get_{kind}_features")(batch.inputs[pixels], **more)
    out = getattr(out, "pooler_output", out)
    return torch.cat([each.flatten(0, -2) for each in out])


def by_hand(layers, given, policy, keep, n_cls, group):
    """(B, N, D), what IPCV makes of the stock layers' inputs, picture by picture and patch by patch."""
    first = min(max(1, round(policy.depth * len(layers))), len(layers) - 1)
    pictures = []
    before, (now, more) = given[first - 1][0], given[first]
    run = lambda layer, x, named: (lambda out: out[0] if isinstance(out, tuple) else out)(layer(x, **named))
    for b in range(len(now)):
        x, moved = now[b], (now[b] - before[b]).norm(dim=1)
        mask = more.get("attention_mask")
        seen = torch.ones(len(x), dtype=torch.bool) if mask is None else mask[b, 0, 0]
        seen = seen if seen.dtype == torch.bool else seen == 0
        n = len(x) - n_cls
        n_keep = max(1, round(keep * (n // group))) * group
        patches = sorted(range(n_cls, len(x)), key=lambda i: (-float(moved[i]) if seen[i] else 1.0, i))
        kept = [*range(n_cls), *sorted(patches[:n_keep])]
        gone = sorted(patches[n_keep:])
        near = {g: sorted(kept[n_cls:], key=lambda k: float((x[g] - x[k]).norm()))[: policy.neighbours] for g in gone}

        def whole(states, x=x, kept=kept, gone=gone, near=near):
            full = torch.empty_like(x)
            full[kept] = states
            for g in gone:
                full[g] = x[g] + torch.stack([full[k] - x[k] for k in near[g]]).mean(0)
            return full

        states = x[kept]
        for i in range(first, len(layers)):
            if i < first + policy.stabilised:
                named = more if mask is None else {**more, "attention_mask": mask[b : b + 1]}
                states = run(layers[i], whole(states)[None], named)[0][kept]
            else:
                named = more if mask is None else {**more, "attention_mask": mask[b : b + 1][:, :, kept][..., kept]}
                states = run(layers[i], states[None], named)[0]
        pictures.append(whole(states))
    return torch.stack(pictures)


def check_by_hand(family, batch, policy, keep, kind="image"):
    model = deep_model(family)
    layers, n_cls, group = layers_of(model)
    with Inputs(layers) as seen:
        stock = features(model, batch, kind)
        given = dict(seen.given)
    expected = by_hand(layers, given, policy, keep, n_cls, group)
    with Inputs(layers) as seen:
        seen.instead = {len(layers) - 1: expected}
        behind = features(model, batch, kind)
    with pruning(model, policy, keep):
        pruned = features(model, batch, kind)
    torch.testing.assert_close(pruned, behind, rtol=0, atol=1e-9)
    assert (pruned - stock).abs().max() > 1e-4
    return expected


@pytest.mark.parametrize("family", RESTORING)
@torch.no_grad()
def test_the_tower_does_what_the_paper_says(family):
    check_by_hand(family, ragged_batch(family), IPCV(neighbours=3, stabilised=2), 0.4)


@pytest.mark.parametrize("family", ["llava", "internvl", "idefics3"])
@torch.no_grad()
def test_behind_tokens_that_left_before_the_tower(family):
    """What the paper says, of the patches that the pixels stage has left; budgets count the whole picture."""
    model, batch, policy = deep_model(family), ragged_batch(family), IPCV(neighbours=3, stabilised=1)
    layers, n_cls, group = layers_of(model)
    with pruning(model, "grid@pixels", 0.6), Inputs(layers) as seen:
        features(model, batch, "image")
    n_left = (seen.given[1][0].shape[1] - n_cls) // group
    n = {"llava": 36, "internvl": 9, "idefics3": 9}[family]
    assert n_left == round(0.6 * n)
    expected = by_hand(layers, seen.given, policy, round(0.3 * n) / n_left, n_cls, group)
    with pruning(model, "grid@pixels", 0.6), Inputs(layers) as seen:
        seen.instead = {len(layers) - 1: expected}
        behind = features(model, batch, "image")
    with pruning(model, ["grid@pixels", policy], keep=[0.6, 0.3]):
        pruned = features(model, batch, "image")
        model(**batch.inputs)
        assert all(r.n_by_stage == {"pixels": n_left, "vision": n_left} for r in pruning_report(model))
    torch.testing.assert_close(pruned, behind, rtol=0, atol=1e-9)


@torch.no_grad()
def test_options_and_videos():
    for stabilised in (0, 10):  # none, and the last layer as well
        check_by_hand("llava", ragged_batch("llava"), IPCV(depth=0.5, neighbours=100, stabilised=stabilised), 0.2)
    batch = ragged_batch("llava_onevision", video=True)
    check_by_hand("llava_onevision", batch, IPCV(neighbours=1, stabilised=1), 0.4, "video")


@torch.no_grad()
def test_padding_that_a_mask_hides_leaves_first():
    batch = ragged_batch("idefics3")
    pixels = batch.inputs["pixel_values"]
    mask = torch.ones(*pixels.shape[:2], *pixels.shape[-2:], dtype=torch.long)
    mask[:, :, 16:] = 0
    expected = check_by_hand("idefics3", batch.to(pixel_attention_mask=mask), IPCV(stabilised=1), 0.5)
    assert expected.isfinite().all()


@pytest.mark.parametrize("family", ["llava", "internvl", "idefics3"])
@torch.no_grad()
def test_oracle_with_a_policy_behind_it(family):
    """The language model is stock on the restored features; alone, the policy leaves it all tokens."""
    model, batch, policy = deep_model(family), ragged_batch(family), IPCV(stabilised=1)
    layers, n_cls, group = layers_of(model)
    with Inputs(layers) as seen:
        model(**batch.inputs)
        expected = by_hand(layers, seen.given, policy, 0.4, n_cls, group)
    for policies, keep, share in (([policy, "divprune"], [0.4, 0.3], 0.3), (policy, 0.4, 1.0)):
        run, _, records = prune(model, batch, policies, keep, "original")
        assert all(r.n_after == round(share * r.n_before) for r in records)
        assert all("encoder" in r.select_ms_by_stage and "encoder" not in r.kept_after for r in records)
        with Inputs(layers) as seen:
            seen.instead = {len(layers) - 1: expected}
            assert_same(run, masked(model, batch, keep_mask(batch, records)))


@pytest.mark.parametrize("family", ["llava", "internvl"])
def test_keeping_all_is_the_stock_model_to_the_bit(family):
    model, batch = deep_model(family), ragged_batch(family)
    skip_where_recorded(model, "ipcv")
    check_keeping_all(model, batch, "ipcv")


@torch.no_grad()
def test_pictures_do_not_depend_on_their_neighbours_and_the_tower_gets_cheaper():
    model, batch = deep_model("llava"), ragged_batch("llava")
    skip_where_recorded(model, "ipcv")
    pixels = batch.inputs["pixel_values"]

    encode = lambda: features(model, batch, "image")
    full = flops_of(encode)
    with pruning(model, "ipcv", 0.3, stabilised=1):
        assert flops_of(encode) < 0.75 * full
        together = features(model, batch, "image").unflatten(0, (len(pixels), -1))
        for i in range(len(pixels)):
            alone = features(model, batch.to(pixel_values=pixels[i : i + 1]), "image")
            torch.testing.assert_close(alone, together[i], rtol=0, atol=1e-9)


@torch.no_grad()
def test_a_policy_behind_it_reads_values_of_all_patches():
    """Of a patch that left, those of its neighbours."""
    model, batch = deep_model("llava"), ragged_batch("llava")
    skip_where_recorded(model, "ipcv")
    with pruning(model, [IPCV(stabilised=1), "visionzip"], keep=[0.4, 0.25]):
        seen = seen_tokens(model.model._tokenprune.config.vision.policy)
        model(**batch.inputs)
        assert all(r.n_after == round(0.25 * r.n_before) for r in pruning_report(model))
    assert all(len(t) == 36 and t.encoder_attention.min() > 0 for t in seen)
    assert all(t.encoder_keys.norm(dim=1).min() > 0 for t in seen)


def test_gradients_reach_layers_below_the_cut():
    model, batch = deep_model("internvl"), ragged_batch("internvl")
    layers, _, _ = layers_of(model)
    with pruning(model, "ipcv", 0.5):
        model(**batch.inputs, labels=batch.inputs["input_ids"]).loss.backward()
    weight = layers[0].attention.q_proj.weight
    assert weight.grad is not None and weight.grad.abs().max() > 0
    model.zero_grad(set_to_none=True)


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="'mistral3' does not allow: patches come back in the towers of Qwen-VL, CLIP"):
        apply_pruning(get_model("mistral3"), "ipcv", 0.5)
    model, batch = deep_model("internvl"), ragged_batch("internvl")

    class Own(IPCV):
        adaptive = True

    with pytest.raises(ValueError, match="cannot find its own number of tokens"):
        apply_pruning(model, Own())

    class Short(IPCV):
        def encoder_select(self, view):
            return TowerCut(super().encoder_select(view).keep[:, :-1])

    class Twice(IPCV):
        def encoder_select(self, view):
            return TowerCut(torch.zeros_like(super().encoder_select(view).keep))

    for policy, said in (
        (Short(), "left 15 tokens in the vision tower, asked for 16"),
        (Twice(), "ascending, distinct"),
    ):
        with pruning(model, policy, 0.5), pytest.raises(ValueError, match=said), torch.no_grad():
            model(**batch.inputs)
    apply_pruning(model, "ipcv", 0.5)
    remove_pruning(model)
    assert not any(m._forward_pre_hooks for m in model.model.vision_tower.modules())
