"""What was kept, as pictures."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..patches import Record

_DARK = 0.18  # of dropped patches
TALLEST = 1.6  # height of a drawn picture, in widths of its column


def kept_indices(record: Record) -> list[int]:
    """What is left in the end, after a decoder stage if there was one."""
    return record.indices if record.deep_indices is None else record.deep_indices


def kept_masks(record: Record) -> list[np.ndarray]:
    """Per raster of the input, which of its tokens are left, (T, H, W) bool; none if the rasters are unknown."""
    if record.grids is None:
        return []
    kept = np.zeros(record.n_before, bool)
    kept[kept_indices(record)] = True
    kept = np.delete(kept, record.separators)
    ends = np.cumsum([np.prod(grid) for grid in record.grids])
    return [part.reshape(grid) for part, grid in zip(np.split(kept, ends[:-1]), record.grids, strict=True)]


def dim(image: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """A picture (height, width, 3) uint8, dark where its tokens (H, W) were dropped."""
    rows, columns = (np.arange(n) * cells // n for n, cells in zip(image.shape, kept.shape, strict=False))
    light = np.where(kept[rows][:, columns], 1.0, _DARK)[..., None]
    return (image * light).astype(np.uint8)


def seen(image: Image.Image, processor: object) -> Image.Image:
    """The part of a picture that the model gets to see: some processors cut out the middle."""
    images = getattr(processor, "image_processor", None)
    crop = getattr(images, "crop_size", None)
    if not getattr(images, "do_center_crop", False) or not crop:
        return image
    width, height = image.size
    scale = min(width / crop["width"], height / crop["height"])
    w, h = (max(1, round(crop[side] * scale)) for side in ("width", "height"))
    left, top = (width - w) // 2, (height - h) // 2
    return image.crop((left, top, left + w, top + h))


def fitted(width: int, height: int, column: int) -> tuple[int, int]:
    """Width and height at which a picture fills a column of so many pixels; a very tall one stays narrower.

    Each is at least one pixel.
    """
    scale = min(column / width, TALLEST * column / height)
    return max(1, round(width * scale)), max(1, round(height * scale))
