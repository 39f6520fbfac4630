"""Qwen-VLs with towers of more layers, and what leaves inside of them."""

from __future__ import annotations

import copy

import torch

from tokenprune import Policy, TowerCut, pruning, pruning_report

from ..builders import spread_weights
from ..families import CASES, get_model

#: What is different in the vision config: full attention in two of five layers; planes from the first and third layer.
DEEPER = {
    "qwen2_vl": dict(depth=4),
    "qwen2_5_vl": dict(depth=5, fullatt_block_indexes=[1, 3]),
    "qwen3_vl": dict(depth=4, deepstack_visual_indexes=[0, 2]),
    "qwen3_vl_moe": dict(depth=4, deepstack_visual_indexes=[0, 2]),
    "qwen3_5": dict(depth=4),
    "qwen3_5_moe": dict(depth=4),
}
DEEP_FAMILIES = [name for name in DEEPER if name in CASES]


class Halving(Policy):
    """At every border half of what is too much leaves, of the smallest keys."""

    stage = "encoder"
    chooses_groups = True

    def encoder_select(self, view):
        is_last = view.cut == view.n_cuts - 1
        size = view.key.mean(1)[0].norm(dim=-1).unflatten(0, (-1, view.group)).sum(1)
        return TowerCut(size.topk(view.n_keep + (0 if is_last else view.surplus // 2)).indices.sort().values[None])


_MODELS: dict[str, torch.nn.Module] = {}


def deep_model(name: str):
    """A model with a tower of more layers, built once and shared; tests must leave it unpruned."""
    if name not in _MODELS:
        stock = get_model(name)
        config = copy.deepcopy(stock.config)
        for key, value in DEEPER[name].items():
            setattr(config.vision_config, key, value)
        torch.manual_seed(0)
        _MODELS[name] = spread_weights(type(stock)(config))
        _MODELS[name].case_name = name
    return _MODELS[name]


def packed_features(model, batch) -> dict[str, torch.Tensor]:
    """By kind, features of all tokens and the planes beside them, (N, planes + 1, D)."""
    found = {}
    for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if pixels in batch.inputs:
            compute = getattr(model.model, f"get_{kind}_features")
            out = compute(batch.inputs[pixels], batch.inputs[f"{kind}_grid_thw"])
            planes = getattr(out, "deepstack_features", None) or []
            planes = [p if isinstance(p, torch.Tensor) else torch.cat(list(p)) for p in planes]
            found[kind] = torch.stack([torch.cat(list(out.pooler_output)), *planes], 1)
    return found


def record_layers(model, batch, policy, keep, **options):
    """Features of a pruned tower by kind, and by kind and input, (layers, N) bool, what each layer had; the report."""
    with pruning(model, policy, keep, budget="final", **options):
        stage = model.model._tokenprune.encoder
        cut, left = stage._cut, {}

        def watch(call, number, arguments):
            hidden = cut(call, number, arguments)
            left[stage.borders[number]] = call.now.keep
            left[0] = call.first.keep
            return hidden

        stage._cut = watch
        features, keeps = {}, {}
        for kind in ("image", "video"):
            alone = {k: v for k, v in batch.inputs.items() if k.startswith(("pixel", "image_grid", "video_grid"))}
            alone = {k: v for k, v in alone.items() if ("video" in k) == (kind == "video")}
            if not alone:
                continue
            features |= packed_features(model, type(batch)(alone, []))
            rows = [left[max(border for border in left if border <= i)] for i in range(len(stage.blocks))]
            sizes = (batch.inputs[f"{kind}_grid_thw"].prod(1) // 4).tolist()
            keeps[kind] = list(torch.stack(rows).split(sizes, 1))
        stage._cut = cut
        model(**batch.inputs)
        return features, keeps, pruning_report(model)
