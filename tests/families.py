"""The table of model families, and ragged batches for them.

A new family adds a builder to `builders.py` and a row to `FAMILIES`; every generic test runs over the table.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers

from tokenprune.patches.families.registry import family_by_type

from .builders import (
    IMAGE,
    LLAVA_SIDE,
    PATCH,
    TEXT,
    TRANSFORMERS_4,
    VIDEO,
    VISION_END,
    VISION_START,
    aya_vision,
    cohere2_vision,
    deepseek_vl,
    gemma3,
    idefics3,
    internvl,
    llava,
    llava_next,
    llava_next_video,
    llava_onevision,
    mistral3,
    paligemma,
    qwen2_5_vl,
    qwen2_vl,
    qwen3_5,
    qwen3_5_moe,
    qwen3_vl,
    qwen3_vl_moe,
    smolvlm,
    spread_weights,
    video_llava,
    vipllava,
)

__all__ = ["TEXT", "spread_weights"]  # for tests that build a model of their own from a family's config

# generate() encodes pictures before it calls the model
ENCODES_FIRST = hasattr(transformers.GenerationMixin, "_expand_multimodal_outputs")


@dataclass(frozen=True)
class Picture:
    """An image or a video: (height, width) in pixels, or in patches for Qwen; frames for a video."""

    size: tuple[int, int]
    frames: int = 0


@dataclass(frozen=True)
class FamilyCase:
    """Attributes:
    build: makes the model.
    sizes: of pictures: in patches for Qwen, in pixels for families of any resolution; elsewhere every picture is
        `LLAVA_SIDE` square.
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
BOTH = ("llava", "qwen2_5_vl")  # 1-D positions, and coordinates
PLAIN_FAMILIES = [name for name, case in FAMILIES.items() if not case.hybrid and not case.blocks]
VIDEO_FAMILIES = [name for name, case in FAMILIES.items() if case.video]
#: Families whose visual tokens can leave inside the vision tower.
TOWER_FAMILIES = [f for f in FAMILIES if (e := family_by_type(f).encoder) is not None and e.layers is not None]
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


def picture(name: str) -> Picture:
    """The family's first picture."""
    return Picture(FAMILIES[name].sizes[0])


def one_row(name: str = "llava", text: int = 5, seed: int = 0) -> Batch:
    """One row: three tokens, a picture, and `text` more tokens."""
    return make_batch(name, [[3, picture(name), text]], seed)


def even_batch() -> Batch:
    """Two rows of one length: stock eager attention makes NaN of float64 padding."""
    return make_batch("llava", [[3, Picture((24, 24)), 5], [4, Picture((24, 24)), 4]])
