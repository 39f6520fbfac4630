"""Families of any resolution, whose vision tower takes all pictures as one sequence of patches."""

from __future__ import annotations

from dataclasses import replace

import torch
import transformers
from packaging.version import Version
from torch import Tensor

from ..builders import DEEPSTACK, IMAGE, PATCH, QWEN_IDS, TEXT, TRANSFORMERS, TRANSFORMERS_4, VIDEO, mrope_text
from ..family_case import (
    FamilyCase,
    Rows,
    patches,
    runs_by_frame,
    runs_of_features,
    runs_of_patches,
    types_of_placeholders,
)

_IDS = dict(image_token_id=IMAGE, video_token_id=VIDEO, tie_word_embeddings=False)
_TOWER = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, patch_size=PATCH, image_size=32
)
_WINDOWS = dict(
    depth=2, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=PATCH, spatial_merge_size=2,
    window_size=16, out_hidden_size=32, fullatt_block_indexes=[1],
)  # fmt: skip
_EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)


def _single_frames(pictures: Rows, model) -> dict[str, Tensor]:
    return patches(pictures, model, channels=3 * PATCH * PATCH)


def _as_pictures(pictures: Rows, model) -> dict[str, Tensor]:
    """The same, each patch as a picture of its own."""
    flat = _single_frames(pictures, model)
    return {k: v.unflatten(1, (3, PATCH, PATCH)) if "pixel" in k else v for k, v in flat.items()}


def paddleocr_vl():
    text = mrope_text([1, 1, 2]) | dict(head_dim=8)
    config = transformers.PaddleOCRVLConfig(vision_config=_TOWER, text_config=text, **QWEN_IDS)
    return transformers.PaddleOCRVLForConditionalGeneration(config)


_AUDIO = dict(
    num_mel_bins=8, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16, d_model=16, output_dim=32,
    max_source_positions=8, n_window=2,
)  # fmt: skip


