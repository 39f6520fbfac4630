"""Why model types of transformers that read pictures are refused, by type."""

from __future__ import annotations

_SPARSE = "its sparse attention keeps an index of tokens of its own, which would not follow"
_LINEAR = "its linear-attention or state-space layers have inputs of their own, which nobody has tried to follow"
_BLOCKS = "its pictures attend to themselves both ways, in masks that it builds in a way of its own"
_DEEPSTACK = "its decoder adds further features to pictures, by masks of its own"
_ENCODER_DECODER = "it is an encoder-decoder model, whose decoder reads no visual tokens"
_CROSS = "its language model reads pictures by cross-attention, and has no visual tokens"
_QUERIES = "it puts a few dozen queries of a resampler into the sequence, in a way of its own"
_VOCABULARY = "its pictures are tokens of the vocabulary"
_TIMM = "its vision tower comes from timm, and was not tried"
UNTRIED = "it was not tried yet"

#: Why a type is refused, for types of transformers' registry of image-text models and of models with audio beside them.
REASONS: dict[str, str] = {
    "apertus1p5": _VOCABULARY,
    "blip": _CROSS,
    "blip-2": _QUERIES,
    "chameleon": _VOCABULARY,
    "cohere_compass": _DEEPSTACK,
    "deepseek_ocr2": UNTRIED,
    "diffusion_gemma": "it writes by diffusion, in blocks",
    "dots3_note": _SPARSE,
    "emu3": _VOCABULARY,
    "evolla": "it reads proteins",
    "fast_vlm": _TIMM,
    "florence2": _ENCODER_DECODER,
    "fuyu": "patches enter its language model without an encoder, in a way of its own",
    "gemma3n": _TIMM,
    "git": "it puts pictures before the text, without placeholders",
    "glm5_next": _SPARSE,
    "granite4_vision": _DEEPSTACK,
    "granite_docling": _DEEPSTACK,
    "hy_v4_vl": _SPARSE,
    "idefics": _CROSS,
    "inkling2": _LINEAR,
    "inkling2_loop": _LINEAR,
    "inkling_mm_model": _LINEAR,
    "instructblip": _QUERIES,
    "instructblipvideo": _QUERIES,
    "kosmos-2": _QUERIES,
    "kosmos-2.5": _QUERIES,
    "llama4": "transformers 5.24 fails on every call of its class, and its layers attend in chunks that count columns",
    "minimax_m3_vl": "its sparse attention takes position ids for columns of the KV cache",
    "mistral4": "it is a language model without pictures",
    "mistral_large4": _SPARSE,
    "mllama": _CROSS,
    "molmo2": _BLOCKS,
    "muse_glimmer": UNTRIED,
    "muse_spark": UNTRIED,
    "nemotron_h_omni": "its text model is a causal language model with a head of its own, and has state-space layers",
    "perception_lm": _TIMM,
    "phi4_multimodal": "it merges pictures inside its embedding",
    "pi0": "it predicts actions of a robot",
    "pix2struct": _ENCODER_DECODER,
    "pixtral": "it is a vision tower: prune the model around it",
    "pp_formulanet": _ENCODER_DECODER,
    "qwen2_5_omni": "it is several models in one: prune `model.thinker`",
    "qwen3_omni_moe": "it is several models in one: prune `model.thinker`",
    "qwen4_exp": _SPARSE,
    "step3p7": _BLOCKS,
    "t5gemma2": _ENCODER_DECODER,
    "udop": _ENCODER_DECODER,
    "unlimited_ocr": _BLOCKS,
    "vision-encoder-decoder": _ENCODER_DECODER,
}


def image_text_types() -> list[str]:
    """Types of image-text models that the installed transformers has in its registry."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return list(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
