"""Gemma 4, with and without a vision encoder, and with pictures that attend to themselves both ways."""

from __future__ import annotations

import inspect
from dataclasses import replace

import torch
import transformers
from torch import Tensor

from ..builders import IMAGE, PATCH, TEXT, VIDEO, gemma3
from ..family_case import FamilyCase, Rows, types_of_placeholders

_IDS = dict(
    image_token_id=IMAGE, video_token_id=VIDEO, audio_token_id=98, boi_token_id=92, eoi_token_id=93, boa_token_id=94,
    eoa_token_index=95, audio_config=None, tie_word_embeddings=False,
)  # fmt: skip
_KINDS = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
_TEXT = TEXT | dict(
    num_hidden_layers=4, layer_types=_KINDS, head_dim=8, global_head_dim=8, sliding_window=4096,
    vocab_size_per_layer_input=99,
)  # fmt: skip
_VISION = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=8,
    patch_size=PATCH, pooling_kernel_size=2, position_embedding_size=16,
)  # fmt: skip


def gemma4(**text):
    """Layers have inputs of their own, and the last two take keys of earlier ones."""
    some = _TEXT | dict(hidden_size_per_layer_input=8, num_kv_shared_layers=2) | text
    config = transformers.Gemma4Config(text_config=some, vision_config=_VISION, **_IDS)
    return transformers.Gemma4ForConditionalGeneration(config)


def gemma4_vision(**text):
    """As the larger models, in which a layer has experts beside its dense part."""
    experts = dict(enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=24)
    return gemma4(
        hidden_size_per_layer_input=0, num_kv_shared_layers=0, use_bidirectional_attention="vision", **experts, **text
    )


def gemma4_unified():
    vision = dict(
        patch_size=PATCH // 2, pooling_kernel_size=2, model_patch_size=PATCH, mm_embed_dim=16, mm_posemb_size=16,
        output_proj_dims=16,
    )  # fmt: skip
    config = transformers.Gemma4UnifiedConfig(
        text_config=_TEXT | dict(use_bidirectional_attention="vision"), vision_config=vision, **_IDS
    )
    return transformers.Gemma4UnifiedForConditionalGeneration(config)


def _padded(pictures: Rows, model) -> dict[str, Tensor]:
    """Patches of each picture or frame with their x and y, in any order, padded to the most."""
    out = {}
    for kind, some in (("image", pictures.images), ("video", pictures.videos)):
        frames = [p for p in some for _ in range(max(1, p.frames))]
        if not frames:
            continue
        most = max(p.size[0] * p.size[1] for p in frames)
        positions = torch.full((len(frames), most, 2), -1)
        for i, p in enumerate(frames):
            height, width = p.size
            y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            positions[i, : height * width] = torch.stack([x, y], -1).flatten(0, 1)
        name = "pixel_values" + ("_videos" if kind == "video" else "")
        out[name] = torch.rand(len(frames), most, 3 * PATCH * PATCH, generator=pictures.generator, dtype=torch.float64)
        out[f"{kind}_position_ids"] = positions
        if kind == "video":
            if "num_frames_per_video" in inspect.signature(model.forward).parameters:
                out["num_frames_per_video"] = torch.tensor([p.frames for p in some])
            else:  # older transformers have a dimension for frames
                for each in (name, "video_position_ids"):
                    out[each] = out[each].unflatten(0, (len(some), -1))
    return out


def _runs(pooled: int):
    def runs(model, inputs, kind):
        """One for each picture, and one for each of the two frames of a video."""
        tokens = (inputs[f"{kind}_position_ids"] >= 0).all(-1).sum(-1).flatten() // pooled
        return [[int(n)] for n in tokens] if kind == "image" else tokens.view(-1, 2).tolist()

    return runs


def _inputs_of_layers(model, tokens):
    text = model.model.language_model
    return {"per_layer_inputs": text.get_per_layer_inputs(tokens, None)} if text.hidden_size_per_layer_input else {}


GEMMA = FamilyCase(
    gemma4, ((4, 6), (8, 4), (6, 6)), video=True, config="Gemma4Config", pixels=_padded, runs=_runs(4), fenced=True,
    further=types_of_placeholders, aligned=("per_layer_inputs",), step=_inputs_of_layers, as_padding=True,
)  # fmt: skip


def shieldgemma2():
    return gemma3(transformers.ShieldGemma2Config)


CASES = {
    "shieldgemma2": FamilyCase(shieldgemma2, config="ShieldGemma2Config", blocks="picture"),
    "gemma4": GEMMA,
    "gemma4_vision": replace(
        GEMMA, build=gemma4_vision, model_type="gemma4", blocks="sliding", aligned=(), step=lambda *args: {}
    ),
    "gemma4_unified": replace(
        GEMMA, build=gemma4_unified, config="Gemma4UnifiedConfig", runs=_runs(1), aligned=(), step=lambda *args: {},
        blocks="both",
    ),
}  # fmt: skip
