"""Images of kept visual tokens."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image

from ..patches import Record

#: Brightness of patches: dropped before the decoder, and held by its lower layers only. Kept ones stay as they are.
DARK, HALF = 0.18, 0.5
#: Colour over patches whose token left before or inside the vision encoder, and its share of the mixture.
EARLY, EARLY_SHARE = (40, 70, 200), 0.35
#: Colour of the frame around patches whose token was merged with dropped ones.
FRAME = (255, 196, 0)
TALLEST = 1.6  # largest height of a drawn image, in widths of its column


def kept_indices(record: Record) -> list[int]:
    """Ascending indices of the tokens that are kept in the end, after the decoder stage if there is one."""
    return record.indices if record.deep_indices is None else record.deep_indices


def kept_masks(record: Record) -> list[np.ndarray]:
    """Per token grid of the input, which of its tokens are kept, (T, H, W) bool; empty if the grids are unknown."""
    return masks(record, kept_indices(record))


def masks(record: Record, indices: Iterable[int]) -> list[np.ndarray]:
    """Per token grid of the input, which of its tokens are among `indices`, (T, H, W) bool; empty if the grids are
    unknown."""
    if record.grids is None:
        return []
    found = np.zeros(record.n_before, bool)
    found[list(indices)] = True
    found = np.delete(found, record.separators)
    ends = np.cumsum([np.prod(grid) for grid in record.grids])
    return [part.reshape(grid) for part, grid in zip(np.split(found, ends[:-1]), record.grids, strict=True)]


def dim(image: np.ndarray, kept: np.ndarray, entered: np.ndarray | None = None) -> np.ndarray:
    """An image with the patches of dropped tokens darkened.

    Args:
        image: uint8 (height, width, 3).
        kept: (H, W) bool, the tokens that the last decoder layer holds.
        entered: (H, W) bool, those that the first one holds; None: the same.
    """
    rows, columns = _cells(image, kept)
    light = np.where(kept, 1.0, DARK if entered is None else np.where(entered, HALF, DARK))
    return (image * light[rows][:, columns][..., None]).astype(np.uint8)


def tinted(image: np.ndarray, early: np.ndarray) -> np.ndarray:
    """An image, uint8 (height, width, 3), with the patches of some tokens, bool (H, W), in blue."""
    rows, columns = _cells(image, early)
    blue = image * (1 - EARLY_SHARE) + EARLY_SHARE * np.array(EARLY)
    return np.where(early[rows][:, columns][..., None], blue.astype(np.uint8), image)


def encoded_indices(record: Record) -> list[int]:
    """Ascending indices of the tokens that came out of the vision encoder, newline tokens included."""
    left = [set(kept) | set(record.separators) for kept in record.kept_after.values()]
    return sorted(set(range(record.n_before)).intersection(*left))


def framed(image: np.ndarray, marked: np.ndarray) -> np.ndarray:
    """An image, uint8 (height, width, 3), with a frame around each patch whose token is marked, bool (H, W)."""
    rows, columns = _cells(image, marked)
    thick = max(1, min(image.shape[0] // marked.shape[0], image.shape[1] // marked.shape[1]) // 12)
    # A pixel lies on a frame if one that is `thick` pixels away belongs to another patch, or to none.
    edge_rows, edge_columns = (_edges(cells, thick) for cells in (rows, columns))
    on_edge = edge_rows[:, None] | edge_columns[None, :]
    return np.where((on_edge & marked[rows][:, columns])[..., None], np.array(FRAME, np.uint8), image)


def _cells(image: np.ndarray, cells: np.ndarray) -> list[np.ndarray]:
    """For each row of pixels the row of patches it belongs to, and likewise for columns."""
    return [np.arange(n) * count // n for n, count in zip(image.shape, cells.shape, strict=False)]


def _edges(cells: np.ndarray, thick: int) -> np.ndarray:
    padded = np.pad(cells, thick, constant_values=-1)
    return (padded[: len(cells)] != cells) | (padded[2 * thick :] != cells)


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
