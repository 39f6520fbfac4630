"""Small real models of every supported family, and ragged batches for them.

A new family adds one builder and one row to `FAMILIES`; every generic test runs over the table.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
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

TRANSFORMERS_4 = transformers.__version__.startswith("4.")
# generate() encodes pictures before it calls the model
ENCODES_FIRST = hasattr(transformers.GenerationMixin, "_expand_multimodal_outputs")
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


def spread_weights(model, seed: int = 0):
    """Random weights wide enough that every position predicts something else, in float64, eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            std = 0.5 if "lm_head" in name else 0.15
            if p.ndim > 1 or "newline" in name or "class_embedding" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * std)
    model.generation_config.eos_token_id = None  # always generate to the end
    if getattr(model.config.get_text_config(), "num_experts", None) and not TRANSFORMERS_4:
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


_QWEN_IDS = dict(
    image_token_id=IMAGE,
    video_token_id=VIDEO,
    vision_start_token_id=VISION_START,
    vision_end_token_id=VISION_END,
    tie_word_embeddings=False,
)


def _qwen_text(section):
    rope = dict(rope_type="default", mrope_section=section)
    if TRANSFORMERS_4:
        return dict(**TEXT, rope_theta=1e4, rope_scaling=rope)
    return dict(**TEXT, rope_parameters=dict(**rope, rope_theta=1e4))


def qwen2_vl():
    vision = dict(
        depth=2, embed_dim=16, hidden_size=32, num_heads=2, mlp_ratio=2, patch_size=PATCH, spatial_merge_size=2
    )
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(vision_config=vision, text_config=_qwen_text([1, 1, 2]), **_QWEN_IDS)
    )


def qwen2_5_vl():
    vision = dict(
        depth=2, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=PATCH, spatial_merge_size=2,
        window_size=16, out_hidden_size=32, fullatt_block_indexes=[1], tokens_per_second=2,
    )  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(vision_config=vision, text_config=_qwen_text([1, 1, 2]), **_QWEN_IDS)
    )


_QWEN3_VISION = dict(
    depth=3, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=PATCH, spatial_merge_size=2,
    out_hidden_size=32, num_position_embeddings=64,
)  # fmt: skip
_DEEPSTACK = _QWEN3_VISION | dict(deepstack_visual_indexes=[0, 1])


def qwen3_vl():
    text = _qwen_text([2, 1, 1])
    text["head_dim"] = 8
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(vision_config=_DEEPSTACK, text_config=text, **_QWEN_IDS))


def qwen3_vl_moe():
    text = _qwen_text([2, 1, 1]) | dict(head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)
    return Qwen3VLMoeForConditionalGeneration(Qwen3VLMoeConfig(vision_config=_DEEPSTACK, text_config=text, **_QWEN_IDS))


def _qwen3_5_text():
    text = _qwen_text([2, 1, 1]) | dict(
        head_dim=8, num_hidden_layers=4, linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2,
        linear_num_value_heads=4,
    )  # fmt: skip
    text["rope_parameters"]["partial_rotary_factor"] = 1.0
    return text


def qwen3_5():
    text = _qwen3_5_text()
    config = transformers.Qwen3_5Config(vision_config=_QWEN3_VISION, text_config=text, **_QWEN_IDS)
    return transformers.Qwen3_5ForConditionalGeneration(config)


def qwen3_5_moe():
    text = _qwen3_5_text()
    text |= dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, shared_expert_intermediate_size=24)
    config = transformers.Qwen3_5MoeConfig(vision_config=_QWEN3_VISION, text_config=text, **_QWEN_IDS)
    return transformers.Qwen3_5MoeForConditionalGeneration(config)


def gemma3():
    text = transformers.Gemma3TextConfig(
        **TEXT, head_dim=8, sliding_window=4096, query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )  # fmt: skip
    return transformers.Gemma3ForConditionalGeneration(
        transformers.Gemma3Config(
            vision_config=SiglipVisionConfig(vision_use_head=False, **_SIGLIP), text_config=text,
            image_token_index=IMAGE, boi_token_index=VISION_START, eoi_token_index=VISION_END, mm_tokens_per_image=9,
            tie_word_embeddings=False,
        )
    )  # fmt: skip


