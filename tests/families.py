"""The table of model families, and ragged batches for them.

A new family adds a builder and a row: to `builders.py` and `FAMILIES` where generic tests are to run over it, or to
`more_families/`, whose families have a few tests each (`test_more_families.py`).
"""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass, replace

import torch
import transformers
from packaging.version import Version

from tokenprune.patches.families.base import Family
from tokenprune.patches.families.registry import family_by_type, family_of
from tokenprune.patches.modules import base_of, text_model_of

from . import builders
from .builders import IMAGE, TEXT, TRANSFORMERS, VISION_END, VISION_START, spread_weights
from .family_case import (
    FamilyCase,
    Picture,
    Rows,
    by_row,
    crops,
    patches,
    runs_by_frame,
    runs_by_raster_row,
    runs_of_patches,
    runs_of_pooled_frames,
    runs_of_tiles,
    sized,
    types_of_placeholders,
)
from .more_families import MORE

__all__ = ["TEXT", "FamilyCase", "Picture", "spread_weights"]  # some tests build a model of a family's config

# generate() encodes pictures before it calls the model
ENCODES_FIRST = hasattr(transformers.GenerationMixin, "_expand_multimodal_outputs")


CROPS = FamilyCase(builders.llava_next, ((40, 24), (20, 48), (48, 44)), pixels=crops, uniform=True)
QWEN = FamilyCase(
    builders.qwen2_vl, ((4, 6), (8, 4), (6, 6)), video=True, pixels=patches, runs=runs_of_patches, fenced=True,
    further=types_of_placeholders,
)  # fmt: skip
QWEN3 = replace(QWEN, runs=runs_by_frame)
QWEN3_5 = replace(QWEN3, hybrid=True)
TILES = FamilyCase(builders.idefics3, pixels=by_row, runs=runs_of_tiles)
#: Families that every generic test runs over.
FAMILIES = {
    "llava": FamilyCase(builders.llava),
    "llava_next": CROPS,
    "llava_onevision": replace(
        CROPS, build=builders.llava_onevision, video=True, runs=runs_of_pooled_frames(newlines=1)
    ),
    "qwen2_5_vl": replace(QWEN, build=builders.qwen2_5_vl),
    "qwen3_vl": replace(QWEN3, build=builders.qwen3_vl),
    "internvl": FamilyCase(builders.internvl),
    "idefics3": TILES,
    "mistral3": FamilyCase(builders.mistral3, ((24, 32), (40, 24), (32, 32)), pixels=sized, runs=runs_by_raster_row),
    "gemma3": FamilyCase(builders.gemma3, blocks="picture"),
    "paligemma": FamilyCase(builders.paligemma, blocks="prompt", since="5.0"),
    "qwen3_5": replace(QWEN3_5, build=builders.qwen3_5, config="Qwen3_5Config"),
}
#: Families of which the same holds as of one above: generic tests run over them with FULL=1 alone.
ALIKE = {
    "vipllava": FamilyCase(builders.vipllava),
    "video_llava": FamilyCase(builders.video_llava),
    "deepseek_vl": FamilyCase(builders.deepseek_vl),
    "llava_next_video": replace(
        CROPS, build=builders.llava_next_video, video=True, runs=runs_of_pooled_frames(newlines=0)
    ),
    "aya_vision": FamilyCase(builders.aya_vision),
    "cohere2_vision": FamilyCase(builders.cohere2_vision),
    "smolvlm": replace(TILES, build=builders.smolvlm),
    "qwen2_vl": QWEN,
    "qwen3_vl_moe": replace(QWEN3, build=builders.qwen3_vl_moe),
    "qwen3_5_moe": replace(QWEN3_5, build=builders.qwen3_5_moe, config="Qwen3_5MoeConfig"),
}


def _known(cases: dict[str, FamilyCase]) -> dict[str, FamilyCase]:
    """Those that the installed transformers has."""
    return {
        name: case
        for name, case in cases.items()
        if hasattr(transformers, case.config or "LlavaConfig") and Version(case.since or "0") <= TRANSFORMERS
    }


NEWER = {name: case for name, case in {**FAMILIES, **ALIKE, **MORE}.items() if case.config or case.since}  # than some
FAMILIES, ALIKE, MORE = _known(FAMILIES), _known(ALIKE), _known(MORE)
if os.environ.get("FULL") == "1":
    FAMILIES |= ALIKE
#: All of them, by model type.
CASES = {**FAMILIES, **ALIKE, **MORE}

ANYRES = ("llava_next", "llava_next_video", "llava_onevision")  # a picture is a thumbnail and crops
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
        _MODELS[name] = spread_weights(CASES[name].build())
        _MODELS[name].case_name = name
    return _MODELS[name]


