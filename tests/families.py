"""Small real models of every supported family, and ragged batches for them.

A new family adds one builder and one row to `FAMILIES`; every generic test runs over the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
)

TRANSFORMERS_4 = transformers.__version__.startswith("4.")
# generate() encodes pictures before it calls the model, and Qwen-VL wants token types
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


def qwen3_vl():
    vision = dict(
        depth=3, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=PATCH, spatial_merge_size=2,
        out_hidden_size=32, deepstack_visual_indexes=[0, 1], num_position_embeddings=64,
    )  # fmt: skip
    text = _qwen_text([2, 1, 1])
    text["head_dim"] = 8
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(vision_config=vision, text_config=text, **_QWEN_IDS))


@dataclass(frozen=True)
class Picture:
    """An image or a video: (height, width) in pixels, or in patches for Qwen; frames for a video."""

    size: tuple[int, int]
    frames: int = 0


@dataclass(frozen=True)
class FamilyCase:
    build: Callable
    sizes: tuple[tuple[int, int], ...]
    video: bool = False


FAMILIES = {
    "llava": FamilyCase(llava, ((24, 24),)),
    "llava_next": FamilyCase(llava_next, ((40, 24), (20, 48), (48, 44))),
    "llava_onevision": FamilyCase(llava_onevision, ((40, 24), (20, 48), (48, 44)), video=True),
    "qwen2_vl": FamilyCase(qwen2_vl, ((4, 6), (8, 4), (6, 6)), video=True),
    "qwen2_5_vl": FamilyCase(qwen2_5_vl, ((4, 6), (8, 4), (6, 6)), video=True),
    "qwen3_vl": FamilyCase(qwen3_vl, ((4, 6), (8, 4), (6, 6)), video=True),
}
VIDEO_FAMILIES = [name for name, case in FAMILIES.items() if case.video]
_MODELS: dict[str, torch.nn.Module] = {}


def get_model(name: str):
    """The family's model in float64, built once and shared; tests must leave it unpruned."""
    if name not in _MODELS:
        torch.manual_seed(0)
        _MODELS[name] = spread_weights(FAMILIES[name].build())
    return _MODELS[name]


def _pixels(name: str, pictures: list[Picture], generator) -> dict[str, torch.Tensor]:
    """Vision inputs of a list of pictures, as the family's processor would shape them."""

    def noise(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    images = [p for p in pictures if not p.frames]
    videos = [p for p in pictures if p.frames]
    out = {}
    if name.startswith("qwen"):
        per_patch = 3 * 2 * PATCH * PATCH
        for kind, some in (("image", images), ("video", videos)):
            if some:
                grid = torch.tensor([(max(1, p.frames), *p.size) for p in some])
                out["pixel_values" + ("_videos" if kind == "video" else "")] = noise(int(grid.prod(1).sum()), per_patch)
                out[f"{kind}_grid_thw"] = grid
        return out
    if images and name == "llava":
        out["pixel_values"] = noise(len(images), 3, LLAVA_SIDE, LLAVA_SIDE)
    elif images:
        out["pixel_values"] = noise(len(images), 5, 3, LLAVA_SIDE, LLAVA_SIDE)
        out["image_sizes"] = torch.tensor([p.size for p in images])
    if videos:
        out["pixel_values_videos"] = noise(len(videos), videos[0].frames, 3, LLAVA_SIDE, LLAVA_SIDE)
    return out


def _counts(name: str, model, pixels: dict) -> dict[str, list[list[int]]]:
    """Placeholders of each visual input, as runs (Qwen3-VL videos have one run per frame)."""
    base, out = model.model, {}
    with torch.no_grad():
        for kind, key in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            if key not in pixels:
                continue
            if name.startswith("qwen"):
                grid = pixels[f"{kind}_grid_thw"]
                runs = [[int(t * h * w) // 4] for t, h, w in grid]
                if name == "qwen3_vl" and kind == "video":
                    runs = [[int(h * w) // 4] * int(t) for t, h, w in grid]
            elif name == "llava":
                runs = [[(LLAVA_SIDE // PATCH) ** 2]] * len(pixels[key])
            elif kind == "video":
                runs = [[pixels[key].shape[1] * 9 + 1]] * len(pixels[key])
            else:
                features = base.get_image_features(pixels[key], pixels["image_sizes"])
                features = getattr(features, "pooler_output", features)
                runs = [[len(f)] for f in features]
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
    pictures = [part for row in rows for part in row if isinstance(part, Picture)]
    pixels = _pixels(name, pictures, generator)
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
                    sequence += text(2)  # a timestamp
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
    if name.startswith("qwen") and ENCODES_FIRST:
        inputs["mm_token_type_ids"] = (input_ids == IMAGE).int() + 2 * (input_ids == VIDEO).int()
    return Batch(inputs, visuals)


def ragged_batch(name: str, video: bool = False, seed: int = 0) -> Batch:
    """Four rows: one image, two images, long text beside an image, no image; or the same with videos."""
    sizes = FAMILIES[name].sizes
    if video:
        clip, other = Picture((4, 4), 2), Picture((4, 6), 2)
        if name == "llava_onevision":
            other = clip  # its processor gives all videos of a batch one shape
        return make_batch(name, [[3, clip, 4], [2, Picture(sizes[0]), 2, other, 3], [19, clip, 5], [9]], seed)
    a, b, c = (sizes * 3)[:3]
    return make_batch(name, [[3, Picture(a), 5], [2, Picture(b), 3, Picture(c), 4], [23, Picture(c), 6], [11]], seed)
