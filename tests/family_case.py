"""What tests know of a model family: how its pictures are fed, and how many placeholders stand for them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenprune.patches.families.registry import family_of
from tokenprune.patches.feature_source import input_lengths
from tokenprune.patches.modules import base_of

from .builders import LLAVA_SIDE, PATCH, VIDEO, VISION_END, VISION_START


@dataclass(frozen=True)
class Picture:
    """An image or a video: (height, width) in pixels, or in patches for Qwen; frames for a video."""

    size: tuple[int, int]
    frames: int = 0


@dataclass(frozen=True)
class Rows:
    """The pictures of a batch, row by row, and a source of pixels.

    Attributes:
        rows: pictures of each row.
        generator: of their pixels.
    """

    rows: list[list[Picture]]
    generator: torch.Generator

    @property
    def images(self) -> list[Picture]:
        return [p for row in self.rows for p in row if not p.frames]

    @property
    def videos(self) -> list[Picture]:
        return [p for row in self.rows for p in row if p.frames]

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)


Runs = list[list[int]]


def square_pictures(pictures: Rows, model: Any) -> dict[str, Tensor]:
    """All of one size, one after the other; videos as frames."""
    out = {}
    if pictures.images:
        out[pixels_name(model)] = pictures.noise(len(pictures.images), 3, LLAVA_SIDE, LLAVA_SIDE)
    if videos := pictures.videos:
        out["pixel_values_videos"] = pictures.noise(len(videos), videos[0].frames, 3, LLAVA_SIDE, LLAVA_SIDE)
    return out


def pixels_name(model: Any) -> str:
    """What the family calls pixels of images: Video-LLaVA has its own name, until transformers 5.24."""
    accepted = inspect.signature(model.forward).parameters
    return "pixel_values" if "pixel_values" in accepted else "pixel_values_images"


def patches(pictures: Rows, model: Any, channels: int = 3 * 2 * PATCH * PATCH) -> dict[str, Tensor]:
    """Patches of all pictures as one sequence, with the grid of each."""
    out = {}
    for kind, some in (("image", pictures.images), ("video", pictures.videos)):
        if some:
            grid = torch.tensor([(max(1, p.frames), *p.size) for p in some])
            name = "pixel_values" + ("_videos" if kind == "video" else "")
            out[name] = pictures.noise(int(grid.prod(1).sum()), channels)
            out[f"{kind}_grid_thw"] = grid
    return out


def by_row(pictures: Rows, model: Any) -> dict[str, Tensor]:
    """Row by row of the batch, padded with black pictures."""
    rows = pictures.rows
    pixels = torch.zeros(len(rows), max(map(len, rows)), 3, LLAVA_SIDE, LLAVA_SIDE).double()
    for i, row in enumerate(rows):
        for j in range(len(row)):
            pixels[i, j] = pictures.noise(3, LLAVA_SIDE, LLAVA_SIDE)
    return {"pixel_values": pixels} if pictures.images else {}


def sized(pictures: Rows, model: Any) -> dict[str, Tensor]:
    """Of any size in pixels, padded to the largest."""
    if not (images := pictures.images):
        return {}
    height, width = (max(p.size[i] for p in images) for i in (0, 1))
    return {
        "pixel_values": pictures.noise(len(images), 3, height, width),
        "image_sizes": torch.tensor([p.size for p in images]),
    }


def crops(pictures: Rows, model: Any) -> dict[str, Tensor]:
    """A thumbnail and crops; videos as frames."""
    out = {}
    if images := pictures.images:
        out["pixel_values"] = pictures.noise(len(images), 5, 3, LLAVA_SIDE, LLAVA_SIDE)
        out["image_sizes"] = torch.tensor([p.size for p in images])
    if videos := pictures.videos:
        out["pixel_values_videos"] = pictures.noise(len(videos), videos[0].frames, 3, LLAVA_SIDE, LLAVA_SIDE)
    return out


def feature_arguments(base: Any, inputs: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """What a base model's feature function of a kind takes of a model's inputs."""
    accepted = inspect.signature(getattr(base, f"get_{kind}_features")).parameters
    return {name: value for name, value in inputs.items() if name in accepted}


def runs_of_features(model: Any, inputs: dict[str, Tensor], kind: str) -> Runs:
    """One run for each of the features that the model returns."""
    base = base_of(model)
    arguments = feature_arguments(base, inputs, kind)
    with torch.no_grad():
        features = getattr(base, f"get_{kind}_features")(**arguments)
    return [[length] for length in input_lengths(family_of(model), base.config, kind, features, arguments)]


def runs_of_patches(model: Any, inputs: dict[str, Tensor], kind: str) -> Runs:
    """One run for each picture or video, of patches merged 2 x 2."""
    return [[int(t * h * w) // 4] for t, h, w in inputs[f"{kind}_grid_thw"]]


def runs_by_frame(model: Any, inputs: dict[str, Tensor], kind: str) -> Runs:
    """The same, and one run for each frame of a video; an image has one frame."""
    return [[int(h * w) // 4] * int(t) for t, h, w in inputs[f"{kind}_grid_thw"]]


def runs_of_pooled_frames(newlines: int) -> Callable[[Any, dict[str, Tensor], str], Runs]:
    """Images as the model returns them, videos of frames of 3 x 3 tokens, and so many newlines."""

    def runs(model: Any, inputs: dict[str, Tensor], kind: str) -> Runs:
        if kind == "image":
            return runs_of_features(model, inputs, kind)
        videos = inputs["pixel_values_videos"]
        return [[videos.shape[1] * 9 + newlines]] * len(videos)

    return runs


def runs_of_tiles(model: Any, inputs: dict[str, Tensor], kind: str) -> Runs:
    """Nine tokens for every picture that is not black."""
    return [[9]] * int((inputs["pixel_values"] != 0).flatten(2).any(2).sum())


def runs_by_raster_row(model: Any, inputs: dict[str, Tensor], kind: str) -> Runs:
    """A break after every row of a raster merged 2 x 2."""
    return [[int(w) // PATCH // 2] * (int(h) // PATCH // 2) for h, w in inputs["image_sizes"]]


Visuals = list[tuple[int, list[int], str]]


def types_of_placeholders(ids: Tensor, visuals: Visuals, accepted: Collection[str]) -> dict[str, Tensor]:
    """1 at placeholders of images, 2 at those of videos, where the model asks for it."""
    types = torch.zeros_like(ids, dtype=torch.int32)
    for row, columns, kind in visuals:
        types[row, columns] = 1 if kind == "image" else 2
    return {"mm_token_type_ids": types} if "mm_token_type_ids" in accepted else {}


def nothing(*args: Any) -> dict[str, Tensor]:
    return {}


@dataclass(frozen=True)
class FamilyCase:
    """A family in the tests.

    Attributes:
        build: makes the model.
        sizes: of pictures: in patches for Qwen, in pixels for families of any resolution; elsewhere every picture is
            `LLAVA_SIDE` square.
        video: whether it takes videos.
        hybrid: whether it has linear-attention layers: a token that is masked in attention still passes
            those, so the masked oracle says nothing; and they compute in float32.
        blocks: what attends to itself both ways, each `"picture"` or the whole `"prompt"`. Pictures as
            `mm_token_type_ids` tell them: `"sliding"`, in sliding-window layers alone, or `"both"`, in all.
        config: its class of configs in transformers; "" where all supported versions have it.
        since: the first transformers with which the library takes it; "" where all do.
        model_type: of the family, where it is not the name of the case.
        pixels: vision inputs of a batch, as the family's processor would shape them.
        runs: placeholders of each visual input of a kind, by unbroken run.
        fenced: whether a token stands before each run, and one behind it.
        video_token: placeholder of videos.
        video_fence: the tokens before and behind each run of a video.
        further: further inputs of the model, `further(ids, visuals, accepted)`.
        aligned: arguments of the text model that have a value for each column, (B, L, ...).
        as_padding: whether the model embeds a placeholder that it has generated as padding.
        step: arguments of the text model at a decode step, `step(model, tokens)`.
        mixed: whether a batch may have images and videos.
        uniform: whether all videos of a batch have one shape, as the family's processor makes them.
        frames: of a video of two frames, (T, H, W)[0] of its raster.
        scale: of videos, over 4 x 4 patches.
        by_frame: whether each frame of a video is an input of its own.
        raster: whether tokens of a picture lie in a raster.
    """

    build: Callable[[], Any]
    sizes: tuple[tuple[int, int], ...] = ((24, 24),)
    video: bool = False
    hybrid: bool = False
    blocks: str = ""
    config: str = ""
    since: str = ""
    model_type: str = ""
    pixels: Callable[[Rows, Any], dict[str, Tensor]] = square_pictures
    runs: Callable[[Any, dict[str, Tensor], str], Runs] = runs_of_features
    fenced: bool = False
    video_token: int = VIDEO
    video_fence: tuple[int, int] = (VISION_START, VISION_END)
    further: Callable[..., dict[str, Tensor]] = nothing
    aligned: tuple[str, ...] = ()
    as_padding: bool = False
    step: Callable[[Any, Tensor], dict[str, Tensor]] = nothing
    mixed: bool = True
    uniform: bool = False
    frames: int = 2
    scale: int = 1
    by_frame: bool = False
    raster: bool = True
