"""Downsampling: the stock model on a smaller picture."""

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from tokenprune import apply_pruning, pruning

from ..builders import CLIP, IMAGE, LLAVA_SIDE, PATCH, TEXT
from ..support.towers import features, pixels, tower_of


@torch.no_grad()
def test_downsampling_is_the_stock_model_on_a_smaller_picture(deep):
    images = pixels()
    small = F.interpolate(images, (3 * PATCH, 3 * PATCH), mode="bicubic", antialias=True)
    tower, embeddings = deep.model.vision_tower, tower_of(deep).embeddings
    handle = embeddings.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "interpolate_pos_encoding": True}), with_kwargs=True
    )
    expected = deep.model.multi_modal_projector(tower(small, output_hidden_states=True).hidden_states[-2][:, 1:])
    handle.remove()
    with pruning(deep, "downsample", 9):
        got = features(deep, images)
    places = [y * 6 + x for y in (0, 2, 4) for x in (0, 2, 4)]  # the first of the two in the middle
    torch.testing.assert_close(got[:, places], expected, rtol=0, atol=1e-12)
    assert (got == 0).all(-1).sum(1).tolist() == [27] * 3


def test_downsampling_needs_a_place_for_every_token():
    vision = CLIPVisionConfig(image_size=LLAVA_SIDE, patch_size=PATCH, **CLIP)
    config = LlavaConfig(
        vision_config=vision, text_config=LlamaConfig(**TEXT), image_token_index=IMAGE,
        vision_feature_select_strategy="full",
    )  # fmt: skip
    with pytest.raises(ValueError, match="cannot place the CLS token"):
        apply_pruning(LlavaForConditionalGeneration(config), "downsample", 0.5)
