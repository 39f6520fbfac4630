"""Small models of every supported family, of the stock classes and with random weights."""

from __future__ import annotations

import torch
import transformers
from packaging.version import Version
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    CLIPVisionConfig,
    Cohere2Config,
    Cohere2VisionConfig,
    Cohere2VisionForConditionalGeneration,
    DeepseekVLConfig,
    DeepseekVLForConditionalGeneration,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

TRANSFORMERS = Version(transformers.__version__)
TRANSFORMERS_4 = TRANSFORMERS.major == 4
VOCAB, IMAGE, VIDEO, VISION_START, VISION_END, EOS = 99, 90, 91, 92, 93, 2
TEXT = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=VOCAB,
    max_position_embeddings=2048,
    bos_token_id=1,
    eos_token_id=EOS,
    pad_token_id=0,
)
CLIP = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, projection_dim=16)
LLAVA_SIDE, PATCH = 24, 4  # 6 x 6 tokens a tile
PINPOINTS = [[24, 48], [48, 24], [48, 48]]


_EXPERTS = ("num_experts", "n_routed_experts", "moe_num_experts", "num_local_experts")


def spread_weights(model, seed: int = 0):
    """Random weights wide enough that every position predicts something else, in float64, eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            std = 0.5 if "lm_head" in name else 0.15
            if p.ndim > 1 or "newline" in name or "class_embedding" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * std)
    model.generation_config.eos_token_id = None  # always generate to the end
    if any(getattr(model.config.get_text_config(), name, None) for name in _EXPERTS) and not TRANSFORMERS_4:
        model.set_experts_implementation("eager")  # grouped products know no float64
    return model.double().eval()


def llava():
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(image_size=LLAVA_SIDE, patch_size=PATCH, **CLIP),
            text_config=LlamaConfig(**TEXT),
            image_token_index=IMAGE,
            tie_word_embeddings=False,
        )
    )


def llava_next():
    return LlavaNextForConditionalGeneration(
        LlavaNextConfig(
            vision_config=CLIPVisionConfig(image_size=LLAVA_SIDE, patch_size=PATCH, **CLIP),
            text_config=LlamaConfig(**TEXT),
            image_token_index=IMAGE,
            image_grid_pinpoints=PINPOINTS,
            tie_word_embeddings=False,
        )
    )


def llava_onevision():
    vision = {k: v for k, v in CLIP.items() if k != "projection_dim"}
    return LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            vision_config=SiglipVisionConfig(image_size=LLAVA_SIDE, patch_size=PATCH, vision_use_head=False, **vision),
            text_config=Qwen2Config(**TEXT),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=PINPOINTS,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            tie_word_embeddings=False,
        )
    )


QWEN_IDS = dict(
    image_token_id=IMAGE,
    video_token_id=VIDEO,
    vision_start_token_id=VISION_START,
    vision_end_token_id=VISION_END,
    tie_word_embeddings=False,
)


def mrope_text(section):
    rope = dict(rope_type="default", mrope_section=section)
    if TRANSFORMERS_4:
        return dict(**TEXT, rope_theta=1e4, rope_scaling=rope)
    return dict(**TEXT, rope_parameters=dict(**rope, rope_theta=1e4))


def qwen2_vl():
    vision = dict(
        depth=2, embed_dim=16, hidden_size=32, num_heads=2, mlp_ratio=2, patch_size=PATCH, spatial_merge_size=2
    )
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(vision_config=vision, text_config=mrope_text([1, 1, 2]), **QWEN_IDS)
    )


def qwen2_5_vl():
    vision = dict(
        depth=2, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=PATCH, spatial_merge_size=2,
        window_size=16, out_hidden_size=32, fullatt_block_indexes=[1], tokens_per_second=2,
    )  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(vision_config=vision, text_config=mrope_text([1, 1, 2]), **QWEN_IDS)
    )


QWEN3_VISION = dict(
    depth=3, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=PATCH, spatial_merge_size=2,
    out_hidden_size=32, num_position_embeddings=64,
)  # fmt: skip
DEEPSTACK = QWEN3_VISION | dict(deepstack_visual_indexes=[0, 1])


def qwen3_vl():
    text = mrope_text([2, 1, 1])
    text["head_dim"] = 8
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(vision_config=DEEPSTACK, text_config=text, **QWEN_IDS))


def qwen3_vl_moe():
    text = mrope_text([2, 1, 1]) | dict(head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)
    return Qwen3VLMoeForConditionalGeneration(Qwen3VLMoeConfig(vision_config=DEEPSTACK, text_config=text, **QWEN_IDS))


def qwen3_5_text():
    text = mrope_text([2, 1, 1]) | dict(
        head_dim=8, num_hidden_layers=4, linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2,
        linear_num_value_heads=4,
    )  # fmt: skip
    text["rope_parameters"]["partial_rotary_factor"] = 1.0
    return text


def qwen3_5():
    text = qwen3_5_text()
    config = transformers.Qwen3_5Config(vision_config=QWEN3_VISION, text_config=text, **QWEN_IDS)
    return transformers.Qwen3_5ForConditionalGeneration(config)


def qwen3_5_moe():
    text = qwen3_5_text()
    text |= dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, shared_expert_intermediate_size=24)
    config = transformers.Qwen3_5MoeConfig(vision_config=QWEN3_VISION, text_config=text, **QWEN_IDS)
    return transformers.Qwen3_5MoeForConditionalGeneration(config)


def gemma3(config=transformers.Gemma3Config):
    text = transformers.Gemma3TextConfig(
        **TEXT, head_dim=8, sliding_window=4096, query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )  # fmt: skip
    return transformers.Gemma3ForConditionalGeneration(
        config(
            vision_config=SiglipVisionConfig(vision_use_head=False, **SIGLIP), text_config=text,
            image_token_index=IMAGE, boi_token_index=VISION_START, eoi_token_index=VISION_END, mm_tokens_per_image=9,
            tie_word_embeddings=False,
        )
    )  # fmt: skip


def paligemma():
    text = transformers.GemmaConfig(**TEXT, head_dim=8)
    return transformers.PaliGemmaForConditionalGeneration(
        transformers.PaliGemmaConfig(
            vision_config=SiglipVisionConfig(vision_use_head=False, projection_dim=32, **SIGLIP), text_config=text,
            image_token_index=IMAGE, projection_dim=32, hidden_size=32, tie_word_embeddings=False,
        )
    )  # fmt: skip


def vipllava():
    layers = "vision_feature_layers" if hasattr(VipLlavaConfig(), "vision_feature_layers") else "vision_feature_layer"
    return VipLlavaForConditionalGeneration(
        VipLlavaConfig(
            vision_config=CLIPVisionConfig(image_size=LLAVA_SIDE, patch_size=PATCH, **CLIP),
            text_config=LlamaConfig(**TEXT),
            image_token_index=IMAGE,
            tie_word_embeddings=False,
            **{layers: [-2, -3, 1]},
        )
    )


def llava_next_video():
    return LlavaNextVideoForConditionalGeneration(
        LlavaNextVideoConfig(
            vision_config=CLIPVisionConfig(image_size=LLAVA_SIDE, patch_size=PATCH, **CLIP),
            text_config=LlamaConfig(**TEXT),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=PINPOINTS,
            tie_word_embeddings=False,
        )
    )


def video_llava():
    return VideoLlavaForConditionalGeneration(
        VideoLlavaConfig(
            vision_config=CLIPVisionConfig(image_size=LLAVA_SIDE, patch_size=PATCH, **CLIP),
            text_config=LlamaConfig(**TEXT),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            tie_word_embeddings=False,
        )
    )


SIGLIP = {k: v for k, v in CLIP.items() if k != "projection_dim"} | dict(image_size=LLAVA_SIDE, patch_size=PATCH)


def deepseek_vl():
    return DeepseekVLForConditionalGeneration(
        DeepseekVLConfig(
            vision_config=SiglipVisionConfig(vision_use_head=False, **SIGLIP),
            text_config=LlamaConfig(**TEXT),
            image_token_id=IMAGE,
            tie_word_embeddings=False,
        )
    )


def internvl():
    vision = InternVLVisionConfig(**SIGLIP | dict(image_size=(LLAVA_SIDE, LLAVA_SIDE), patch_size=(PATCH, PATCH)))
    return InternVLForConditionalGeneration(
        InternVLConfig(
            vision_config=vision, text_config=Qwen2Config(**TEXT), image_token_id=IMAGE, tie_word_embeddings=False
        )
    )


def aya_vision():
    return AyaVisionForConditionalGeneration(
        AyaVisionConfig(
            vision_config=SiglipVisionConfig(vision_use_head=False, **SIGLIP),
            text_config=Cohere2Config(**TEXT),
            image_token_index=IMAGE,
            adapter_layer_norm_eps=1e-6,
            tie_word_embeddings=False,
        )
    )


def cohere2_vision():
    return Cohere2VisionForConditionalGeneration(
        Cohere2VisionConfig(
            vision_config=SiglipVisionConfig(vision_use_head=False, **SIGLIP),
            text_config=Cohere2Config(**TEXT),
            image_token_id=IMAGE,
            alignment_intermediate_size=48,
            tie_word_embeddings=False,
        )
    )


def idefics3():
    return Idefics3ForConditionalGeneration(
        Idefics3Config(
            vision_config=SIGLIP, text_config=LlamaConfig(**TEXT), image_token_id=IMAGE, scale_factor=2,
            pad_token_id=0, tie_word_embeddings=False,
        )
    )  # fmt: skip


def smolvlm():
    return SmolVLMForConditionalGeneration(
        SmolVLMConfig(
            vision_config=SIGLIP, text_config=LlamaConfig(**TEXT), image_token_id=IMAGE, scale_factor=2,
            pad_token_id=0, tie_word_embeddings=False,
        )
    )  # fmt: skip


def mistral3():
    vision = PixtralVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=64,
        patch_size=PATCH, head_dim=8,
    )  # fmt: skip
    return Mistral3ForConditionalGeneration(
        Mistral3Config(
            vision_config=vision, text_config=MistralConfig(**TEXT), image_token_index=IMAGE, spatial_merge_size=2,
            tie_word_embeddings=False,
        )
    )  # fmt: skip
