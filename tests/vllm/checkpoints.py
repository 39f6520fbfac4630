"""Small models of the architectures that are served, with random weights and a tokenizer of an embedded model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tokenprune.eval import minivlm

#: Of a decoder; vLLM's attention on a CPU wants heads of 32.
TEXT = dict(
    vocab_size=91, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=2,
    num_key_value_heads=1, max_position_embeddings=1024,
)  # fmt: skip
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48, norm_topk_prob=True)
TOWER = dict(
    depth=3, hidden_size=64, intermediate_size=96, num_heads=2, patch_size=4, temporal_patch_size=2,
    spatial_merge_size=2, out_hidden_size=64, num_position_embeddings=144,
)  # fmt: skip


def _mrope(**more: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "mrope_section": [6, 5, 5], "rope_theta": 10000.0} | more
    return TEXT | dict(rope_parameters=rope, eos_token_id=1)


def _save(model: Any, folder: Path, std: float = 0.15) -> Path:
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.5 if "lm_head" in name else 0.15 if "embed" in name else std)
    model.save_pretrained(folder)
    return folder


def _rewrite(folder: Path, change: Callable[[str, torch.Tensor], tuple[str, torch.Tensor]]) -> Path:
    """Saved weights, as published checkpoints have them."""
    path = folder / "model.safetensors"
    save_file(dict(change(*each) for each in load_file(path).items()), path, {"format": "pt"})
    return folder


def _qwen(folder: Path, family: str, processor: str, std: float = 0.15, **config: Any) -> Path:
    """A Qwen with the embedded Qwen2.5-VL's tokenizer."""
    import transformers

    source = minivlm.WEIGHTS["qwen"]
    ids = {key: value for key, value in json.loads((source / "config.json").read_text()).items() if key.endswith("_id")}
    made = getattr(transformers, f"{family}Config")(**config, **ids)
    torch.manual_seed(0)
    _save(getattr(transformers, f"{family}ForConditionalGeneration")(made), folder, std)
    for path in source.glob("*"):
        if path.name.startswith(("tokenizer", "chat", "preprocessor", "video_pre")):
            shutil.copy(path, folder)
    video = processor if processor.startswith("Qwen3") else "Qwen2VLProcessor"
    for name in ("preprocessor_config.json", "video_preprocessor_config.json", "tokenizer_config.json"):
        path = folder / name
        text = path.read_text().replace("Qwen2_5_VLProcessor", processor)
        path.write_text(text.replace("Qwen2VLVideo", video.removesuffix("Processor") + "Video"))
    getattr(transformers, processor).from_pretrained(folder)
    return folder


def qwen2_vl(folder: Path) -> Path:
    vision = dict(
        depth=3, embed_dim=64, hidden_size=64, num_heads=2, mlp_ratio=2, patch_size=4, temporal_patch_size=2,
        spatial_merge_size=2,
    )  # fmt: skip
    return _qwen(folder, "Qwen2VL", "Qwen2VLProcessor", vision_config=vision, text_config=_mrope())


def qwen3_vl(folder: Path) -> Path:
    text = _mrope(mrope_interleaved=True) | dict(head_dim=32)
    vision = TOWER | dict(deepstack_visual_indexes=[0, 1])
    return _qwen(folder, "Qwen3VL", "Qwen3VLProcessor", vision_config=vision, text_config=text)


def qwen3_vl_moe(folder: Path) -> Path:
    text = _mrope(mrope_interleaved=True) | EXPERTS | dict(head_dim=32)
    vision = TOWER | dict(deepstack_visual_indexes=[0, 1])
    _qwen(folder, "Qwen3VLMoe", "Qwen3VLProcessor", vision_config=vision, text_config=text)
    # Published checkpoints have the experts' matrices the other way round, and both libraries turn them.
    return _rewrite(folder, lambda name, weight: (name, weight.mT.contiguous() if ".experts." in name else weight))


def _linear() -> dict[str, Any]:
    return _mrope(mrope_interleaved=True, partial_rotary_factor=1.0) | dict(
        head_dim=32,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
    )


def qwen3_5(folder: Path) -> Path:
    return _qwen(folder, "Qwen3_5", "Qwen3VLProcessor", 0.05, vision_config=TOWER, text_config=_linear())


def qwen3_5_moe(folder: Path) -> Path:
    text = _linear() | EXPERTS | dict(shared_expert_intermediate_size=48)
    return _qwen(folder, "Qwen3_5Moe", "Qwen3VLProcessor", 0.05, vision_config=TOWER, text_config=text)


