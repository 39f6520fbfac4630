"""The stock model with patches hidden in its vision tower: what pruning before the tower must equal."""

from __future__ import annotations

import contextlib

import torch

from tokenprune.patches.families.registry import families

from ..families import CASES, FAMILIES
from .hidden_keys import attending

#: Families whose tokens can leave before the vision tower.
PIXEL_FAMILIES = [name for name in FAMILIES if name.startswith("qwen")]


def _packed(name: str) -> bool:
    family = families().get(name)  # some cases are a type of another name
    return family is not None and family.encoder is not None and family.encoder.packed_tower is not None


#: Others of which this holds, with the facts of those.
DERIVED = [name for name in CASES if name not in PIXEL_FAMILIES and _packed(name)]


def keeps_by_kind(batch, records) -> dict[str, list[torch.Tensor]]:
    """By kind, (N,) bool of each visual input in the order of the pixels: what the report says is left before the
    tower."""
    found: dict[str, list[torch.Tensor]] = {}
    for record in records:
        keep = torch.zeros(record.n_before, dtype=torch.bool)
        keep[record.kept_after.get("pixels", range(record.n_before))] = True
        found.setdefault(record.kind, []).append(keep)
    return found


@contextlib.contextmanager
def hidden_patches(model, batch, keeps: dict[str, list[torch.Tensor]]):
    """Patches of tokens that are False in `keeps` get no attention from others in any layer of the tower.

    `keeps` has for each input (N,) bool, or (layers, N) bool where each layer hides others.
    """
    tower, visible, done = model.model.visual, {}, {}
    unit = tower.spatial_merge_size**2
    numbers = {block.attn: i for i, block in enumerate(tower.blocks)}

    def attend(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
        start = done.get(module, 0)
        done[module] = stop = start + query.shape[2]
        seen = visible["now"]
        seen = (seen if seen.ndim == 1 else seen[numbers[module]])[start:stop]
        scores = (query @ key.transpose(2, 3) * scaling).masked_fill(~seen, -1e300)
        return (scores.softmax(-1) @ value).transpose(1, 2), None

    def enter(module, args, kwargs):
        grids = kwargs["grid_thw"]
        images = batch.inputs.get("image_grid_thw")
        kind = "image" if images is not None and torch.equal(images, grids) else "video"
        by_token = torch.cat(keeps[kind], -1)
        if hasattr(module, "window_size"):
            from transformers.vision_utils import get_vision_window_index

            by_token = by_token[..., get_vision_window_index(grids, 2, module.window_size, module.patch_size)[0]]
        visible["now"] = by_token.repeat_interleave(unit, -1)
        done.clear()

    handle = tower.register_forward_pre_hook(enter, with_kwargs=True)
    try:
        with attending(numbers, attend):
            yield
    finally:
        handle.remove()
