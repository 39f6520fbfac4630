"""Families whose vision tower takes each picture or tile by itself."""

from __future__ import annotations

from dataclasses import replace

import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig

from ..builders import IMAGE, LLAVA_SIDE, PATCH, QWEN_IDS, SIGLIP, TEXT, TRANSFORMERS, qwen3_5_text
from ..family_case import (
    FamilyCase,
    Rows,
    by_row,
    runs_by_raster_row,
    runs_of_tiles,
    sized,
    square_pictures,
    types_of_placeholders,
)

_LLAMA, _QWEN2 = TEXT | dict(model_type="llama"), TEXT | dict(model_type="qwen2")
_SIGLIP = SIGLIP | dict(model_type="siglip_vision_model", vision_use_head=False)
_IDS = dict(image_token_id=IMAGE, tie_word_embeddings=False)
_SAM = dict(
    hidden_size=16, output_channels=8, num_hidden_layers=2, num_attention_heads=2, window_size=4,
    global_attn_indexes=[1], mlp_dim=24, patch_size=PATCH,
)  # fmt: skip


def lighton_ocr():
    vision = SIGLIP | dict(model_type="pixtral", image_size=64, head_dim=8)
    config = transformers.LightOnOcrConfig(vision_config=vision, text_config=TEXT | dict(head_dim=8), **_IDS)
    return transformers.LightOnOcrForConditionalGeneration(config)


def qianfan_ocr():
    vision = SIGLIP | dict(image_size=(LLAVA_SIDE, LLAVA_SIDE), patch_size=(PATCH, PATCH), drop_path_rate=0.0)
    config = transformers.QianfanOCRConfig(vision_config=vision, text_config=TEXT | dict(head_dim=8), **_IDS)
    return transformers.QianfanOCRForConditionalGeneration(config)


def ovis2():
    config = transformers.Ovis2Config(
        vision_config=SIGLIP | dict(vocab_size=40, hidden_stride=2), text_config=_QWEN2, hidden_size=32,
        vocab_size=TEXT["vocab_size"], visual_indicator_token_ids=[92, 93, 94, 95, 96], **_IDS,
    )  # fmt: skip
    return transformers.Ovis2ForConditionalGeneration(config)


def janus():
    vision = {k: v for k, v in SIGLIP.items() if k != "intermediate_size"}
    quantizer = dict(
        embed_dim=4, num_embeddings=8, latent_channels=8, base_channels=32, channel_multiplier=[1, 1],
        num_res_blocks=1, num_patches=4, projection_dim=32, image_token_embed_dim=32,
    )  # fmt: skip
    config = transformers.JanusConfig(
        vision_config=vision | dict(projection_dim=32, num_image_tokens=36), vq_config=quantizer, text_config=_LLAMA,
        **_IDS,
    )  # fmt: skip
    return transformers.JanusForConditionalGeneration(config)


def deepseek_vl_hybrid():
    sam = _SAM | dict(model_type="sam_vision_model", image_size=96, mlp_dim=24, output_channels=8)
    config = transformers.DeepseekVLHybridConfig(
        vision_config=_SIGLIP, high_res_vision_config=sam, text_config=_LLAMA, **_IDS
    )
    return transformers.DeepseekVLHybridForConditionalGeneration(config)


def _in_two_sizes(pictures: Rows, model) -> dict[str, Tensor]:
    small = square_pictures(pictures, model)
    return small | {"high_res_pixel_values": pictures.noise(len(pictures.images), 3, 96, 96)}


def _got(config, model_type):
    vision = _SAM | dict(image_size=64)
    made = config(vision_config=vision, text_config=_QWEN2, image_token_index=IMAGE, tie_word_embeddings=False)
    assert made.model_type == model_type
    return transformers.GotOcr2ForConditionalGeneration(made)


def got_ocr2():
    return _got(transformers.GotOcr2Config, "got_ocr2")


def pp_chart2table():
    return _got(transformers.PPChart2TableConfig, "pp_chart2table")


def _large(pictures: Rows, model) -> dict[str, Tensor]:
    return {"pixel_values": pictures.noise(len(pictures.images), 3, 64, 64)}


def lfm2_vl():
    text = TEXT | dict(
        model_type="lfm2", layer_types=["conv", "full_attention", "conv"], block_auto_adjust_ff_dim=False
    )
    vision = {k: v for k, v in SIGLIP.items() if k != "image_size"}
    config = transformers.Lfm2VlConfig(
        vision_config=vision | dict(model_type="siglip2_vision_model", num_patches=16, vision_use_head=False),
        text_config=text, projector_hidden_size=24, **_IDS,
    )  # fmt: skip
    return transformers.Lfm2VlForConditionalGeneration(config)


def _padded_patches(pictures: Rows, model) -> dict[str, Tensor]:
    """Patches of each tile, padded to the most."""
    sizes = torch.tensor([p.size for p in pictures.images])
    counts = sizes.prod(1)
    pixels = pictures.noise(len(sizes), int(counts.max()), 3 * PATCH * PATCH)
    mask = (torch.arange(int(counts.max())) < counts[:, None]).int()
    return {"pixel_values": pixels * mask[..., None], "spatial_shapes": sizes, "pixel_attention_mask": mask}


