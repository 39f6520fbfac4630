"""A LLaVA with a deeper vision tower, and what leaves inside it."""

import importlib.util

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from tokenprune import apply_pruning, pruning, remove_pruning
from tokenprune.patches.families.llava import inner_tower

from ..builders import CLIP, IMAGE, LLAVA_SIDE, PATCH, TEXT, spread_weights
from ..families import one_row


def deep_llava():
    """A LLaVA whose vision tower has seven layers, six below the projector."""
    vision = CLIPVisionConfig(image_size=LLAVA_SIDE, patch_size=PATCH, **(CLIP | dict(num_hidden_layers=7)))
    config = LlavaConfig(
        vision_config=vision, text_config=LlamaConfig(**TEXT), image_token_index=IMAGE, tie_word_embeddings=False
    )
    return spread_weights(LlavaForConditionalGeneration(config))


def tower_of(model):
    """The vision tower, without its wrapper."""
    return inner_tower(model.model.vision_tower)


def pixels(n: int = 3) -> torch.Tensor:
    """(n, 3, side, side) float64, always the same."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, LLAVA_SIDE, LLAVA_SIDE, generator=generator, dtype=torch.float64)


def features(model, images) -> torch.Tensor:
    """(n, N, D), features of images behind the projector."""
    out = model.model.get_image_features(images)
    return torch.stack(list(getattr(out, "pooler_output", out)))


def record_cuts(model, images, policy, keep):
    """Features of a pruned tower, and what was left before each of its layers, CLS first, and in place of pads."""
    layers, left = tower_of(model).encoder.layers, []
    stage = apply_pruning(model, policy, keep).model._tokenprune.encoder
    choose = stage._choose

    def watch(call, cut, hidden):
        chosen = choose(call, cut, hidden)
        n = hidden.shape[1] - 1
        now = left[-1] if left else torch.arange(n + 1).expand(len(hidden), -1)
        if chosen is not None:
            now = now.gather(1, chosen.keep)
            now = now if chosen.sizes is None else now.masked_fill(chosen.sizes == 0, 0)
        left.append(now)
        return chosen

    stage._choose = watch
    try:
        return features(model, images), left, layers
    finally:
        remove_pruning(model)


@torch.no_grad()
def skip_where_recorded(model, policy):
    """Skip a test where this transformers reads layers of a model's tower before a policy's raster can be filled up,
    which has to be refused."""
    if importlib.util.find_spec("transformers.utils.output_capturing") is not None:
        return
    try:
        with pruning(model, policy, 0.5):
            model(**one_row(model.case_name).inputs)
    except ValueError as error:
        if "install 5.17 or later" not in str(error):
            raise
        pytest.skip(str(error))
