"""Published models' shapes with random weights, and inputs for them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from ...patches.feature_source import feature_lengths
from ...patches.modules import base_of

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
class Request:
    """The size of a batch.

    Attributes:
        batch: rows, all of the same size.
        images: images in each.
        frames: frames of a video in each, instead of images; 0: no video.
        side: height and width of an image or frame in pixels; None: the model's default.
        text: text tokens in each.
    """

    batch: int = 1
    images: int = 1
    frames: int = 0
    side: int | None = None
    text: int = 40


@dataclass(frozen=True)
class Shape:
    """A published model's shape.

    Attributes:
        layers: decoder layers.
        build: makes the model's config for a number of decoder layers.
        pixels: makes the pixel inputs of a request for a config.
    """

    layers: int
    build: Callable[[int], Any]
    pixels: Callable[[Any, Request], dict[str, Tensor]]


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


def _qwen3_vl(layers: int) -> Any:
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    return transformers.Qwen3VLConfig(
        text_config=dict(
            hidden_size=4096,
            intermediate_size=12288,
            num_hidden_layers=layers,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            vocab_size=151936,
            rope_parameters=rope,
            rope_scaling=rope,
            rope_theta=5e6,
        ),
        vision_config=dict(
            depth=27,
            hidden_size=1152,
            intermediate_size=4304,
            num_heads=16,
            out_hidden_size=4096,
            patch_size=16,
            num_position_embeddings=2304,
            deepstack_visual_indexes=[8, 16, 24],
        ),
        tie_word_embeddings=False,
        **_QWEN_IDS,
    )


def _fixed(config: Any, request: Request) -> dict[str, Tensor]:
    _no_video(config, request)
    side = config.vision_config.image_size  # the processor resizes images to it
    return {"pixel_values": torch.rand(request.batch * request.images, 3, side, side)}


def _crops(default_side: int) -> Callable[[Any, Request], dict[str, Tensor]]:
    def pixels(config: Any, request: Request) -> dict[str, Tensor]:
        tile = config.vision_config.image_size
        if request.frames:
            _no_video(config, request, "video_token_index")
            return {"pixel_values_videos": torch.rand(request.batch, request.frames, 3, tile, tile)}
        side, count = request.side or default_side, request.batch * request.images
        pinpoint = transformers.image_processing_utils.select_best_resolution((side, side), config.image_grid_pinpoints)
        tiles = 1 + (pinpoint[0] // tile) * (pinpoint[1] // tile)
        return {
            "pixel_values": torch.rand(count, tiles, 3, tile, tile),
            "image_sizes": torch.tensor([[side, side]] * count),
        }

    return pixels


def _native(config: Any, request: Request) -> dict[str, Tensor]:
    vision = config.vision_config
    merge, patch, depth = vision.spatial_merge_size, vision.patch_size, vision.temporal_patch_size
    cells = max(1, round((request.side or 672) / (patch * merge))) * merge
    frames = max(1, -(-request.frames // depth))
    if request.frames and config.model_type == "qwen3_vl":
        raise ValueError("frames: Qwen3-VL writes times between frames; profile its videos with --model")
    grid = torch.tensor([[frames, cells, cells]] * request.batch * (1 if request.frames else request.images))
    pixels = torch.rand(int(grid.prod(1).sum()), vision.in_channels * depth * patch**2)
    if request.frames:
        return {"pixel_values_videos": pixels, "video_grid_thw": grid}
    return {"pixel_values": pixels, "image_grid_thw": grid}


def _no_video(config: Any, request: Request, needs: str = "-") -> None:
    if request.frames and not hasattr(config, needs):
        raise ValueError(f"frames={request.frames}: {config.model_type} takes no videos")


SHAPES = {
    "llava-1.5-7b": Shape(32, _llava, _fixed),
    "llava-next-7b": Shape(32, _llava_next, _crops(672)),
    "llava-onevision-7b": Shape(28, _llava_onevision, _crops(768)),
    "qwen2.5-vl-7b": Shape(28, _qwen2_5_vl, _native),
    "qwen3-vl-8b": Shape(36, _qwen3_vl, _native),
}


def build(name: str, layers: int | None, dtype: torch.dtype, device: torch.device, attn: str | None) -> Any:
    """A model of a published shape with random weights.

    Args:
        name: of `SHAPES`.
        layers: decoder layers; None: all.
        dtype: of the weights.
        device: where the model goes.
        attn: attention implementation; None: transformers' default.
    """
    shape = SHAPES[name]
    model = transformers.AutoModelForImageTextToText.from_config(
        shape.build(layers or shape.layers), dtype=dtype, attn_implementation=attn
    )
    return model.to(device).eval()


@torch.inference_mode()
def inputs(name: str, model: Any, request: Request) -> dict[str, Tensor]:
    """A batch for a model of `build`: half of the text, the images or the video, the other half of the text.

    Raises:
        ValueError: a video for a model that takes none, or for Qwen3-VL, whose prompts need times between frames.
    """
    weight = next(model.parameters())
    pixels = {
        key: value.to(weight.device, weight.dtype if value.is_floating_point() else None)
        for key, value in SHAPES[name].pixels(model.config, request).items()
    }
    base, kind = base_of(model), "video" if request.frames else "image"
    lengths = feature_lengths(getattr(base, f"get_{kind}_features")(**pixels))
    per_row = len(lengths) // request.batch
    config = model.config
    token: Any = {
        "image": getattr(config, "image_token_id", getattr(config, "image_token_index", None)),
        "video": getattr(config, "video_token_id", getattr(config, "video_token_index", None)),
    }[kind]
    start, end = getattr(config, "vision_start_token_id", None), getattr(config, "vision_end_token_id", None)
    row: list[Any] = [7] * (request.text // 2)
    for length in lengths[:per_row]:
        row += [t for t in (start, *[token] * length, end) if t is not None]
    row += [11] * (request.text - request.text // 2)
    ids = torch.tensor([row] * request.batch, device=weight.device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}
    if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
        batch["mm_token_type_ids"] = ids.eq(token).long() * (2 if kind == "video" else 1)
    return batch