def _minicpm(config, model):
    vision = SIGLIP | dict(image_size=32, insert_layer_id=0)
    ids = {k: v for k, v in QWEN_IDS.items() if not k.startswith("vision")}
    made = config(
        vision_config=vision, text_config=qwen3_5_text() | dict(model_type="qwen3_5_text"), image_size=32,
        insert_layer_id=0, **ids,
    )  # fmt: skip
    if hasattr(made, "slice_start_id"):
        made.image_start_id, made.image_end_id, made.slice_start_id, made.slice_end_id = 92, 93, 94, 95
        made.newline_id = 96
    return model(made)


def minicpmv4_6():
    return _minicpm(transformers.MiniCPMV4_6Config, transformers.MiniCPMV4_6ForConditionalGeneration)


def minicpm_ocr():
    return _minicpm(transformers.MiniCPMOcrConfig, transformers.MiniCPMOcrForConditionalGeneration)


def minicpmv4_7():
    return _minicpm(transformers.MiniCPMV4_7Config, transformers.MiniCPMV4_7ForConditionalGeneration)


def _strips(pictures: Rows, model) -> dict[str, Tensor]:
    """Patches of all slices side by side in one strip; each frame of a video is a slice."""
    out = {}
    for name, some in (("", pictures.images), ("_videos", pictures.videos)):
        sizes = torch.tensor([p.size for p in some for _ in range(max(1, p.frames))], dtype=torch.int64)
        if len(sizes):
            out["pixel_values" + name] = pictures.noise(1, 3, PATCH, PATCH * int(sizes.prod(1).sum()))
            out["target_sizes" + name] = sizes
    return out


def _runs_of_slices(model, inputs, kind):
    """A run for each picture, and one for each of the two frames of a video; 4 x 4 or 2 x 2 patches are a token."""
    merged = 4 if model.config.downsample_mode == "4x" else 16
    sizes = inputs["target_sizes" if kind == "image" else "target_sizes_videos"].prod(1) // merged
    return [[int(n)] for n in sizes] if kind == "image" else sizes.view(-1, 2).tolist()


def aria():
    text = transformers.AriaTextConfig(**TEXT, moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1)
    vision = Idefics3VisionConfig(**SIGLIP)
    config = transformers.AriaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, projector_patch_to_query_dict={36: 12},
        tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.AriaForConditionalGeneration(config)


def idefics2():
    perceiver = dict(
        hidden_size=32, resampler_n_latents=9, resampler_depth=1, resampler_n_heads=2, resampler_head_dim=8,
        num_key_value_heads=1,
    )  # fmt: skip
    config = transformers.Idefics2Config(
        vision_config=SIGLIP, perceiver_config=perceiver, text_config=TEXT | dict(model_type="mistral"), **_IDS
    )
    return transformers.Idefics2ForConditionalGeneration(config)


ONE = FamilyCase(qianfan_ocr)
#: Stock 5.17 takes slices of one size alone.
_OF_ANY_SIZE = Version("5.24") <= TRANSFORMERS
SLICES = FamilyCase(
    minicpmv4_6, ((8, 12), (16, 8), (8, 8)) if _OF_ANY_SIZE else ((8, 12),), video=True, hybrid=True,
    uniform=not _OF_ANY_SIZE, config="MiniCPMV4_6Config", pixels=_strips, runs=_runs_of_slices, fenced=True,
    further=types_of_placeholders, by_frame=True, frames=1, scale=2,
)  # fmt: skip
CASES = {
    "lighton_ocr": replace(
        ONE, build=lighton_ocr, sizes=((24, 32), (40, 24), (32, 32)), config="LightOnOcrConfig", pixels=sized,
        runs=runs_by_raster_row,
    ),
    "qianfan_ocr": replace(ONE, config="QianfanOCRConfig"),
    "ovis2": replace(ONE, build=ovis2, config="Ovis2Config"),
    "janus": replace(ONE, build=janus, config="JanusConfig"),
    "deepseek_vl_hybrid": replace(
        ONE, build=deepseek_vl_hybrid, config="DeepseekVLHybridConfig", pixels=_in_two_sizes
    ),
    "got_ocr2": replace(ONE, build=got_ocr2, config="GotOcr2Config", pixels=_large),
    "pp_chart2table": replace(ONE, build=pp_chart2table, config="PPChart2TableConfig", pixels=_large),
    "lfm2_vl": replace(
        ONE, build=lfm2_vl, sizes=((4, 6), (8, 4), (6, 6)), hybrid=True, config="Lfm2VlConfig", since="5.5",
        pixels=_padded_patches,
    ),
    "minicpmv4_6": SLICES,
    "minicpm_ocr": replace(
        SLICES, build=minicpm_ocr, config="MiniCPMOcrConfig", sizes=((4, 6), (8, 4), (6, 6)), scale=1
    ),
    "minicpmv4_7": replace(SLICES, build=minicpmv4_7, config="MiniCPMV4_7Config"),
    "aria": replace(ONE, build=aria, config="AriaConfig", raster=False),
    "idefics2": replace(
        ONE, build=idefics2, config="Idefics2Config", pixels=by_row, runs=runs_of_tiles, raster=False
    ),
}  # fmt: skip
