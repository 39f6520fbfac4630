"""GLM-4V and its kin."""

from __future__ import annotations

from dataclasses import replace

import transformers

from ..builders import IMAGE, PATCH, TRANSFORMERS_4, VIDEO, mrope_text
from ..family_case import FamilyCase, patches, runs_by_frame, types_of_placeholders

_IDS = dict(
    image_token_id=IMAGE, video_token_id=VIDEO, image_start_token_id=94, image_end_token_id=95,
    video_start_token_id=96, video_end_token_id=97, tie_word_embeddings=False,
)  # fmt: skip
_VISION = dict(
    depth=2, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=PATCH, image_size=32, spatial_merge_size=2,
    out_hidden_size=32,
)  # fmt: skip
#: Wide gaps between experts, so that rounding does not choose another one.
_EXPERTS = dict(
    n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, moe_intermediate_size=24, first_k_dense_replace=1,
)  # fmt: skip


def _build(name: str, **text):
    config, model = getattr(transformers, f"{name}Config"), getattr(transformers, f"{name}ForConditionalGeneration")
    return model(config(vision_config=_VISION, text_config=mrope_text([1, 1, 2]) | text, **_IDS))


def glm4v():
    return _build("Glm4v")


def glm46v():
    return _build("Glm46V")


def glmga():
    config = transformers.GlmgaConfig(vision_config=_VISION, text_config=mrope_text([1, 1, 2]), **_IDS)
    return transformers.Glm46VForConditionalGeneration(config)


def glm4v_moe():
    if TRANSFORMERS_4:
        # Its experts compute in float32: none here.
        return _build("Glm4vMoe", partial_rotary_factor=1.0, **_EXPERTS | dict(first_k_dense_replace=3))
    rope = dict(rope_type="default", mrope_section=[1, 1, 2], rope_theta=1e4, partial_rotary_factor=1.0)
    return _build("Glm4vMoe", rope_parameters=rope, **_EXPERTS)


def glm_ocr():
    return _build("GlmOcr", head_dim=8)


GLM = FamilyCase(
    glm4v, ((4, 6), (8, 4), (6, 6)), video=True, config="Glm4vConfig", pixels=patches, runs=runs_by_frame, fenced=True,
    video_token=IMAGE, video_fence=(96, 97), further=types_of_placeholders, mixed=False,
)  # fmt: skip
CASES = {
    "glm4v": GLM,
    "glm46v": replace(GLM, build=glm46v, config="Glm46VConfig"),
    "glmga": replace(GLM, build=glmga, config="GlmgaConfig"),
    "glm4v_moe": replace(GLM, build=glm4v_moe, config="Glm4vMoeConfig"),
    "glm_ocr": replace(GLM, build=glm_ocr, config="GlmOcrConfig"),
}