#: Of a CLIP or SigLIP tower: 6 x 6 patches a tile.
TILE = dict(
    hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=2, image_size=24, patch_size=4
)
PINPOINTS = [[24, 48], [48, 24], [48, 48], [24, 72]]


def _save_with(folder: Path, model: Any, processor: Any) -> Path:
    torch.manual_seed(0)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    _save(model, folder)
    processor.save_pretrained(folder)
    return folder


def _llava(folder: Path, model: Any, processor: Any) -> Path:
    """One with a CLIP or SigLIP tower."""
    tower = "vision_tower."
    _save_with(folder, model, processor)
    return _rewrite(folder, lambda name, weight: (name.replace(tower, f"{tower}vision_model."), weight))


def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(minivlm.WEIGHTS["llava"])


def llava_next(folder: Path) -> Path:
    import transformers as t

    config = t.LlavaNextConfig(
        vision_config=t.CLIPVisionConfig(**TILE, projection_dim=64), text_config=t.LlamaConfig(**TEXT),
        image_token_index=4, image_grid_pinpoints=PINPOINTS, tie_word_embeddings=False,
    )  # fmt: skip
    side = {"height": 24, "width": 24}
    pictures = t.LlavaNextImageProcessor(size={"shortest_edge": 24}, crop_size=side, image_grid_pinpoints=PINPOINTS)
    processor = t.LlavaNextProcessor(
        pictures, _tokenizer(), patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return _llava(folder, t.LlavaNextForConditionalGeneration(config), processor)


def llava_onevision(folder: Path) -> Path:
    import transformers as t

    tokenizer = _named_tokens(["<video>"])
    config = t.LlavaOnevisionConfig(
        vision_config=t.SiglipVisionConfig(vision_use_head=False, **TILE),
        text_config=t.Qwen2Config(**TEXT | dict(vocab_size=len(tokenizer))),
        image_token_index=4, video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=PINPOINTS, vision_feature_layer=-1, vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )  # fmt: skip
    side = {"height": 24, "width": 24}
    processor = t.LlavaOnevisionProcessor(
        t.LlavaOnevisionImageProcessor(size=side, image_grid_pinpoints=PINPOINTS), tokenizer,
        t.LlavaOnevisionVideoProcessor(size=side), num_image_tokens=36, vision_feature_select_strategy="full",
        video_token="<video>",
    )  # fmt: skip
    return _llava(folder, t.LlavaOnevisionForConditionalGeneration(config), processor)


def _named_tokens(vision: list[str], **names: str) -> Any:
    """A tokenizer with more tokens, and attributes that name some of its own."""
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(minivlm.WEIGHTS["llava"], extra_special_tokens=names)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in vision])
    return tokenizer


def internvl(folder: Path) -> Path:
    import transformers as t

    tokenizer = _named_tokens(
        [], start_image_token="<img>", end_image_token="</img>", context_image_token="<image>", video_token="<video>"
    )
    vision = t.InternVLVisionConfig(**TILE | dict(image_size=[24, 24], patch_size=[4, 4]))
    config = t.InternVLConfig(
        vision_config=vision, text_config=t.Qwen2Config(**TEXT | dict(vocab_size=len(tokenizer))), image_token_id=4,
        image_seq_length=9, tie_word_embeddings=False,
    )  # fmt: skip
    side = {"height": 24, "width": 24}
    pictures = t.GotOcr2ImageProcessor(size=side, crop_to_patches=True, min_patches=1, max_patches=4)
    processor = t.InternVLProcessor(pictures, tokenizer, t.InternVLVideoProcessor(size=side), image_seq_length=9)
    return _save_with(folder, t.InternVLForConditionalGeneration(config), processor)


def gemma3(folder: Path) -> Path:
    import transformers as t

    newlines = ["\n" * n for n in (1, 2, 3, 4)]
    tokenizer = _named_tokens(newlines, boi_token="<boi>", eoi_token="<eoi>", image_token="<image>")
    text = t.Gemma3TextConfig(
        **TEXT | dict(vocab_size=len(tokenizer)), head_dim=32, sliding_window=4096, query_pre_attn_scalar=32,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )  # fmt: skip
    config = t.Gemma3Config(
        vision_config=t.SiglipVisionConfig(vision_use_head=False, **TILE), text_config=text, image_token_index=4,
        boi_token_index=tokenizer.boi_token_id, eoi_token_index=tokenizer.eoi_token_id, mm_tokens_per_image=9,
        tie_word_embeddings=False,
    )  # fmt: skip
    pictures = t.Gemma3ImageProcessor(
        size={"height": 24, "width": 24}, do_pan_and_scan=True, pan_and_scan_min_crop_size=16,
        pan_and_scan_max_num_crops=4, pan_and_scan_min_ratio_to_activate=1.2,
    )  # fmt: skip
    processor = t.Gemma3Processor(pictures, tokenizer, image_seq_length=9)
    return _llava(folder, t.Gemma3ForConditionalGeneration(config), processor)