def qwen2_5_omni_thinker():
    config = transformers.Qwen2_5OmniThinkerConfig(
        audio_config=_AUDIO, vision_config=_WINDOWS, text_config=mrope_text([1, 1, 2]), image_token_id=IMAGE,
        video_token_id=VIDEO, audio_token_id=98, audio_start_token_id=96, audio_end_token_id=97,
        vision_start_token_id=92, vision_end_token_id=93, tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.Qwen2_5OmniThinkerForConditionalGeneration(config)


def qwen3_omni_moe_thinker():
    # Its code knows how many tokens are made of 100 frames, and of no other window.
    audio = _AUDIO | dict(downsample_hidden_size=8, n_window=50, n_window_infer=100, max_source_positions=16)
    text = mrope_text([2, 1, 1]) | _EXPERTS | dict(head_dim=8)
    config = transformers.Qwen3OmniMoeThinkerConfig(
        audio_config=audio, vision_config=DEEPSTACK,
        text_config=text, audio_token_id=98, audio_start_token_id=96, **QWEN_IDS,
    )  # fmt: skip
    return transformers.Qwen3OmniMoeThinkerForConditionalGeneration(config)


def _with_seconds(pictures: Rows, model) -> dict[str, Tensor]:
    """And how long a video's frames are."""
    seconds = {"video_second_per_grid": torch.ones(len(pictures.videos))} if pictures.videos else {}
    return patches(pictures, model) | seconds


def cosmos3_omni():
    vision, text = DEEPSTACK | dict(model_type="qwen3_vl_vision"), mrope_text([2, 1, 1]) | dict(head_dim=8)
    config = transformers.Cosmos3OmniConfig(vision_config=vision, text_config=text, **QWEN_IDS)
    return transformers.Cosmos3OmniForConditionalGeneration(config)


def cosmos3_edge():
    text = mrope_text([2, 1, 1]) | dict(head_dim=8)
    config = transformers.Cosmos3EdgeConfig(
        vision_config={k: v for k, v in _TOWER.items() if k != "image_size"} | dict(num_patches=64), text_config=text,
        projector_hidden_size=24, **QWEN_IDS,
    )  # fmt: skip
    return transformers.Cosmos3EdgeForConditionalGeneration(config)


def ernie4_5_vl_moe():
    text = mrope_text([1, 1, 2]) | dict(
        moe_intermediate_size=[24, 16], moe_k=2, moe_num_experts=4, moe_num_shared_experts=1,
        mlp_layer_types=["dense", "sparse", "sparse"],
    )  # fmt: skip
    vision = dict(
        depth=2, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=PATCH, spatial_merge_size=2,
        temporal_merge_size=2,
    )  # fmt: skip
    config = transformers.Ernie4_5_VLMoeConfig(
        vision_config=vision, text_config=text, image_start_token_id=94, image_end_token_id=95,
        video_start_token_id=96, video_end_token_id=97, **_IDS,
    )  # fmt: skip
    return transformers.Ernie4_5_VLMoeForConditionalGeneration(config)


def _types_for_experts(ids, visuals, accepted):
    types = types_of_placeholders(ids, visuals, accepted)
    return types | {"moe_mm_token_type_ids": (types["mm_token_type_ids"] > 0).int()}


def _runs_of_pairs(model, inputs, kind):
    """Two frames of a video become one."""
    runs = runs_of_patches(model, inputs, kind)
    return [[n // 2] for (n,) in runs] if kind == "video" else runs


def exaone4_5():
    text = TEXT | dict(
        model_type="exaone4",
        sliding_window=4096,
        layer_types=["sliding_attention", "full_attention"] * 2,
        head_dim=8,
        num_hidden_layers=4,
    )
    config = transformers.Exaone4_5_Config(
        vision_config=_WINDOWS | dict(num_key_value_heads=1), text_config=text, **_IDS
    )
    return transformers.Exaone4_5_ForConditionalGeneration(config)


def hyperclovax_vision_v2():
    config = transformers.HyperCLOVAXVisionV2Config(
        vision_config=_WINDOWS | dict(model_type="qwen2_5_vl_vision"),
        text_config=TEXT | dict(model_type="hyperclovax", head_dim=8), **_IDS,
    )  # fmt: skip
    return transformers.HyperCLOVAXVisionV2ForConditionalGeneration(config)


def kimi_k25():
    text = TEXT | dict(
        model_type="deepseek_v3", num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=4,
        qk_nope_head_dim=8, v_head_dim=8, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, n_group=1,
        topk_group=1, first_k_dense_replace=1, moe_intermediate_size=24,
    )  # fmt: skip
    vision = dict(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, patch_size=PATCH,
        pos_emb_height=8, pos_emb_width=8,
    )  # fmt: skip
    config = transformers.Kimi_K25Config(
        vision_config=vision, text_config=text, projection_hidden_size=16, vision_start_token_id=92,
        vision_end_token_id=93, **_IDS,
    )  # fmt: skip
    return transformers.Kimi_K25ForConditionalGeneration(config)


def lfm3_vl():
    text = TEXT | dict(model_type="lfm3", layer_types=["conv", "full_attention", "conv"])
    vision = {k: v for k, v in _TOWER.items() if k != "image_size"}
    config = transformers.Lfm3VlConfig(
        vision_config=vision | dict(num_key_value_heads=1, layer_types=["conv", "full_attention"]), text_config=text,
        projector_hidden_size=24, vision_start_token_id=92, vision_end_token_id=93, **_IDS,
    )  # fmt: skip
    return transformers.Lfm3VlForConditionalGeneration(config)


def video_llama_3():
    vision = {k: v for k, v in _TOWER.items() if k != "image_size"} | dict(model_type="video_llama_3_vision")
    config = transformers.VideoLlama3Config(vision_config=vision, text_config=TEXT | dict(model_type="qwen2"), **_IDS)
    return transformers.VideoLlama3ForConditionalGeneration(config)


def _with_merge_sizes(pictures: Rows, model) -> dict[str, Tensor]:
    out = _single_frames(pictures, model)
    for kind, size in (("image", 1), ("video", 2)):
        if f"{kind}_grid_thw" in out:
            out[f"{kind}_merge_sizes"] = torch.full((len(out[f"{kind}_grid_thw"]),), size)
    return out


def hunyuan_vl():
    text = TEXT | dict(
        head_dim=8, rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[1, 1, 1, 1])
    )
    vision = _TOWER | dict(text_hidden_size=32, out_hidden_size=32, max_image_size=32)
    vision.pop("image_size")
    config = transformers.HunYuanVLConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE, im_start_id=92, im_end_id=93, im_newline_id=94,
        tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.HunYuanVLForConditionalGeneration(config)


SIZES = ((4, 6), (8, 4), (6, 6))
PLAIN = FamilyCase(exaone4_5, SIZES, video=True, pixels=patches, runs=runs_of_patches)
MROPE = replace(PLAIN, fenced=True, further=types_of_placeholders)
CASES = {
    "paddleocr_vl": replace(
        MROPE, build=paddleocr_vl, config="PaddleOCRVLConfig", video=False, pixels=_as_pictures
    ),
    "qwen2_5_omni_thinker": replace(
        MROPE, build=qwen2_5_omni_thinker, config="Qwen2_5OmniThinkerConfig", pixels=_with_seconds
    ),
    "qwen3_omni_moe_thinker": replace(
        MROPE, build=qwen3_omni_moe_thinker, config="Qwen3OmniMoeThinkerConfig", pixels=_with_seconds,
        # Stock 5.0 fails for videos, and stock 4 for images and videos in one batch.
        video=TRANSFORMERS_4 or Version("5.17") <= TRANSFORMERS, mixed=not TRANSFORMERS_4,
    ),
    "cosmos3_omni": replace(MROPE, build=cosmos3_omni, config="Cosmos3OmniConfig", runs=runs_by_frame),
    "cosmos3_edge": replace(
        MROPE, build=cosmos3_edge, config="Cosmos3EdgeConfig", pixels=_single_frames, runs=runs_by_frame
    ),
    "ernie4_5_vl_moe": replace(
        MROPE, build=ernie4_5_vl_moe, config="Ernie4_5_VLMoeConfig", pixels=_single_frames, runs=_runs_of_pairs,
        further=_types_for_experts, aligned=("moe_mm_token_type_ids",), frames=1,
    ),
    "exaone4_5": replace(PLAIN, config="Exaone4_5_Config"),
    "hyperclovax_vision_v2": replace(PLAIN, build=hyperclovax_vision_v2, config="HyperCLOVAXVisionV2Config"),
    "kimi_k25": replace(
        PLAIN, build=kimi_k25, config="Kimi_K25Config", pixels=_as_pictures, runs=runs_of_features, frames=1,
        as_padding=True,
        video=Version("5.24") <= TRANSFORMERS,  # stock 5.17 fails for videos
    ),
    "lfm3_vl": replace(PLAIN, build=lfm3_vl, config="Lfm3VlConfig", hybrid=True),
    "video_llama_3": replace(
        PLAIN, build=video_llama_3, config="VideoLlama3Config", pixels=_with_merge_sizes, runs=runs_of_features
    ),
    "hunyuan_vl": replace(
        MROPE, build=hunyuan_vl, config="HunYuanVLConfig", video=False, pixels=_single_frames,
        runs=runs_of_features,
    ),
}  # fmt: skip
