"""Tokens that leave between layers of a Pixtral tower: equal to hiding their patches from that layer on."""

import contextlib
import copy

import pytest
import torch

from tokenprune import apply_pruning, pruning, pruning_report, remove_pruning

from ..builders import PATCH, spread_weights
from ..families import Picture, get_model, make_batch, ragged_batch
from ..oracles import assert_same, keep_mask, masked, native_short, prune
from ..support.hidden_keys import attending
from ..support.packed_towers import Halving
from ..support.snapshot import snapshot
from ..support.tower_checks import check_keeping_all, flops_of

_MODELS: dict[str, torch.nn.Module] = {}


def deep_model(name="mistral3"):
    """A model whose tower has five layers."""
    if name not in _MODELS:
        stock = get_model(name)
        config = copy.deepcopy(stock.config)
        config.vision_config.num_hidden_layers = 5
        torch.manual_seed(0)
        _MODELS[name] = spread_weights(type(stock)(config))
        _MODELS[name].case_name = name
    return _MODELS[name]


def odd_batch():
    """Pictures whose sides are no multiple of a token's, whose last patches belong to none."""
    return make_batch("mistral3", [[3, Picture((28, 36)), 4], [2, Picture((36, 28)), 2, Picture((24, 24)), 2]])


def features(model, batch) -> torch.Tensor:
    out = model.model.get_image_features(batch.inputs["pixel_values"], image_sizes=batch.inputs["image_sizes"])
    return torch.cat([each.flatten(0, -2) for each in getattr(out, "pooler_output", out)])


def recorded(model, batch, policy, keep):
    """Features of a pruned tower, and (layers, N) bool, by token what each layer had; the report."""
    with pruning(model, policy, keep, budget="final"):
        stage = model.model._tokenprune.encoder
        cut, left = stage._cut_rows, {}

        def watch(call, number, arguments):
            hidden = cut(call, number, arguments)
            left[stage.borders[number]], left[0] = call.keep, call.entered
            return hidden

        stage._cut_rows = watch
        found = features(model, batch)
        stage._cut_rows = cut
        rows = [left[max(border for border in left if border <= i)] for i in range(len(stage.blocks))]
        model(**batch.inputs)
        return found, torch.stack(rows), pruning_report(model)


@contextlib.contextmanager
def hidden(model, batch, keeps):
    """Patches of tokens that are False in (layers, N) get no attention in that layer of the stock tower."""
    layers, visible, start = model.model.vision_tower.transformer.layers, [], 0
    for height, width in (batch.inputs["image_sizes"] // PATCH).tolist():
        rows, columns = height // 2, width // 2
        raster = torch.ones(len(keeps), height, width, dtype=torch.bool)
        tokens = keeps[:, start : start + rows * columns].view(-1, rows, columns)
        raster[:, : 2 * rows, : 2 * columns] = tokens.repeat_interleave(2, 1).repeat_interleave(2, 2)
        visible.append(raster.flatten(1))
        start += rows * columns
    assert start == keeps.shape[1]
    of_layer = dict(zip((layer.attention for layer in layers), torch.cat(visible, 1), strict=True))

    def attend(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
        scores = query @ key.transpose(2, 3) * scaling + attention_mask
        scores = scores.masked_fill(~of_layer[module], -1e300)
        return (scores.softmax(-1) @ value).transpose(1, 2), None

    with attending(of_layer, attend):
        yield


@torch.no_grad()
def test_the_tower_is_as_if_patches_were_hidden_from_a_layer_on():
    """Alone, and behind tokens that left before the tower."""
    model = deep_model()
    for batch in (ragged_batch("mistral3"), odd_batch()):
        stock = features(model, batch)
        for policy, keep in ((Halving(), 0.3), (["grid@pixels", Halving()], [0.7, 0.3])):
            pruned, keeps, records = recorded(model, batch, policy, keep)
            assert len(keeps.sum(1).unique()) > 2  # some leave at several borders
            with hidden(model, batch, keeps):
                expected = features(model, batch)
            last = keeps[-1]
            torch.testing.assert_close(pruned[last], expected[last], rtol=0, atol=1e-9)
            assert (stock - expected)[last].abs().max() > 1e-4
            assert all(r.n_after == max(1, round(0.3 * r.n_before)) for r in records)
            for r in records:
                assert set(r.indices) == set(r.kept_after["encoder"]) <= set(r.kept_after.get("pixels", r.indices))


def test_oracle():
    model, batch = deep_model(), ragged_batch("mistral3")
    for policy, positions in ((["flowcut", "visionzip"], "original"), ("flowcut", "compact")):
        _, keeps, _ = recorded(model, batch, policy, 0.3)
        run, fed, records = prune(model, batch, policy, 0.3, positions)
        assert all(r.n_after == max(1, round(0.3 * r.n_before)) for r in records)
        keep = keep_mask(batch, records)
        with hidden(model, batch, keeps):
            if positions == "compact":
                assert_same(run, masked(model, batch, keep, positions))
                assert_same(run, native_short(model, batch, keep, positions))
            else:  # a policy behind it merges
                assert_same(run, masked(model, batch, keep, positions, fed=fed, changed=True))


@torch.no_grad()
def test_pictures_do_not_depend_on_their_neighbours_and_the_tower_gets_cheaper():
    model, batch = deep_model(), ragged_batch("mistral3")
    full = flops_of(lambda: features(model, batch))
    with pruning(model, "flowcut", 0.25, by_entropy=False):
        assert flops_of(lambda: features(model, batch)) < 0.8 * full
        together = features(model, batch)
        for i in range(len(batch.inputs["pixel_values"])):
            one = {k: batch.inputs[k][i : i + 1] for k in ("pixel_values", "image_sizes")}
            alone = features(model, batch.to(**one))
            torch.testing.assert_close(alone, together[: len(alone)], rtol=0, atol=1e-9)
            together = together[len(alone) :]


def test_keeping_all_is_the_stock_model_to_the_bit():
    model, batch = deep_model(), ragged_batch("mistral3")
    check_keeping_all(model, batch, "flowcut")
    before = snapshot(model)
    apply_pruning(model, "flowcut", 0.5)
    assert snapshot(model) != before
    remove_pruning(model)
    assert snapshot(model) == before


def test_gradients_reach_layers_below_the_cut():
    model, batch = deep_model(), ragged_batch("mistral3")
    weight = model.model.vision_tower.transformer.layers[0].attention.q_proj.weight
    with pruning(model, "flowcut", 0.5):
        model(**batch.inputs, labels=batch.inputs["input_ids"]).loss.backward()
    assert weight.grad is not None and weight.grad.abs().max() > 0
    model.zero_grad(set_to_none=True)


def test_what_cannot_be_is_said():
    model = deep_model()
    for policy in ("tome", "downsample"):
        with pytest.raises(ValueError, match="whose patches can leave together, and the policy merges or resizes"):
            apply_pruning(model, policy, 0.5)
    with pytest.raises(ValueError, match="patches come back in the towers of"):
        apply_pruning(model, "ipcv", 0.5)
