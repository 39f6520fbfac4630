"""Images of kept visual tokens."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..patches import Record

_DARK = 0.18  # brightness of dropped patches
TALLEST = 1.6  # largest height of a drawn image, in widths of its column


def kept_indices(record: Record) -> list[int]:
    """Ascending indices of the tokens that are kept in the end, after the decoder stage if there is one."""
    return record.indices if record.deep_indices is None else record.deep_indices


def kept_masks(record: Record) -> list[np.ndarray]:
    """Per token grid of the input, which of its tokens are kept, (T, H, W) bool; empty if the grids are unknown."""
    if record.grids is None:
        return []
    kept = np.zeros(record.n_before, bool)
    kept[kept_indices(record)] = True
    kept = np.delete(kept, record.separators)
    ends = np.cumsum([np.prod(grid) for grid in record.grids])
    return [part.reshape(grid) for part, grid in zip(np.split(kept, ends[:-1]), record.grids, strict=True)]


def dim(image: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """An image, uint8 (height, width, 3), darkened where its tokens, `kept` bool (H, W), were dropped."""
    rows, columns = (np.arange(n) * cells // n for n, cells in zip(image.shape, kept.shape, strict=False))
    light = np.where(kept[rows][:, columns], 1.0, _DARK)[..., None]
    return (image * light).astype(np.uint8)


def model_crop(image: Image.Image, processor: object) -> Image.Image:
    """The part of an image that the model gets: some processors crop to the center."""
    image_processor = getattr(processor, "image_processor", None)
    crop = getattr(image_processor, "crop_size", None)
    if not getattr(image_processor, "do_center_crop", False) or not crop:
        return image
    width, height = image.size
    scale = min(width / crop["width"], height / crop["height"])
    w, h = (max(1, round(crop[side] * scale)) for side in ("width", "height"))
    left, top = (width - w) // 2, (height - h) // 2
    return image.crop((left, top, left + w, top + h))


def fitted(width: int, height: int, column: int) -> tuple[int, int]:
    """(width, height) in pixels, each at least one, at which an image fills a column of `column` pixels.

    An image more than `TALLEST` times as high as wide stays narrower.
    """
    scale = min(column / width, TALLEST * column / height)
    return max(1, round(width * scale)), max(1, round(height * scale))