def case_of(model) -> FamilyCase:
    """What tests know of a model's family."""
    return CASES[getattr(model, "case_name", model.config.model_type)]


def facts_of(name: str) -> Family:
    """What the library knows of a case's family."""
    return family_by_type(CASES[name].model_type or name)


def text_of(model):
    """The text model."""
    return text_model_of(base_of(model), family_of(model))


@dataclass(frozen=True)
class Batch:
    """Model inputs, and where each visual input's placeholders are: (row, columns, kind), row by row."""

    inputs: dict[str, torch.Tensor]
    visuals: list[tuple[int, list[int], str]]

    def to(self, **changes) -> Batch:
        return Batch({**self.inputs, **changes}, self.visuals)


def make_batch(name: str, rows: list[list], seed: int = 0) -> Batch:
    """A left-padded batch. A row is a list of ints (that many text tokens) and `Picture`s."""
    case, model = CASES[name], get_model(name)
    generator = torch.Generator().manual_seed(seed)
    pictures = Rows([[part for part in row if isinstance(part, Picture)] for row in rows], generator)
    pixels = case.pixels(pictures, model)
    kinds = [kind for kind, some in (("image", pictures.images), ("video", pictures.videos)) if some]
    counts = {kind: iter(case.runs(model, pixels, kind)) for kind in kinds}

    def text(n):
        return torch.randint(3, 89, (n,), generator=generator).tolist()

    ids, visuals = [], []
    for row, parts in enumerate(rows):
        sequence: list[int] = [1]
        for part in parts:
            if isinstance(part, int):
                sequence += text(part)
                continue
            kind, token = ("video", case.video_token) if part.frames else ("image", IMAGE)
            start, end = case.video_fence if part.frames else (VISION_START, VISION_END)
            columns = []
            for j, run in enumerate(next(counts[kind])):
                if j:
                    sequence += text(2)  # a timestamp, a break
                if j and case.by_frame and part.frames:
                    visuals.append((row, columns, kind))
                    columns = []
                sequence += [start] if case.fenced else []
                columns += range(len(sequence), len(sequence) + run)
                sequence += [token] * run
                sequence += [end] if case.fenced else []
            visuals.append((row, columns, kind))
        ids.append(sequence)
    length = max(map(len, ids))
    visuals = [(row, [length - len(ids[row]) + c for c in columns], kind) for row, columns, kind in visuals]
    input_ids = torch.tensor([[0] * (length - len(s)) + s for s in ids])
    mask = torch.tensor([[0] * (length - len(s)) + [1] * len(s) for s in ids])
    inputs = dict(input_ids=input_ids, attention_mask=mask, **pixels)
    inputs |= case.further(input_ids, visuals, inspect.signature(model.forward).parameters)
    if case.blocks in ("picture", "prompt"):
        inputs["token_type_ids"] = (input_ids == IMAGE).long() * (case.blocks == "picture")
    return Batch(inputs, visuals)


def ragged_batch(name: str, video: bool = False, seed: int = 0) -> Batch:
    """Four rows: one image, two images, long text beside an image, no image; or the same with videos."""
    sizes = CASES[name].sizes
    if video:
        clip, other = Picture((4, 4), 2), Picture((4, 6), 2)
        if CASES[name].uniform:
            other = clip
        return make_batch(name, [[3, clip, 4], [2, Picture(sizes[0]), 2, other, 3], [19, clip, 5], [9]], seed)
    a, b, c = (sizes * 3)[:3]
    return make_batch(name, [[3, Picture(a), 5], [2, Picture(b), 3, Picture(c), 4], [23, Picture(c), 6], [11]], seed)


def small_batch(name: str, video: bool = False) -> Batch:
    """Three rows: one picture, two pictures, no picture; or the same with videos."""
    case, (a, b, c) = CASES[name], (CASES[name].sizes * 3)[:3]
    if not video:
        return make_batch(name, [[3, Picture(a), 5], [2, Picture(b), 3, Picture(c), 4], [11]])
    clip, wide = (Picture((4 * case.scale, width * case.scale), 2) for width in (4, 6))
    other = clip if case.uniform else wide
    second = Picture(a) if case.mixed else clip
    return make_batch(name, [[3, clip, 4], [2, second, 2, other, 3], [9]])


def picture(name: str) -> Picture:
    """The family's first picture."""
    return Picture(CASES[name].sizes[0])


def one_row(name: str = "llava", text: int = 5, seed: int = 0) -> Batch:
    """One row: three tokens, a picture, and `text` more tokens."""
    return make_batch(name, [[3, picture(name), text]], seed)


def even_batch() -> Batch:
    """Two rows of one length: stock eager attention makes NaN of float64 padding."""
    return make_batch("llava", [[3, Picture((24, 24)), 5], [4, Picture((24, 24)), 4]])