def _gemma4(folder: Path, family: str, text: dict[str, Any], vision: dict[str, Any]) -> Path:
    import transformers as t

    names = {f"{name}_token": f"<{name}>" for name in ("boi", "eoi", "image", "audio", "boa", "eoa")}
    tokenizer = _named_tokens(["<|video|>"], **names)
    tokenizer.chat_template = None  # beside one, the engine puts no token before a prompt
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in names.items() if name[:3] != "eoa"}
    decoder = getattr(t, f"{family}TextConfig")(
        **TEXT | dict(vocab_size=len(tokenizer)), head_dim=32, global_head_dim=64, sliding_window=4096,
        layer_types=["sliding_attention", "full_attention"] * 2, use_bidirectional_attention=None, **text,
    )  # fmt: skip
    config = getattr(t, f"{family}Config")(
        vision_config=vision | dict(patch_size=4, pooling_kernel_size=2), text_config=decoder, audio_config=None,
        video_token_id=tokenizer.convert_tokens_to_ids("<|video|>"), eoa_token_index=tokenizer.eoa_token_id,
        tie_word_embeddings=False, **ids,
    )  # fmt: skip
    raster = dict(patch_size=4, pooling_kernel_size=2, max_soft_tokens=70)
    processor = getattr(t, f"{family}Processor")(
        getattr(t, f"{family}AudioFeatureExtractor")(), getattr(t, f"{family}ImageProcessor")(**raster), tokenizer,
        getattr(t, f"{family}VideoProcessor")(**raster), image_seq_length=70,
    )  # fmt: skip
    model = getattr(t, f"{family}ForConditionalGeneration")(config)
    placeholders = [config.image_token_id, config.video_token_id, config.audio_token_id]
    model.generation_config.suppress_tokens = placeholders  # as published ones do
    return _save_with(folder, model, processor)


def gemma4(folder: Path) -> Path:
    """As the smaller ones: layers have inputs of their own by token, and the last two take keys of earlier ones."""
    text = dict(hidden_size_per_layer_input=32, vocab_size_per_layer_input=100, num_kv_shared_layers=2)
    tower = dict(
        hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2,
        head_dim=32, position_embedding_size=256, default_output_length=70,
    )  # fmt: skip
    return _gemma4(folder, "Gemma4", text, tower)


def gemma4_unified(folder: Path) -> Path:
    vision = dict(model_patch_size=8, mm_embed_dim=64, mm_posemb_size=256, output_proj_dims=64, num_soft_tokens=70)
    return _gemma4(folder, "Gemma4Unified", {}, vision)


def mistral3(folder: Path) -> Path:
    import transformers as t

    tokenizer = _named_tokens(["[IMG_BREAK]", "[IMG_END]"])
    vision = t.PixtralVisionConfig(**TILE | dict(image_size=64), head_dim=32)
    config = t.Mistral3Config(
        vision_config=vision, text_config=t.MistralConfig(**TEXT | dict(vocab_size=len(tokenizer))),
        image_token_index=4, spatial_merge_size=2, tie_word_embeddings=False,
    )  # fmt: skip
    pictures = t.PixtralImageProcessor(size={"longest_edge": 64}, patch_size={"height": 4, "width": 4})
    processor = t.PixtralProcessor(pictures, tokenizer, patch_size=4, spatial_merge_size=2, image_token="<image>")
    return _save_with(folder, t.Mistral3ForConditionalGeneration(config), processor)


#: By model type.
BUILD: dict[str, Callable[[Path], Path]] = {
    each.__name__: each
    for each in (
        llava_next, llava_onevision, internvl, gemma3, gemma4, gemma4_unified, mistral3, qwen2_vl, qwen3_vl,
        qwen3_vl_moe, qwen3_5, qwen3_5_moe,
    )
}  # fmt: skip
