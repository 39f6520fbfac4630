"""Published models' shapes with random weights, and inputs for them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from .pixels import Request, crops, merged_patches, native, one_size, thumbnail_and_mosaic, tile
from .random_weights import CheapRandom
from .work import Work

_VICUNA: dict[str, Any] = dict(hidden_size=4096, intermediate_size=11008, num_attention_heads=32, vocab_size=32064)
_QWEN2: dict[str, Any] = dict(
    hidden_size=3584,
    intermediate_size=18944,
    num_attention_heads=28,
    num_key_value_heads=4,
    rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    rope_theta=1e6,
)
_CLIP: dict[str, Any] = dict(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=336,
    patch_size=14,
    projection_dim=768,
)
_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
_QWEN_IDS: dict[str, Any] = dict(
    image_token_id=151655, video_token_id=151656, vision_start_token_id=151652, vision_end_token_id=151653
)


@dataclass(frozen=True)
class Shape:
    """A published model's shape.

    Attributes:
        layers: decoder layers.
        build: makes the model's config for a number of decoder layers.
        pixels: makes the pixel inputs of a request for a config.
        length: placeholders of an image or a video, of config, request and pixel inputs; nothing is encoded for it.
    """

    layers: int
    build: Callable[[int], Any]
    pixels: Callable[[Any, Request], dict[str, Tensor]]
    length: Callable[[Any, Request, Mapping[str, Tensor]], int]


def _llava(layers: int) -> Any:
    return transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**_CLIP),
        text_config=transformers.LlamaConfig(num_hidden_layers=layers, **_VICUNA),
        image_token_index=32000,
        tie_word_embeddings=False,
    )


def _llava_next(layers: int) -> Any:
    return transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**_CLIP),
        text_config=transformers.LlamaConfig(num_hidden_layers=layers, **_VICUNA),
        image_token_index=32000,
        image_grid_pinpoints=_PINPOINTS,
        tie_word_embeddings=False,
    )


def _llava_onevision(layers: int) -> Any:
    return transformers.LlavaOnevisionConfig(
        vision_config=transformers.SiglipVisionConfig(
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=26,
            num_attention_heads=16,
            image_size=384,
            patch_size=14,
            vision_use_head=False,
        ),
        text_config=transformers.Qwen2Config(num_hidden_layers=layers, vocab_size=152000, **_QWEN2),
        image_token_index=151646,
        video_token_index=151647,
        image_grid_pinpoints=[[384 * h, 384 * w] for h in range(1, 7) for w in range(1, 7)],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )


def _qwen2_5_vl(layers: int) -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    text = {**_QWEN2, "rope_parameters": rope, "rope_scaling": {**rope, "type": "mrope"}}
    return transformers.Qwen2_5_VLConfig(
        text_config=dict(num_hidden_layers=layers, vocab_size=152064, **text),
        vision_config=dict(
            depth=32,
            hidden_size=1280,
            intermediate_size=3420,
            num_heads=16,
            out_hidden_size=3584,
            patch_size=14,
            window_size=112,
            fullatt_block_indexes=[7, 15, 23, 31],
        ),
        tie_word_embeddings=False,
        **_QWEN_IDS,
    )


def _qwen3_vl(text: Mapping[str, Any], vision: Mapping[str, Any], tied: bool) -> Callable[[int], Any]:
    """Qwen3-VL of a size: sizes of its language model and of its vision encoder, and whether embeddings are tied."""
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}

    def build(layers: int) -> Any:
        return transformers.Qwen3VLConfig(
            text_config=dict(
                num_hidden_layers=layers,
                num_key_value_heads=8,
                head_dim=128,
                vocab_size=151936,
                rope_parameters=rope,
                rope_scaling=rope,
                rope_theta=5e6,
                tie_word_embeddings=tied,
                **text,
            ),
            vision_config=dict(
                num_heads=16,
                out_hidden_size=text["hidden_size"],
                patch_size=16,
                num_position_embeddings=2304,
                **vision,
            ),
            tie_word_embeddings=tied,
            **_QWEN_IDS,
        )

    return build


_QWEN3_VL_2B = _qwen3_vl(
    dict(hidden_size=2048, intermediate_size=6144, num_attention_heads=16),
    dict(depth=24, hidden_size=1024, intermediate_size=4096, deepstack_visual_indexes=[5, 11, 17]),
    tied=True,
)
_QWEN3_VL_8B = _qwen3_vl(
    dict(hidden_size=4096, intermediate_size=12288, num_attention_heads=32),
    dict(depth=27, hidden_size=1152, intermediate_size=4304, deepstack_visual_indexes=[8, 16, 24]),
    tied=False,
)

SHAPES = {
    "llava-1.5-7b": Shape(32, _llava, one_size, tile),
    "llava-next-7b": Shape(32, _llava_next, crops(672), thumbnail_and_mosaic),
    "llava-onevision-7b": Shape(28, _llava_onevision, crops(768), thumbnail_and_mosaic),
    "qwen2.5-vl-7b": Shape(28, _qwen2_5_vl, native, merged_patches),
    "qwen3-vl-2b": Shape(28, _QWEN3_VL_2B, native, merged_patches),
    "qwen3-vl-8b": Shape(36, _QWEN3_VL_8B, native, merged_patches),
}


def config_of(name: str, layers: int | None) -> Any:
    """The config of a published shape.

    Args:
        name: of `SHAPES`.
        layers: decoder layers; None: all.
    """
    shape = SHAPES[name]
    return shape.build(layers or shape.layers)


def without_weights(config: Any) -> Any:
    """A model of a config on the device `meta`: it has shapes, and takes no time and no memory."""
    with torch.device("meta"):
        return transformers.AutoModelForImageTextToText.from_config(config)


def build(config: Any, dtype: torch.dtype, device: torch.device, attn: str | None, work: Work | None = None) -> Any:
    """A model with random weights.

    Args:
        config: of the model.
        dtype: of the weights.
        device: where the model goes.
        attn: attention implementation; None: transformers' default.
        work: is told what is done.
    """
    with device, CheapRandom((work or Work()).did_build):
        model = transformers.AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attn)
    return model.to(device).eval()


def inputs(name: str, config: Any, request: Request, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """A batch for a model of a published shape: half of the text, the images or the video, the other half of the text.

    Args:
        name: of `SHAPES`.
        config: of the model.
        request: size of the batch.
        device: where it goes.
        dtype: of its pixels.

    Raises:
        ValueError: a video for a model that takes none, or for Qwen3-VL, whose prompts need times between frames; a
            size of images for a model that takes one size only.
    """
    pixels = {
        key: value.to(device, dtype if value.is_floating_point() else None)
        for key, value in SHAPES[name].pixels(config, request).items()
    }
    kind = "video" if request.frames else "image"
    length = SHAPES[name].length(config, request, pixels)
    token: Any = {
        "image": getattr(config, "image_token_id", getattr(config, "image_token_index", None)),
        "video": getattr(config, "video_token_id", getattr(config, "video_token_index", None)),
    }[kind]
    start, end = getattr(config, "vision_start_token_id", None), getattr(config, "vision_end_token_id", None)
    row: list[Any] = [7] * (request.text // 2)
    for _ in range(1 if request.frames else request.images):
        row += [t for t in (start, *[token] * length, end) if t is not None]
    row += [11] * (request.text - request.text // 2)
    ids = torch.tensor([row] * request.batch, device=device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}
    model_class: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    if "mm_token_type_ids" in inspect.signature(model_class.forward).parameters:
        batch["mm_token_type_ids"] = ids.eq(token).long() * (2 if kind == "video" else 1)
    return batch
