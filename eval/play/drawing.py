"""The kept tokens of a picture, drawn on it: once for each number of tokens that decoder layers hold."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ...patches import Record
from ..pictures import dim, fitted, kept_indices, kept_masks, model_crop

_WIDTH = 640  # of a drawn picture, pixels


@dataclass(frozen=True)
class View:
    """What some consecutive decoder layers hold of a picture.

    Attributes:
        layers: which ones, and how many tokens, for people: `"layers 2 to 5: 36 of 144 tokens"`.
        picture: dark where tokens were dropped; without dark parts if the token grid is unknown.
    """

    layers: str
    picture: Image.Image


def as_seen(picture: Image.Image, processor: object) -> Image.Image:
    """The part of a picture that the model gets, `_WIDTH` pixels wide or as high as fits."""
    seen = model_crop(picture, processor)
    size = fitted(*seen.size, _WIDTH)
    smooth = size[0] < seen.width  # pixels of a small picture stay squares
    return seen.resize(size, Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST)


def views(seen: Image.Image, record: Record, n_layers: int) -> list[View]:
    """One view for the layers below the first decoder cut, and one for the layers from each cut on.

    Args:
        seen: of `as_seen`.
        record: what was kept of the picture.
        n_layers: of the decoder.
    """
    found = []
    borders = [0, *(cut.layer for cut in record.cuts), n_layers]
    for i, (first, end) in enumerate(itertools.pairwise(borders)):
        held = dataclasses.replace(record, cuts=record.cuts[:i])
        layers = "all layers" if len(borders) == 2 else f"layers {first} to {end - 1}"
        if first == end - 1 and len(borders) > 2:
            layers = f"layer {first}"
        text = f"{layers}: {len(kept_indices(held))} of {record.n_before} tokens"
        found.append(View(text, _drawn(seen, held)))
    return found


def _drawn(seen: Image.Image, record: Record) -> Image.Image:
    """The picture once per token grid, side by side: a thumbnail and its mosaic of crops are two grids."""
    masks = kept_masks(record)
    if not masks:
        return seen
    pixels = np.asarray(seen)
    return Image.fromarray(np.concatenate([dim(pixels, np.any(mask, axis=0)) for mask in masks], axis=1))