def paligemma():
    text = transformers.GemmaConfig(**TEXT, head_dim=8)
    return transformers.PaliGemmaForConditionalGeneration(
        transformers.PaliGemmaConfig(
            vision_config=SiglipVisionConfig(vision_use_head=False, projection_dim=32, **_SIGLIP), text_config=text,
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


_SIGLIP = {k: v for k, v in CLIP.items() if k != "projection_dim"} | dict(image_size=LLAVA_SIDE, patch_size=PATCH)


def deepseek_vl():
    return DeepseekVLForConditionalGeneration(
        DeepseekVLConfig(
            vision_config=SiglipVisionConfig(vision_use_head=False, **_SIGLIP),
            text_config=LlamaConfig(**TEXT),
            image_token_id=IMAGE,
            tie_word_embeddings=False,
        )
    )


def internvl():
    vision = InternVLVisionConfig(**_SIGLIP | dict(image_size=(LLAVA_SIDE, LLAVA_SIDE), patch_size=(PATCH, PATCH)))
    return InternVLForConditionalGeneration(
        InternVLConfig(
            vision_config=vision, text_config=Qwen2Config(**TEXT), image_token_id=IMAGE, tie_word_embeddings=False
        )
    )


def aya_vision():
    return AyaVisionForConditionalGeneration(
        AyaVisionConfig(
            vision_config=SiglipVisionConfig(vision_use_head=False, **_SIGLIP),
            text_config=Cohere2Config(**TEXT),
            image_token_index=IMAGE,
            adapter_layer_norm_eps=1e-6,
            tie_word_embeddings=False,
        )
    )


def cohere2_vision():
    return Cohere2VisionForConditionalGeneration(
        Cohere2VisionConfig(
            vision_config=SiglipVisionConfig(vision_use_head=False, **_SIGLIP),
            text_config=Cohere2Config(**TEXT),
            image_token_id=IMAGE,
            alignment_intermediate_size=48,
            tie_word_embeddings=False,
        )
    )


def idefics3():
    return Idefics3ForConditionalGeneration(
        Idefics3Config(
            vision_config=_SIGLIP, text_config=LlamaConfig(**TEXT), image_token_id=IMAGE, scale_factor=2,
            pad_token_id=0, tie_word_embeddings=False,
        )
    )  # fmt: skip


def smolvlm():
    return SmolVLMForConditionalGeneration(
        SmolVLMConfig(
            vision_config=_SIGLIP, text_config=LlamaConfig(**TEXT), image_token_id=IMAGE, scale_factor=2,
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


@dataclass(frozen=True)
class Picture:
    """An image or a video: (height, width) in pixels, or in patches for Qwen; frames for a video."""

    size: tuple[int, int]
    frames: int = 0


@dataclass(frozen=True)
class FamilyCase:
    """Attributes:
    build: makes the model.
    sizes: of pictures, in patches for Qwen and in pixels elsewhere.
    video: whether it takes videos.
    hybrid: whether it has linear-attention layers: a token that is masked in attention still passes
        those, so the masked oracle says nothing; and they compute in float32.
    blocks: what attends to itself both ways, each `"picture"` or the whole `"prompt"`.
    """

    build: Callable
    sizes: tuple[tuple[int, int], ...]
    video: bool = False
    hybrid: bool = False
    blocks: str = ""


FAMILIES = {
    "llava": FamilyCase(llava, ((24, 24),)),
    "llava_next": FamilyCase(llava_next, ((40, 24), (20, 48), (48, 44))),
    "llava_onevision": FamilyCase(llava_onevision, ((40, 24), (20, 48), (48, 44)), video=True),
    "qwen2_vl": FamilyCase(qwen2_vl, ((4, 6), (8, 4), (6, 6)), video=True),
    "qwen2_5_vl": FamilyCase(qwen2_5_vl, ((4, 6), (8, 4), (6, 6)), video=True),
    "qwen3_vl": FamilyCase(qwen3_vl, ((4, 6), (8, 4), (6, 6)), video=True),
    "qwen3_vl_moe": FamilyCase(qwen3_vl_moe, ((4, 6), (8, 4), (6, 6)), video=True),
    "vipllava": FamilyCase(vipllava, ((24, 24),)),
    "llava_next_video": FamilyCase(llava_next_video, ((40, 24), (20, 48), (48, 44)), video=True),
    "video_llava": FamilyCase(video_llava, ((24, 24),)),
    "deepseek_vl": FamilyCase(deepseek_vl, ((24, 24),)),
    "internvl": FamilyCase(internvl, ((24, 24),)),
    "aya_vision": FamilyCase(aya_vision, ((24, 24),)),
    "cohere2_vision": FamilyCase(cohere2_vision, ((24, 24),)),
    "idefics3": FamilyCase(idefics3, ((24, 24),)),
    "smolvlm": FamilyCase(smolvlm, ((24, 24),)),
    "mistral3": FamilyCase(mistral3, ((24, 32), (40, 24), (32, 32))),
    "gemma3": FamilyCase(gemma3, ((24, 24),), blocks="picture"),
}
if not TRANSFORMERS_4:
    FAMILIES["paligemma"] = FamilyCase(paligemma, ((24, 24),), blocks="prompt")
ANYRES = ("llava_next", "llava_next_video", "llava_onevision")  # a picture is a thumbnail and crops
BY_ROW = ("idefics3", "smolvlm")  # pixels come row by row of the batch, padded with black pictures
NEWER = {  # than some of the supported versions of transformers
    "qwen3_5": ("Qwen3_5Config", FamilyCase(qwen3_5, ((4, 6), (8, 4), (6, 6)), video=True, hybrid=True)),
    "qwen3_5_moe": ("Qwen3_5MoeConfig", FamilyCase(qwen3_5_moe, ((4, 6), (8, 4), (6, 6)), video=True, hybrid=True)),
}
FAMILIES |= {name: case for name, (config, case) in NEWER.items() if hasattr(transformers, config)}
PLAIN_FAMILIES = [name for name, case in FAMILIES.items() if not case.hybrid and not case.blocks]
VIDEO_FAMILIES = [name for name, case in FAMILIES.items() if case.video]
_MODELS: dict[str, torch.nn.Module] = {}


def get_model(name: str):
    """The family's model in float64, built once and shared; tests must leave it unpruned."""
    if name not in _MODELS:
        torch.manual_seed(0)
        _MODELS[name] = spread_weights(FAMILIES[name].build())
    return _MODELS[name]


def text_of(model):
    """The text model."""
    base = model.model
    return base.text_model if hasattr(base, "text_model") else base.language_model


def _pixels(name: str, rows: list[list[Picture]], generator) -> dict[str, torch.Tensor]:
    """Vision inputs of the pictures of each row, as the family's processor would shape them."""

    def noise(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    images = [p for row in rows for p in row if not p.frames]
    videos = [p for row in rows for p in row if p.frames]
    out = {}
    if name.startswith("qwen"):
        per_patch = 3 * 2 * PATCH * PATCH
        for kind, some in (("image", images), ("video", videos)):
            if some:
                grid = torch.tensor([(max(1, p.frames), *p.size) for p in some])
                out["pixel_values" + ("_videos" if kind == "video" else "")] = noise(int(grid.prod(1).sum()), per_patch)
                out[f"{kind}_grid_thw"] = grid
        return out
    if images and name in BY_ROW:
        out["pixel_values"] = torch.zeros(len(rows), max(map(len, rows)), 3, LLAVA_SIDE, LLAVA_SIDE).double()
        for i, row in enumerate(rows):
            for j in range(len(row)):
                out["pixel_values"][i, j] = noise(3, LLAVA_SIDE, LLAVA_SIDE)
    elif images and name == "mistral3":
        height, width = (max(p.size[i] for p in images) for i in (0, 1))
        out["pixel_values"] = noise(len(images), 3, height, width)
        out["image_sizes"] = torch.tensor([p.size for p in images])
    elif images and name in ANYRES:
        out["pixel_values"] = noise(len(images), 5, 3, LLAVA_SIDE, LLAVA_SIDE)
        out["image_sizes"] = torch.tensor([p.size for p in images])
    elif images:
        out[_pictures(name)] = noise(len(images), 3, LLAVA_SIDE, LLAVA_SIDE)
    if videos:
        out["pixel_values_videos"] = noise(len(videos), videos[0].frames, 3, LLAVA_SIDE, LLAVA_SIDE)
    return out


def _pictures(name: str) -> str:
    """What the family calls pixels of images: Video-LLaVA has its own name, until transformers 5.24."""
    accepted = inspect.signature(get_model(name).forward).parameters
    return "pixel_values" if "pixel_values" in accepted else "pixel_values_images"


def _counts(name: str, model, pixels: dict) -> dict[str, list[list[int]]]:
    """Placeholders of each visual input, as runs (Qwen3-VL videos have one run per frame)."""
    base, out = model.model, {}
    with torch.no_grad():
        for kind, key in (("image", _pictures(name)), ("video", "pixel_values_videos")):
            if key not in pixels:
                continue
            if name.startswith("qwen"):
                grid = pixels[f"{kind}_grid_thw"]
                runs = [[int(t * h * w) // 4] for t, h, w in grid]
                if name.startswith("qwen3") and kind == "video":
                    runs = [[int(h * w) // 4] * int(t) for t, h, w in grid]
            elif kind == "video":  # pooled frames, and a newline on OneVision
                runs = [[pixels[key].shape[1] * 9 + (name == "llava_onevision")]] * len(pixels[key])
            elif name in BY_ROW:
                runs = [[9]] * int((pixels[key] != 0).flatten(2).any(2).sum())
            elif name == "mistral3":  # a break after every row
                runs = [[int(w) // PATCH // 2] * (int(h) // PATCH // 2) for h, w in pixels["image_sizes"]]
            else:
                features = base.get_image_features(**{k: v for k, v in pixels.items() if not k.endswith("videos")})
                features = getattr(features, "pooler_output", features)
                runs = [[f.shape[:-1].numel()] for f in features]
            out[kind] = runs
    return out


@dataclass(frozen=True)
class Batch:
    """Model inputs, and where each visual input's placeholders are: (row, columns, kind), row by row."""

    inputs: dict[str, torch.Tensor]
    visuals: list[tuple[int, list[int], str]]

    def to(self, **changes) -> Batch:
        return Batch({**self.inputs, **changes}, self.visuals)


def make_batch(name: str, rows: list[list], seed: int = 0) -> Batch:
    """A left-padded batch. A row is a list of ints (that many text tokens) and `Picture`s."""
    generator = torch.Generator().manual_seed(seed)
    pixels = _pixels(name, [[part for part in row if isinstance(part, Picture)] for row in rows], generator)
    counts = {kind: iter(runs) for kind, runs in _counts(name, get_model(name), pixels).items()}

    def text(n):
        return torch.randint(3, 89, (n,), generator=generator).tolist()

    ids, visuals = [], []
    for row, parts in enumerate(rows):
        sequence: list[int] = [1]
        for part in parts:
            if isinstance(part, int):
                sequence += text(part)
                continue
            kind, token = ("video", VIDEO) if part.frames else ("image", IMAGE)
            columns = []
            for j, run in enumerate(next(counts[kind])):
                if j:
                    sequence += text(2)  # a timestamp, a break
                sequence += [VISION_START] if name.startswith("qwen") else []
                columns += range(len(sequence), len(sequence) + run)
                sequence += [token] * run
                sequence += [VISION_END] if name.startswith("qwen") else []
            visuals.append((row, columns, kind))
        ids.append(sequence)
    length = max(map(len, ids))
    visuals = [(row, [length - len(ids[row]) + c for c in columns], kind) for row, columns, kind in visuals]
    input_ids = torch.tensor([[0] * (length - len(s)) + s for s in ids])
    mask = torch.tensor([[0] * (length - len(s)) + [1] * len(s) for s in ids])
    inputs = dict(input_ids=input_ids, attention_mask=mask, **pixels)
    if name.startswith("qwen") and "mm_token_type_ids" in inspect.signature(get_model(name).forward).parameters:
        inputs["mm_token_type_ids"] = (input_ids == IMAGE).int() + 2 * (input_ids == VIDEO).int()
    if FAMILIES[name].blocks:
        inputs["token_type_ids"] = (input_ids == IMAGE).long() * (FAMILIES[name].blocks == "picture")
    return Batch(inputs, visuals)


def ragged_batch(name: str, video: bool = False, seed: int = 0) -> Batch:
    """Four rows: one image, two images, long text beside an image, no image; or the same with videos."""
    sizes = FAMILIES[name].sizes
    if video:
        clip, other = Picture((4, 4), 2), Picture((4, 6), 2)
        if name in ANYRES:
            other = clip  # its processor gives all videos of a batch one shape
        return make_batch(name, [[3, clip, 4], [2, Picture(sizes[0]), 2, other, 3], [19, clip, 5], [9]], seed)
    a, b, c = (sizes * 3)[:3]
    return make_batch(name, [[3, Picture(a), 5], [2, Picture(b), 3, Picture(c), 4], [23, Picture(c), 6], [11]], seed)
